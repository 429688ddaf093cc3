"""The whole core on the modelled bus at 115200 baud: a site finds together, agrees and rolls an update out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fleet.authority import Shape
from tests.fleet.bus import Noise
from tests.fleet.media import Serial
from tests.fleet.quietsite import Site


def site_on_bus(shape: Shape, noise: Noise | None = None) -> tuple[Site, Serial]:
    """A site that has been switched on and whose nodes hear each other."""
    made: list[Serial] = []

    def medium(tag: bytes) -> Serial:
        made.append(Serial(shape.nodes, tag, seed=4, noise=noise))
        return made[0]

    site = Site(shape, medium, real_keys=False)
    site.start()
    return site, made[0]


def first(site: Site, kind: str) -> Callable[[], bool]:
    """Node 0 has decided an entry of this kind."""
    return lambda: kind in kinds(site)


def kinds(site: Site) -> list[str]:
    """What node 0 has decided."""
    return [type(one.entry).__name__ for one in site.decided if one.node == 0]


@pytest.mark.parametrize("noise", [Noise(), Noise(flip=1e-4), Noise(local=2e-4)], ids=["quiet", "noise", "local noise"])
def test_four_devices_are_updated_one_after_the_other(noise: Noise) -> None:
    site, serial = site_on_bus(Shape(4, min_up=3), noise)
    site.until(site.ready, 20.0)
    site.propose()
    while not site.updated():
        assert site.clock.now_s < 300, kinds(site)
        site.clock.run(site.clock.now_s + 0.5)
        assert len(serial.bus.stations) >= 3
    assert kinds(site).count("GrantEntry") == kinds(site).count("ReleaseEntry") == 4
    assert not site.alarms


def test_sixteen_devices_find_together_and_agree_fast() -> None:
    site, serial = site_on_bus(Shape(16, faults=3, min_up=13))
    site.until(site.ready, 15.0)
    site.propose()
    site.until(first(site, "PlanEntry"), 30.0)
    planned_s = site.clock.now_s
    site.until(first(site, "GrantEntry"), 6.0)
    print(f"plan to the first GRANT: {site.clock.now_s - planned_s:.1f} s")
    assert kinds(site) == ["OrderEntry", "PlanEntry", "GrantEntry"]
    assert serial.bus.collisions == 0
