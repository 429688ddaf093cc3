"""The whole core on the modelled bus at 115200 baud: a site finds together, agrees and rolls an update out."""

from __future__ import annotations

import pytest

from tests.fleet.bus import Noise
from tests.fleet.sitebus import BusSite
from tests.fleet.sitekit import NEW


def done(site: BusSite) -> bool:
    """Every device runs the new bundle, and no lease is held."""
    views = [node.core.view() for node in site.nodes.values()]
    return all(node.device.booted == NEW for node in site.nodes.values()) and all(not view.leases for view in views)


@pytest.mark.parametrize("noise", [Noise(), Noise(flip=1e-4), Noise(local=2e-4)], ids=["quiet", "noise", "local noise"])
def test_four_devices_are_updated_one_after_the_other(noise: Noise) -> None:
    site = BusSite(4, 0, seed=4, noise=noise)
    site.run(10.0)
    site.propose()
    while not done(site):
        assert site.bus.now_s < 200, site.decisions
        site.run(site.bus.now_s + 1.0)
        assert len(site.bus.stations) >= 3
    kinds = [one.kind for one in site.decisions]
    assert kinds.count("GrantEntry") == kinds.count("ReleaseEntry") == 4
    assert not site.alarms


def test_sixteen_devices_find_together_and_agree_fast() -> None:
    site = BusSite(16, 3)
    site.run(15.0)
    assert all(one.age_s is not None for node in site.nodes.values() for one in node.core.view().members.values())
    site.propose()
    granted_s = site.until("GrantEntry", 10.0) - 15.0
    print(f"order to the first GRANT: {granted_s:.1f} s")
    assert granted_s < 6.0
    assert [one.kind for one in site.decisions] == ["OrderEntry", "PlanEntry", "GrantEntry"]
    assert site.bus.collisions == 0
