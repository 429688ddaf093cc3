"""Handlers of the verbs that act on this device's slots; what is costly to import is imported by the verb that needs it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from abupdate import wiring
from abupdate.cli import member
from abupdate.cli.output import say
from abupdate.config import Settings, load
from abupdate.errors import ConfigError, NothingToDo, Refused
from abupdate.model import Manifest

if TYPE_CHECKING:
    from abupdate.operations.flash import Outcome


def status(options: Namespace) -> int:
    """`abupdate status`."""
    from abupdate.operations.status import status as observe_status

    settings = load(options.config)
    board = wiring.board(settings, present=False)
    images = {slot: part.images for slot, part in settings.slots.items()}
    document = observe_status(board, settings.compatible, images, settings.trial.window_s)
    say(options, document, _table(document))
    return 0


def _table(document: dict[str, object]) -> str:
    slots, trial, attempt = document["slots"], document["trial"], document["attempt"]
    assert isinstance(slots, dict)
    following = f"slot {document['primary']} boots next" if document["primary"] is not None else "no slot boots next: see `abupdate doctor`"
    lines = [f"{document['compatible']}: slot {document['booted']} runs, {following}"]
    for name, slot in slots.items():
        version = f"version {slot['version']}" if slot["version"] else "version unknown"
        text = "nothing" if slot["state"] == "empty" else version
        lines.append(f"  {name}  {slot['state']:<9}  {text}" + (f"  ({slot['bundle'][:12]})" if slot["bundle"] else ""))
    if isinstance(trial, dict):
        window = f", {trial['deadline_s']:.0f} s until the window ends" if trial["deadline_s"] is not None else ""
        lines.append(f"trial of slot {trial['slot']}: {trial['tries_left']} tries left{window}")
    if isinstance(attempt, dict):
        why = f": {attempt['reason']}" if attempt["reason"] else ""
        version = f" (version {attempt['version']})" if attempt["version"] else ""
        lease = f" under lease {attempt['lease']}" if attempt["lease"] is not None else ""
        lines.append(f"last attempt: slot {attempt['slot']}{version} {attempt['phase']}{lease}{why}")
    if document["note"]:
        lines.append(str(document["note"]))
    return "\n".join(lines)


def flash(options: Namespace) -> int:
    """`abupdate flash SOURCE`."""
    from abupdate.cli.progress import progress
    from abupdate.operations import flash as operation
    from abupdate.operations.standing import standing
    from abupdate.transfer.slots import Bundle
    from abupdate.transfer.sources import open_source

    settings = load(options.config)
    member.check_wait(options)
    if options.no_activate and options.fleet:
        raise ConfigError("--fleet is there to activate the slot", "leave out one of --fleet and --no-activate")
    if not options.no_activate:
        member.check(settings, options, "an update")
    board = wiring.board(settings, outside=True, writing=True)
    admit = wiring.admission(settings)
    contents = wiring.contents(settings, options.max_rate, admit)
    unseal = wiring.unsealing(settings)
    with open_source(options.source) as source:

        def open_bundle() -> Bundle:
            bundle = Bundle(source, admit, unseal)
            found = bundle.manifest.bundle_id
            if options.bundle not in (None, found.hex()):
                raise Refused(f"this is bundle {found.hex()[:12]}, and {options.bundle[:12]} is wanted", "is it the right source?")
            if options.fleet and standing(board).written == found:
                raise _WrittenAlready("the slot holds this bundle already")
            return bundle

        report = progress(options.progress, quiet=options.quiet)
        under_way = operation.leaving(board) if options.fleet else None
        try:
            # Asked for once more on the way down: the trial that is pending is the one that is wanted.
            if under_way is not None and open_bundle().manifest.bundle_id.hex() == under_way.bundle:
                return _through_fleet(options, settings, under_way)
            done = operation.flash(board, contents, open_bundle, report, activate=not (options.no_activate or options.fleet))
        except _WrittenAlready:
            done = operation.written(board)
    if options.fleet:
        return _through_fleet(options, settings, done)
    document = {"slot": done.slot, "version": done.version, "bundle": done.bundle, "armed": done.armed, "reboot_needed": done.armed}
    after = "reboot needed: it boots next, on trial" if done.armed else "not activated: `abupdate activate` lets it boot"
    with _then_reboot(settings, wanted=options.reboot and done.armed):
        say(options, document, f"version {done.version} is written to slot {done.slot} and verified; {after}")
    return 0


class _WrittenAlready(NothingToDo):
    """Not to be written again before the fleet is asked."""


def _through_fleet(options: Namespace, settings: Settings, done: Outcome) -> int:
    """The slot is written: wait for the lease. Going down is the daemon's then."""
    lease = member.ask_for_slot(settings, done.bundle, options.wait or 0)
    document = {"slot": done.slot, "version": done.version, "bundle": done.bundle, "armed": done.armed, "reboot_needed": False}
    document["lease"] = lease
    say(options, document, f"version {done.version} is on slot {done.slot}; under lease {lease} this device goes down for it now")
    return 0


