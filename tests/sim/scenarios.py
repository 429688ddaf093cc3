"""The operations that are cut: how the device gets there, the command, and what must be reached in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from abupdate import machine
from abupdate.model import Phase, Situation, SlotState
from tests.sim.device import V1, V2, V3, Device, new_device, power_up, reboot, slot_content
from tests.sim.explore import Scenario, summary

FACTORY = frozenset({("A", "1.0")})
BOTH = frozenset({("A", "1.0"), ("B", "2.0")})


def scenarios(folder: Path) -> tuple[Scenario, ...]:
    """All of them; `folder` holds the fw_env.config and the lock of the environment."""

    def factory() -> Device:
        return new_device(folder)

    def running() -> Device:
        device = factory()
        device.service()
        return device

    def armed() -> Device:
        device = running()
        device.flash(V2)
        return device

    def on_trial() -> Device:
        device = reboot(armed())
        device.service()
        return device

    def both_good() -> Device:
        """V2 runs confirmed on B, V1 is good on A."""
        device = on_trial()
        device.confirm()
        return device

    def written() -> Device:
        device = running()
        device.flash(V2, activate=False)
        device = reboot(device)
        device.service()
        return device

    def fallen_back() -> Device:
        device = armed()
        for _ in range(4):
            device = reboot(device, reset="watchdog")
        return device

    def destroyed() -> Device:
        device = both_good()
        device.media.slots["B"].sectors[0] = b"mold"
        return power_up(device.media, folder, frozenset("A"))

    def torn_store(first: Callable[[], Device]) -> Callable[[], Device]:
        def prepare() -> Device:
            device = reboot(first())
            device.service()
            for number in range(4):
                device.media.env.sectors[number] = b"\xff" * 512
            return power_up(device.media, folder)

        return prepare

    def forgetful() -> Device:
        """One block of slot B never keeps what is written to it, and no write fails."""
        device = running()
        device.media.slots["B"].deaf = frozenset({2})
        return device

    def started() -> Device:
        return reboot(both_good())

    return (
        Scenario("flash, fresh board", factory, lambda d: d.flash(V2), _flashed("B", "2.0"), FACTORY),
        Scenario("flash, both slots good", both_good, lambda d: d.flash(V3), _flashed("A", "3.0"), BOTH),
        Scenario("flash --no-activate", running, lambda d: d.flash(V2, activate=False), _same, FACTORY),
        Scenario("flash over a written slot", written, lambda d: d.flash(V3), _flashed("B", "3.0"), FACTORY),
        Scenario("flash, medium loses a block", forgetful, lambda d: d.flash(V2), _refused, FACTORY),
        Scenario("activate", written, Device.activate, _flashed("B", "2.0"), FACTORY),
        Scenario("confirm", on_trial, Device.confirm, _confirmed, FACTORY, confirms=frozenset({("B", "2.0")}), reverts=frozenset("B")),
        Scenario("revert, armed", armed, Device.revert, _back_on_a, FACTORY, reverts=frozenset("B")),
        Scenario("revert, on trial", on_trial, Device.revert, _back_on_a, FACTORY, reverts=frozenset("B")),
        Scenario("revert, steady", _below_no_floor(both_good), Device.revert, _switched, BOTH, reverts=frozenset("B"), needed=_on_b),
        Scenario("service, after a fallback", fallen_back, _nothing, _cleaned_up, FACTORY, reverts=frozenset("B"), starts=True),
        Scenario("service, confirmed slot destroyed", destroyed, _nothing, _fell_through, BOTH, reverts=frozenset("B"), starts=True),
        Scenario("service, store torn on A", torn_store(running), _nothing, _rebuilt, FACTORY, starts=True, blind=True),
        Scenario("service, store torn on B", torn_store(both_good), _nothing, _rebuilt, BOTH, starts=True, blind=True),
        Scenario("service, boots refilled", started, _nothing, _same, BOTH, starts=True),
    )


def _nothing(device: Device) -> None:
    return


def _on_b(device: Device) -> bool:
    return device.boot.slot == "B"


def _below_no_floor(first: Callable[[], Device]) -> Callable[[], Device]:
    """As `first`, with the same security counter on both slots, so that going back is allowed."""

    def prepare() -> Device:
        device = first()
        board = device.board()
        record, _ = board.state.load()
        assert record is not None
        board.state.save(replace(record, slots={**record.slots, "A": replace(record.slots["B"], version="1.0", bundle=V1.bundle)}))
        return device

    return prepare


def _differs(device: Device, uncut: Device, *, counters: bool = True, reasons: bool = True) -> str:
    have, want = (summary(each, counters=counters, reasons=reasons) for each in (device, uncut))
    return "" if have == want else f"ends in {have}, an uncut run in {want}"


def _same(device: Device, code: int, uncut: Device) -> str:
    return f"exit {code} is not 0" if code else _differs(device, uncut, counters=device.boot.settled)


def _flashed(target: str, version: str) -> Callable[[Device, int, Device], str]:
    def goal(device: Device, code: int, uncut: Device) -> str:
        facts = device.facts()
        assert facts.boot is not None
        if device.boot.slot == target:
            found = slot_content(device.media, target)
            whole = found is not None and found.version == version and facts.boot.trial == target
            return "" if code == 5 and whole else f"exit {code} on slot {target}, which runs on trial"
        if code not in (0, 5):
            return "not flashed"
        if code == 5:
            # Killed after arming: the record may still say "written", the boot store decides.
            last = facts.record.attempt if facts.record else None
            armed = machine.situation(facts) is Situation.ARMED and last is not None and last.phase in (Phase.WRITTEN, Phase.ARMED)
            return "" if armed and facts.boot.order[0] == target else "busy without a trial"
        return _differs(device, uncut, counters=device.boot.settled)

    return goal


def _refused(device: Device, code: int, uncut: Device) -> str:
    boot = device.facts().boot
    return "" if code == 1 and boot is not None and not boot.trial and "B" not in boot.order else f"exit {code}, {boot}"


def _confirmed(device: Device, code: int, uncut: Device) -> str:
    if code not in (0, 4):
        return "not confirmed"
    if device.boot.slot == "A":
        # Cuts alone used up its tries.
        attempt = device.facts().record
        fair = attempt is not None and attempt.attempt is not None and attempt.attempt.reason == "tries exhausted"
        return "" if fair and code == 4 and states(device)["B"] is SlotState.BAD else "slot A runs"
    return _differs(device, uncut, counters=device.boot.settled)


def _back_on_a(device: Device, code: int, uncut: Device) -> str:
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


def _switched(device: Device, code: int, uncut: Device) -> str:
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


def _cleaned_up(device: Device, code: int, uncut: Device) -> str:
    record, wanted = device.facts().record, uncut.facts().record
    assert wanted is not None
    assert wanted.attempt is not None
    # That the watchdog had fired is known in the boot after it alone: cut before it is recorded, the counter is all that tells.
    reasons = (wanted.attempt.reason, "tries exhausted")
    if record is None or record.attempt is None or record.attempt.reason not in reasons:
        return f"the reason is lost: {record}"
    return _differs(device, uncut, reasons=False)


def _fell_through(device: Device, code: int, uncut: Device) -> str:
    return _differs(device, uncut)


def _rebuilt(device: Device, code: int, uncut: Device) -> str:
    facts = device.facts()
    if facts.boot is None or facts.boot.order != (device.boot.slot,):
        return f"the store is not rebuilt: {facts.boot}"
    return _differs(device, uncut)
