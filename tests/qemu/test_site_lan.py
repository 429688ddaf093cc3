"""Sites of emulated devices on a LAN. Who was down when is judged from outside: by the bootloaders' words and by heartbeats on the wire."""

from __future__ import annotations

from typing import Any

import pytest

from qemu.site import Site
from tests.qemu.sites import closed_plan, holders, judge, propose

pytestmark = [pytest.mark.qemu, pytest.mark.site, pytest.mark.timeout(1500)]


def test_a_rolling_update_takes_one_device_after_another_and_goes_on_after_one_that_went_back(site: Site) -> None:
    began_s = site.hub.heard[-1].at_s
    stranger = propose(site, "wrong-key")
    said = site.until("a proposal that fails says why", lambda: rejects(site.any_status(), stranger), 120)
    assert all("signed" in why for why in said.values()), said
    order = propose(site, "v2", "--halt-at", "2")
    site.until("the first device has a lease", lambda: holders(site.any_status()), 180)
    first = holders(site.any_status())
    assert len(first) == 1
    last = max(set(range(4)) - first)
    site.make_ill(last)
    done = site.until("the plan is closed", lambda: closed_plan(site, order), 600)
    assert (done["completed"], done["reverted"]) == (3, 1)
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