def activate(options: Namespace) -> int:
    """`abupdate activate [SLOT]`."""
    from abupdate.cli.progress import progress
    from abupdate.formats.bundle import parse_stored_head
    from abupdate.operations import flash as operation

    settings = load(options.config)
    member.check_wait(options)
    member.check(settings, options, "an update")
    board = wiring.board(settings, outside=True)
    if options.fleet:
        return _through_fleet(options, settings, operation.written(board))
    admit = wiring.admission(settings)

    def check_head(head: bytes) -> Manifest:
        return parse_stored_head(head, admit).signed.manifest

    report = progress(options.progress, quiet=options.quiet)
    done = operation.activate(board, wiring.contents(settings, open_head=admit), check_head, options.slot, report)
    document = {"slot": done.slot, "version": done.version, "bundle": done.bundle, "armed": True, "reboot_needed": True}
    say(options, document, f"slot {done.slot} (version {done.version}) boots next, on trial: reboot needed")
    return 0


def confirm(options: Namespace) -> int:
    """`abupdate confirm`."""
    from abupdate.operations import verdict

    done = verdict.confirm(wiring.tolerant(load(options.config)))
    say(options, {"slot": done.slot, "version": done.version, "confirmed": True}, f"slot {done.slot} is confirmed")
    return 0


def revert(options: Namespace) -> int:
    """`abupdate revert`."""
    from abupdate.operations import verdict
    from abupdate.operations.standing import standing

    settings = load(options.config)
    board = wiring.tolerant(settings)
    # The end of a trial waits for nobody: this device holds its lease.
    if options.reboot and settings.fleet is not None and not standing(board).trial:
        member.check(settings, options, "a reboot into the other slot")
    done = verdict.revert(board, "ordered by the operator")
    after = "reboot needed" if done.reboot_needed else "it goes on running"
    document = {"slot": done.slot, "version": done.version, "reboot_needed": done.reboot_needed}
    with _then_reboot(settings, wanted=options.reboot and done.reboot_needed):
        say(options, document, f"slot {done.slot} boots next; {after}")
    return 0


def verify(options: Namespace) -> int:
    """`abupdate verify [SLOT]`."""
    from abupdate.cli.progress import progress
    from abupdate.devices.usage import is_mounted_rw
    from abupdate.operations import verify as operation

    settings = load(options.config)
    board = wiring.board(settings, present=False)
    report = progress(options.progress, quiet=options.quiet)

    def writable(slot: str) -> bool:
        return any(is_mounted_rw(path) for path in settings.slots[slot].images.values())

    done = operation.verify(board, wiring.contents(settings), options.slot, writable, report)
    document = {"slots": {one.slot: {"version": one.version, "bundle": one.bundle, "verified": True} for one in done}}
    say(options, document, "\n".join(f"slot {one.slot} holds version {one.version}, unchanged" for one in done))
    return 0


@contextmanager
def _then_reboot(settings: Settings, *, wanted: bool) -> Iterator[None]:
    """Order the reboot that was asked for, also where nobody listens to what is said before it."""
    try:
        yield
    finally:
        if wanted:
            from abupdate.cli.reboot import go_down

            go_down(settings)
