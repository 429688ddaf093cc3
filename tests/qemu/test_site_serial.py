"""Sites of emulated devices whose only link is a serial bus: half duplex, 115200 baud, with noise on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qemu.serialbus import SerialBus
from qemu.site import Site
from tests.qemu.sites import closed_plan, holders, judge, propose, up

pytestmark = [pytest.mark.qemu, pytest.mark.site, pytest.mark.slow, pytest.mark.timeout(2400)]

# A frame in fifty is hit.
NOISE = 1e-4


@pytest.fixture
def site(images: object) -> Iterator[Site]:
    """Three devices that are enrolled and hear each other on the bus; version 1.0.0 on all."""
    with Site(3, noise=NOISE) as one:
        one.start()
        one.until("all hear each other", lambda: up(one.status(0)) == 3 and up(one.status(2)) == 3, 180)
        yield one


def test_a_rolling_update_over_a_serial_bus_waits_for_a_device_whose_wire_is_off(site: Site) -> None:
    began_s = site.hub.heard[-1].at_s
    order = propose(site, "v2")
    site.until("a lease", lambda: holders(site.any_status()), 240)
    (first,) = holders(site.any_status())
    others = sorted(set(range(3)) - {first})
    cut_off, third = others
    # Where it had not gone down yet, it would put it off.
    site.devices[first].wait(r"^abupdate: slot B trial left", 180)
    site.hub.partition({first, third})
    # Two of three voters decide that the first device is through. A second one would leave them one voter, which decides nothing.
    blocked = site.until("the plan waits", lambda: waiting(site, third), 240)
    assert f"silent: n{cut_off}" in blocked
    assert holders(site.status(third)) == set()
    assert up(site.status(cut_off)) == 1
    assert [site.boots(node) for node in others] == [["A confirmed"]] * 2, "somebody went down while too few were heard"
    site.hub.heal()
    done = site.until("the plan is closed", lambda: closed_plan(site, order), 900)
    assert (done["completed"], done["reverted"]) == (3, 0)
    for node in range(3):
        assert site.boots(node) == ["A confirmed", "B trial"]
    assert isinstance(site.hub, SerialBus)
    assert site.hub.noisy_bytes > 0
    # The one that was cut off spoke all the time, if only to itself, and never two were silent at the same time.
    judge(site, began_s)


def waiting(site: Site, node: int) -> str:
    """Why nobody may go down, as a device says it; empty where that is not what it waits for."""
    blocked = str(site.status(node).get("blocked", ""))
    return blocked if blocked.startswith("nobody may go down") else ""
