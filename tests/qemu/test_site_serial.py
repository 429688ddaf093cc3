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
    site.until("the first device is through", lambda: holders(site.any_status()) != {first}, 240)
    # Neither of two voters decides without the third one where a lease is held; and what is not heard is not up.
    alone = max(set(range(3)) - {first} - holders(site.any_status()))
    site.hub.partition(set(range(3)) - {alone})
    others = sorted(set(range(3)) - {alone})
    site.until("its silence is noticed", lambda: up(site.any_status(alone)) < 3, 90)
    site.hub.heal()
    done = site.until("the plan is closed", lambda: closed_plan(site, order), 900)
    assert (done["completed"], done["reverted"]) == (3, 0)
    for node in range(3):
        assert site.boots(node) == ["A confirmed", "B trial"], others
    assert isinstance(site.hub, SerialBus)
    assert site.hub.noisy_bytes > 0
    # The one that was cut off spoke all the time, and nobody else went down meanwhile.
    judge(site, began_s)
