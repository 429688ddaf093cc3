"""The documents of the fleet's daemon as lines for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Enough of an id to name it; verbs take it as well.
SHORT = 12
_HEADINGS = ("NODE", "STATE", "HEIGHT", "PHASE", "RUNS", "LEASE", "ADDRESS")


def status(document: Mapping[str, Any]) -> str:
    """`fleet status`."""
    lines = [f"site {document['site']}, epoch {document['epoch']}, height {document['height']}; this is {document['node']}"]
    lines += _agreement(document["agreement"])
    lines += _members(document["members"])
    lines += [f"lost: {lease['node']} (lease {lease['lease']}, for {age(lease['age_s'])})" for lease in document["leases"]["lost"]]
    if document["plan"]:
        lines += _plan(document["plan"])
    for order in document["orders"]:
        lines += _order(order)
    if document["paused"]:
        lines.append(f"paused: {document['paused']}")
    if document["stopped"]:
        lines.append(f"this node does not vote: {document['stopped']}")
    lines += [f"alarm: {alarm}" for alarm in document["alarms"]]
    if document["blocked"]:
        lines.append(f"why nothing moves: {document['blocked']}")
    elif not document["plan"] and not document["orders"]:
        lines.append("nothing to do" + _last(document["closed"]))
    return "\n".join(lines)


def _agreement(numbers: Mapping[str, Any]) -> list[str]:
    waived = ", the log may wait for one" if numbers["stall_ok"] else ""
    groups = "".join(f", {minimum} of group {group}" for group, minimum in numbers["groups"].items())
    return [
        f"{numbers['nodes']} nodes, {numbers['voters']} vote, Q = {numbers['quorum']}, f = {numbers['faults']} ({numbers['worth']})",
        f"voters down at once: at most {numbers['voter_budget']}{waived}; always up: {numbers['min_up']} nodes{groups}",
    ]


def _members(members: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [_HEADINGS, *map(_member, members)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = []
    for row, member in zip(rows, (None, *members), strict=True):
        mark = "*" if member and member["me"] else " "
        line = f"{mark} " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(line.rstrip() + _remarks(member))
    return lines


def _member(member: Mapping[str, Any]) -> tuple[str, ...]:
    lease = member["lease"]
    if not member["up"]:
        state = "never heard" if member["age_s"] is None else f"silent {age(member['age_s'])}"
    else:
        state = "trial" if member["trial"] else "ok" if member["healthy"] else "ill"
    held = f"{lease['lease']} ({age(lease['age_s'])})" if lease else "-"
    # Zeros: it runs what no bundle has brought.
    runs = member["bundle"][:SHORT] if member["bundle"].strip("0") else "-"
    return (member["name"], state, str(member["height"]), member["phase"], runs, held, member["address"] or "-")


def _remarks(member: Mapping[str, Any] | None) -> str:
    if member is None:
        return ""
    remarks = [] if member["voter"] else ["learner"]
    for key, word in (("evicted", "evicted"), ("stopped", "does not vote"), ("voted_twice", "HAS VOTED TWICE")):
        if member[key]:
            remarks.append(word)
    if member["lease"] and member["lease"]["overdue_by"]:
        remarks.append(f"overdue by the clocks of {', '.join(member['lease']['overdue_by'])}")
    if member["doubted_by"]:
        remarks.append(f"doubted by {', '.join(member['doubted_by'])}")
    if member["reason"]:
        remarks.append(member["reason"])
    return f"  {'; '.join(remarks)}" if remarks else ""


def _plan(plan: Mapping[str, Any]) -> list[str]:
    wave = "wave 0, one node after another" if plan["wave"] == 0 else f"wave {plan['wave']}, {plan['width']} at once"
    back = "rolling back, " if plan["rolling_back"] else ""
    lines = [
        f"plan {plan['order'][:SHORT]}: {plan['kind']} to version {plan['version'] or plan['bundle'][:SHORT]}, {back}{wave}: "
        f"{len(plan['done'])} of {len(plan['nodes'])} done, {len(plan['reverted'])} reverted, {len(plan['deferred'])} deferred"
    ]
    if plan["halted"]:
        lines.append(f"  halted: {plan['halted']} (halt_at {plan['halt_at']}, on_halt {plan['on_halt']})")
    lines += [f"  {word}: {', '.join(plan[key])}" for key, word in (("asking", "asks for a slot"), ("evicted", "evicted")) if plan[key]]
    return lines


def _last(closed: Sequence[Mapping[str, Any]]) -> str:
    if not closed:
        return ""
    last = closed[-1]
    return f"; plan {last['order'][:SHORT]} is {last['how']}: {last['completed']} completed, {last['reverted']} reverted"


def _order(order: Mapping[str, Any]) -> list[str]:
    place = "" if order["committed"] else ", not yet in the log"
    have = len(order["approved_by"])
    lines = [f"order {order['order'][:SHORT]}: {order['kind']} to version {order['version']}, {have} of {order['needed']} approvals{place}"]
    if order["approved_by"]:
        lines.append(f"  approved by {', '.join(order['approved_by'])}")
    lines += [f"  rejected by {node}: {reason or 'no reason given'}" for node, reason in order["rejected"].items()]
    if order["waits_here_for"]:
        lines.append(f"  waits here for {order['waits_here_for']}")
    return lines


def log(document: Mapping[str, Any]) -> str:
    """`fleet log`."""
    lines = []
    for entry in document["entries"]:
        late = f" in round {entry['round']}" if entry["round"] else ""
        lines.append(f"{entry['height']:>6}  {_entry(entry)}; signed by {', '.join(entry['signed_by'])}{late}")
    if lines:
        return "\n".join(lines)
    height = document.get("height", 0)
    return f"nothing is kept from there on: the site is at height {height}" if height else "nothing is decided yet"


def _entry(entry: Mapping[str, Any]) -> str:
    match entry["kind"]:
        case "plan":
            return f"plan {entry['order'][:SHORT]}, approved by {', '.join(entry['approved_by'])}"
        case "grant":
            nodes = ", ".join(f"{one['node']} (attempt {one['attempt']})" for one in entry["grants"])
            return f"slot for {nodes} of plan {entry['plan'][:SHORT]}"
        case "release" | "return" as kind:
            ends = ", ".join(f"{one['node']} {one['ending'].replace('_', ' ')} (lease {one['lease']})" for one in entry["releases"])
            return f"{kind} of {ends}"
        case "halt":
            return f"halt of plan {entry['plan'][:SHORT]}: lease {entry['lease']} is overdue, say {', '.join(entry['overdue_by'])}"
        case "reconfig":
            return f"next membership {entry['membership'][:SHORT]}"
        case kind:
            return f"{kind} {entry['order'][:SHORT]}{_said(entry)}"


def _said(entry: Mapping[str, Any]) -> str:
    """What an order says, where it is kept."""
    if "order_kind" not in entry:
        return ""
    words = [entry["order_kind"]]
    words += [f"to version {entry['version']}"] if "version" in entry else []
    words += [f"of {', '.join(entry['nodes'])}"] if "nodes" in entry else []
    words += [f"of {entry['target'][:SHORT]}"] if "target" in entry else []
    return f": {' '.join(words)}" + (f" ({entry['reason']})" if "reason" in entry else "")


def age(seconds: float) -> str:
    """A span of time in its two largest units."""
    whole = int(seconds)
    for unit, length_s, next_unit, next_s in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length_s:
            return f"{whole // length_s} {unit} {whole % length_s // next_s} {next_unit}"
    return f"{whole} s"
