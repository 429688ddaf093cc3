"""A trace that people can read: one line for each event with what came of it."""

from __future__ import annotations

from abupdate.errors import Refused
from abupdate.fleet.events import Compact, Decided, Observed, Persist, Received, Send, Submitted, Tick
from abupdate.formats import frame
from abupdate.formats.messages import NOTHING, Frame, Outcome, Proposal, Vote


def short(value: object) -> str:
    """A value without the bulk of its bytes."""
    if isinstance(value, bytes):
        return value.hex()[:8] if any(value) else "0"
    text = repr(value)
    return text if len(text) < 160 else text[:157] + "..."


def tell_frame(data: bytes) -> str:
    """What a frame says."""
    try:
        one: Frame = frame.parse(data)
    except Refused as fault:
        return f"damaged ({fault})"
    match one.message:
        case Vote(height=height, round=round_, value=value):
            words = f"h{height} r{round_} {'nil' if value == NOTHING else value.hex()[:8]}"
        case Proposal(height=height, round=round_, valid_round=valid, entry_digest=digest):
            words = f"h{height} r{round_} v{valid} entry {digest.hex()[:8]}"
        case Outcome(lease=lease, reason=reason):
            words = f"lease {lease} {reason}"
        case message:
            words = short(message)
    return f"{one.type.name} by {one.source} e{one.epoch} b{one.boot}.{one.seq} {words}"


def tell_effect(effect: object) -> str:
    """One effect."""
    match effect:
        case Send(data=data):
            return f"send {tell_frame(data)}"
        case Persist(kind=kind, data=data):
            return f"persist {kind.name} ({len(data)})"
        case Compact(records=records):
            return f"compact to {len(records)} records"
        case Decided(height=height, entry=entry):
            return f"DECIDED {height}: {short(entry)}"
        case _:
            return short(effect)


def tell(when_s: float, who: str, event: object, effects: object) -> str:
    """One line, or a few."""
    match event:
        case Received(data=data):
            head = f"hears {tell_frame(data)}"
        case Tick():
            head = "wakes"
        case Observed(device=device):
            lease, phase = device.lease, device.phase.value if device.phase else None
            head = f"observes booted {short(device.booted)} trial {device.trial} armed {device.armed} lease {lease} {phase}"
        case Submitted():
            head = "is handed an order"
        case _:
            head = short(event) if not isinstance(event, str) else event
    lines = [f"{when_s:9.3f} {who:>3} {head}"]
    if isinstance(effects, tuple):
        lines += [f"{'':13}    -> {tell_effect(effect)}" for effect in effects]
    elif effects:
        lines[0] += f" {effects}"
    return "\n".join(lines)
