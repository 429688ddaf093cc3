"""The whole core on the modelled bus at 115200 baud: a site finds together, agrees and rolls an update out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from tests.fleet.authority import Shape
from tests.fleet.bus import Noise
from tests.fleet.media import Serial
from tests.fleet.quietsite import Site


def site_on_bus(shape: Shape, noise: Noise | None = None, late: Mapping[int, float] | None = None) -> tuple[Site, Serial]:
    """A site that is switched on. late: when some nodes are, where that is not at once."""
    made: list[Serial] = []

    def medium(tag: bytes) -> Serial:
        made.append(Serial(shape.nodes, tag, seed=4, noise=noise))
        return made[0]

    site = Site(shape, medium, real_keys=False)
    site.start(late or {})
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


def test_voters_and_learners_that_are_switched_on_together_all_hear_each_other_within_six_heartbeats() -> None:
    shape = Shape(20, faults=3, min_up=19, voters=16)
    site, _ = site_on_bus(shape)
    site.until(site.ready, 6 * shape.heartbeat_s)
    print(f"after {site.clock.now_s:.1f} s")


def test_a_learner_that_is_switched_on_late_hears_everybody_within_six_heartbeats() -> None:
    shape = Shape(20, faults=3, min_up=19, voters=16)
    site, _ = site_on_bus(shape, late={18: 100.0})
    site.clock.run(100.0)
    assert not site.ready()
    site.until(site.ready, 6 * shape.heartbeat_s)
    print(f"after {site.clock.now_s - 100:.1f} s")
