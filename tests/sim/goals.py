"""What an operation must have reached after it was cut and run again: each goal returns the complaint, empty where it is reached."""

from __future__ import annotations

from collections.abc import Callable

from abupdate import machine
from abupdate.model import Phase, Situation, SlotState
from tests.sim import rings
from tests.sim.device import Device, reboot
from tests.sim.judge import summary
from tests.sim.tpm import Index


def nothing(device: Device) -> None:
    return


def on_b(device: Device) -> bool:
    return device.boot.slot == "B"


def differs(device: Device, uncut: Device, *, counters: bool = True, reasons: bool = True) -> str:
    if device.has_tpm:
        after = reboot(device)
        after.service()
        kept, floor = Index.of(after.machine.parts[-1]), machine.floor(after.facts())
        if kept != floor:
            return f"the TPM keeps {kept}, the floor is {floor}"
    have, want = (summary(each, counters=counters, reasons=reasons) for each in (device, uncut))
    return "" if have == want else f"ends in {have}, an uncut run in {want}"


def same(device: Device, code: int, uncut: Device) -> str:
    return f"exit {code} is not 0" if code else differs(device, uncut, counters=device.boot.settled)


def flashed(target: str, version: str, ring: int = 1) -> Callable[[Device, int, Device], str]:
    def goal(device: Device, code: int, uncut: Device) -> str:
        if rings.version(device.state) != ring:
            return f"the keyring is version {rings.version(device.state)}"
        facts = device.facts()
        assert facts.boot is not None
        if device.boot.slot == target:
            found = device.content(target)
            whole = found is not None and found.version == version and facts.boot.trial == target
            return "" if code == 5 and whole else f"exit {code} on slot {target}, which runs on trial"
        if code == 4 and device.store.policy.tries == 1:
            # A cut in its boot was its only try; `activate` does not try again what has failed.
            last = facts.record.attempt if facts.record else None
            return "" if last is not None and last.slot == target and last.phase is Phase.REVERTED and last.reason else "not tried"
        if code not in (0, 5):
            return "not flashed"
        if code == 5:
            # Killed after arming: the record may still say "written", the boot store decides.
            last = facts.record.attempt if facts.record else None
            armed = machine.situation(facts) is Situation.ARMED and last is not None and last.phase in (Phase.WRITTEN, Phase.ARMED)
            return "" if armed and facts.boot.order[0] == target else "busy without a trial"
        return differs(device, uncut, counters=device.boot.settled)

    return goal


def flashed_under(lease: int, target: str, version: str) -> Callable[[Device, int, Device], str]:
    reached = flashed(target, version)

    def goal(device: Device, code: int, uncut: Device) -> str:
        facts = device.facts()
        attempt = facts.record.attempt if facts.record else None
        tried = device.boot.slot == target or machine.situation(facts) is Situation.ARMED
        if tried and (attempt is None or attempt.lease != lease):
            return f"slot {target} is tried under no lease: {attempt}"
        return reached(device, code, uncut)

    return goal


def rotated(device: Device, code: int, uncut: Device) -> str:
    if code not in (0, 4):
        return "not rotated"
    return "" if rings.version(device.state) == len(rings.RINGS) else f"the keyring is version {rings.version(device.state)}"


def refused(device: Device, code: int, uncut: Device) -> str:
    boot = device.facts().boot
    return "" if code == 1 and boot is not None and not boot.trial and "B" not in boot.order else f"exit {code}, {boot}"


def confirmed(device: Device, code: int, uncut: Device) -> str:
    if code not in (0, 4):
        return "not confirmed"
    if device.boot.slot == "A":
        # Cuts alone used up its tries.
        attempt = device.facts().record
        fair = attempt is not None and attempt.attempt is not None and attempt.attempt.reason in device.store.reasons
        return "" if fair and code == 4 and states(device)["B"] is SlotState.BAD else "slot A runs"
    return differs(device, uncut, counters=device.boot.settled)


def back_on_a(device: Device, code: int, uncut: Device) -> str:
    facts = device.facts()
    assert facts.boot is not None
    if code not in (0, 4):
        return "not reverted"
    if facts.boot.trial or facts.boot.order != ("A",) or facts.boot.left["B"]:
        return f"slot B can still boot: {facts.boot}"
    attempt = facts.record.attempt if facts.record else None
    if attempt is None or attempt.slot != "B" or attempt.phase not in (Phase.REVERTED, Phase.CANCELLED) or not attempt.reason:
        return f"the record does not say it: {attempt}"
    after = reboot(device)
    return "" if after.boot.slot == "A" else "slot B boots"


def switched(device: Device, code: int, uncut: Device) -> str:
    facts = device.facts()
    assert facts.boot is not None
    if code not in (0, 4):
        return "not switched"
    if facts.boot.trial or facts.boot.order != ("A", "B") or not facts.boot.left["B"]:
        return f"not slot A first and slot B good behind it: {facts.boot}"
    after = reboot(device)
    after.service()
    known = states(after)
    if known != {"A": SlotState.CONFIRMED, "B": SlotState.CONFIRMED}:
        return f"after the reboot: {known}"
    again = reboot(after)
    return "" if after.boot.slot == again.boot.slot == "A" else "slot B boots"


def states(device: Device) -> dict[str, SlotState]:
    """What `status` says of the slots."""
    return dict(machine.slot_states(device.facts()))


def cleaned_up(device: Device, code: int, uncut: Device) -> str:
    record, wanted = device.facts().record, uncut.facts().record
    assert wanted is not None
    assert wanted.attempt is not None
    # That the watchdog had fired is known in the boot after it alone: cut before it is recorded, the counter is all that tells.
    reasons = (wanted.attempt.reason, *device.store.reasons)
    if record is None or record.attempt is None or record.attempt.reason not in reasons:
        return f"the reason is lost: {record}"
    return differs(device, uncut, reasons=False)


def fell_through(device: Device, code: int, uncut: Device) -> str:
    return differs(device, uncut)


def rebuilt(device: Device, code: int, uncut: Device) -> str:
    facts = device.facts()
    if facts.boot is None or facts.boot.order != (device.boot.slot,):
        return f"the store is not rebuilt: {facts.boot}"
    return differs(device, uncut)
