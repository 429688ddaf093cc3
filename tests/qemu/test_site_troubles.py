"""What goes wrong on a site of emulated devices: deferrals, pauses, partitions, power cuts, hangs, lost nodes, ways back."""

from __future__ import annotations

import pytest

from qemu.site import Site
from tests.qemu.sites import closed_plan, holders, judge, propose, up

pytestmark = [pytest.mark.qemu, pytest.mark.site, pytest.mark.slow, pytest.mark.timeout(2400)]


def began(site: Site) -> float:
    return site.hub.heard[-1].at_s


def test_a_pause_a_node_that_defers_and_a_partition_only_delay_the_update(site: Site) -> None:
    since_s = began(site)
    # One node's drain program says no, twice.
    site.check(
        2,
        "mkdir -p -m 700 /data/site/drain; printf '#!/bin/sh\\ncat >/dev/null\\nn=$(cat /data/site/n 2>/dev/null || echo 0)\\n"
        'echo $((n + 1)) >/data/site/n\\n[ "$n" -ge 2 ] || { echo still busy; exit 1; }\\n\' >/data/site/drain/10-busy; '
        "chmod 700 /data/site/drain/10-busy",
    )
    order = propose(site)
    site.until("a plan", lambda: site.any_status().get("plan"), 240)
    site.order(0, "pause", order, "--reason", "lunch")
    site.until("the pause is known", lambda: site.any_status().get("paused") == "lunch", 60)
    before = {node: len(site.boots(node)) for node in range(4)}
    # Who is down already finishes; nobody else starts.
    site.until("no lease is held", lambda: not holders(site.any_status()), 180)
    assert sum(len(site.boots(node)) - before[node] for node in range(4)) <= 1
    site.order(0, "resume", order)
    site.hub.partition({0, 1}, {2, 3})
    height = site.status(0)["height"]
    site.until("nobody sees a quorum", lambda: up(site.status(0)) == 2 and up(site.status(3)) == 2, 60)
    assert site.status(0)["height"] <= height + 1
    assert "voters decide" in str(site.status(0)["blocked"])
    site.hub.heal()
    done = site.until("the plan is closed", lambda: closed_plan(site, order), 900)
    assert (done["completed"], done["reverted"]) == (4, 0)
    assert site.check(2, "cat /data/site/n") == "3"
    judge(site, since_s)


def test_power_cut_in_the_middle_keeps_the_lease_held_and_lost_and_return_do_what_they_say(site: Site) -> None:
    since_s = began(site)
    order = propose(site)
    site.until("a lease", lambda: holders(site.any_status()), 240)
    (node,) = holders(site.any_status())
    rest = [other for other in range(4) if other != node]
    site.devices[node].wait(r"^abupdate: slot B trial left", 120)
    site.devices[node].kill()
    site.until("its silence is noticed", lambda: up(site.any_status(node)) == 3, 60)
    assert holders(site.any_status(node)) == {node}
    site.order(rest[0], "lost", f"n{node}")
    status = site.until("it is lost", lambda: (now := site.any_status(node))["leases"]["lost"] and now, 90)
    assert status["plan"]["halted"]
    assert all(len(site.boots(other)) == 1 for other in rest), "somebody else went down beside the lost one"
    site.devices[node].start()
    site.until("it has returned", lambda: not holders(site.any_status(node)), 240)
    # The cut ended its only try: it is back on A, and says so.
    assert site.boots(node)[-1] == "A confirmed"
    site.order(rest[0], "resume", order, "--halt-at", "2")
    done = site.until("the plan is closed", lambda: closed_plan(site, order), 900)
    assert (done["completed"], done["reverted"]) == (3, 1)
    judge(site, since_s)


def known_v2(site: Site, node: int) -> None:
    """Make a device run version 2.0.0 from a bundle, by hand and alone: so its bundle is known, and it is something to go back to."""
    device = site.devices[node]
    device.check("abupdate flash --alone /bundles/v2.abu", 300)
    device.type("reboot")
    device.wait(r"^abupdate: slot B trial left", 120)
    device.wait(r"^abupdate\[service\]: .*slot is confirmed", 180)


def test_a_hang_halts_the_plan_and_those_who_were_done_go_back(site: Site) -> None:
    site.each(lambda node: known_v2(site, node))
    site.until("all see each other again", lambda: up(site.status(0)) == 4 and up(site.status(3)) == 4, 180)
    since_s = began(site)
    order = propose(site, "v2-1", "--halt-at", "1", "--on-halt", "rollback", "--rollback-to", str(site.bundle("v2")))
    site.until("a lease", lambda: holders(site.any_status()), 300)
    (first,) = holders(site.any_status())
    hanging = next(node for node in range(4) if node != first)
    for node in range(4):
        if node != first:
            site.check(node, "echo hang-before-service >/data/abu-fault-on-trial")
    done = site.until("the plan is closed", lambda: closed_plan(site, order), 1200)
    assert done["how"] == "done"
    fired = [site.devices[node].watchdog_resets for node in range(4)]
    assert sum(fired) == 1, f"the watchdog ends the one hang ({hanging}): {fired}"
    # The first one was through with 2.1.0 on A, and is on B again; so is the one that hung.
    assert site.boots(first)[-3:] == ["B trial", "A trial", "B confirmed"]
    judge(site, since_s)


def test_orders_to_go_back_at_once_take_some_and_then_all_past_every_budget(site: Site) -> None:
    site.each(lambda node: known_v2(site, node))
    site.until("all see each other again", lambda: up(site.status(0)) == 4 and up(site.status(3)) == 4, 180)
    order = propose(site, "v2-1", "--width", "1")
    site.until("two are through", lambda: len((site.any_status().get("plan") or {}).get("done", [])) >= 2, 900)
    first, second = (int(name[1:]) for name in site.any_status()["plan"]["done"][:2])
    some = before(site)
    site.order(0, "rollback", "--to", str(site.bundle("v2")), "--now", "--nodes", f"n{first}", name="some")
    site.until("the one that was named is back", lambda: site.boots(first)[some[first] :] == ["B confirmed"] and listening(site) == 4, 240)
    closed = site.until("how the plan ended", lambda: closed_plan(site, order), 120)
    assert closed["how"] == "replaced"
    assert not site.boots(second)[some[second] :], "the order did not name it"
    every = before(site)
    site.order(0, "rollback", "--to", str(site.bundle("v2")), "--now", name="all")
    site.until("all run 2.0.0", lambda: listening(site) == 4 and all(version(site, node) == "2.0.0" for node in range(4)), 400)
    assert site.boots(second)[every[second] :] == ["B confirmed"]
    assert not site.boots(first)[every[first] :], "it runs 2.0.0 already"


def before(site: Site) -> list[int]:
    """How often each device has booted so far."""
    return [len(site.boots(node)) for node in range(4)]


def listening(site: Site) -> int:
    """How many devices' shells are there."""
    return sum(site.listens(node) for node in range(4))


def version(site: Site, node: int) -> str:
    """What a device runs."""
    return site.check(node, "cat /etc/abu-version")
