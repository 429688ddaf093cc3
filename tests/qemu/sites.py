"""What the tests on sites ask and judge in more than one place."""

from __future__ import annotations

from typing import Any

from qemu.site import Site


def up(status: dict[str, Any]) -> int:
    """How many members are heard."""
    return sum(member["up"] for member in status.get("members", []))


def propose(site: Site, bundle: str = "v2", *words: str) -> str:
    """Propose one of the bundles on the devices' shared disk; returns the order's id."""
    return site.order(0, "propose", str(site.bundle(bundle)), "--source", f"/bundles/{bundle}.abu", *words)


def holders(status: dict[str, Any]) -> set[int]:
    """Nodes that hold a lease or have lost it; none where nobody answers."""
    if not status:
        return set()
    names = {member["name"]: int(member["index"]) for member in status["members"]}
    return {names[lease["node"]] for lease in (*status["leases"]["held"], *status["leases"]["lost"])}


def closed_plan(site: Site, order: str) -> dict[str, Any]:
    """How a plan ended, as any device that answers knows it; empty: it is open."""
    return next((one for one in site.any_status().get("closed", []) if one["order"] == order), {})


def judge(site: Site, since_s: float, most: int = 1) -> None:
    """From outside: never more devices silent on the wire at the same time than the budget allows, so min_up of them always speak."""
    assert site.most_down(since_s) <= most, site.down(since_s)
