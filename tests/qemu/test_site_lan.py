"""Sites of emulated devices on a LAN. Who was down when is judged from outside: by the bootloaders' words and by heartbeats on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qemu.device import IMAGES
from qemu.site import Site

pytestmark = [pytest.mark.qemu, pytest.mark.site, pytest.mark.timeout(1500)]

V2 = IMAGES / "bundles/v2.abu"
ILL = "#!/bin/sh\ngrep -q 2.0.0 /etc/abu-version && { echo ill with 2.0.0; exit 2; }; exit 0\n"


@pytest.fixture
def site(images: object) -> Iterator[Site]:
    """Four devices that are enrolled and see each other; version 1.0.0 on all."""
    with Site(4) as one:
        one.start()
        one.until("all see each other", lambda: up(one.status(0)) == 4 and up(one.status(3)) == 4, 120)
        yield one


def up(status: dict[str, Any]) -> int:
    return sum(member["up"] for member in status.get("members", []))


def propose(site: Site, *words: str) -> str:
    return site.order(0, "propose", str(V2), "--source", "/bundles/v2.abu", *words)


def holders(status: dict[str, Any]) -> set[int]:
    """Nodes that hold a lease or have lost it."""
    names = {member["name"]: member["index"] for member in status["members"]}
    found = set()
    for lease in (*status["leases"]["held"], *status["leases"]["lost"]):
        node = lease["node"]
        found.add(names.get(node, node))
    return found


def make_ill(site: Site, node: int) -> None:
    """From now on this device's health program says critical where version 2.0.0 runs."""
    (site.folder / "ill").write_text(ILL)
    site.put(node, site.folder / "ill", "/data/site/health.d/50-ill")
    site.devices[node].check("chmod 700 /data/site/health.d/50-ill")


def judge(site: Site, since_s: float, most: int = 1) -> None:
    """From outside: never more devices silent on the wire at the same time than the budget allows, and min_up of them always heard."""
    assert site.most_down(since_s) <= most, site.down(since_s)


def test_a_rolling_update_takes_one_device_after_another_and_goes_on_after_one_that_went_back(site: Site) -> None:
    began_s = site.hub.heard[-1].at_s
    rejected = site.order(0, "propose", str(V2), "--source", "/bundles/no-such.abu")
    status = site.until("a proposal that fails says why", lambda: rejects(site.any_status(), rejected), 90)
    assert len(status) == 4
    order = propose(site, "--halt-at", "2")
    site.until("the first device has a lease", lambda: holders(site.any_status()), 180)
    first = holders(site.any_status())
    assert len(first) == 1
    last = max(set(range(4)) - first)
    make_ill(site, last)
    done = site.until("the plan is closed", lambda: ended(site, order), 600)
    assert done["closed"][-1]["order"] == order
    assert (done["closed"][-1]["completed"], done["closed"][-1]["reverted"]) == (3, 1)
    for node in range(4):
        slots = site.boots(node)
        assert slots[:2] == ["A confirmed", "B trial"], slots
        assert slots[2:] == (["A confirmed"] if node == last else []), slots
    judge(site, began_s)
    history = site.fleet(0, "log").output
    assert "RELEASE" in history.upper()


def rejects(status: dict[str, Any], order: str) -> dict[str, str]:
    """Why nodes reject the order, once all have said it."""
    for one in status.get("orders", []):
        if one["order"] == order and len(one["rejected"]) == 4:
            return dict(one["rejected"])
    return {}


def ended(site: Site, order: str) -> dict[str, Any]:
    """The status of a device that knows the plan as closed; empty: none does."""
    status = site.any_status()
    return status if any(one["order"] == order for one in status.get("closed", [])) else {}
