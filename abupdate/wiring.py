"""Settings to adapters: the one place that names concrete classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

from abupdate import __version__
from abupdate.bootwiring import bootloader, check_traits
from abupdate.config import Settings, check_private, check_secret
from abupdate.devices.statedir import KEYRING, StateDir
from abupdate.devices.thisboot import RUNTIME, LinuxBoot
from abupdate.errors import AbupdateError, ConfigError, Refused
from abupdate.log import log
from abupdate.model import Sealing, SlotRecord, SlotState, TrialPolicy
from abupdate.operations.board import Board
from abupdate.operations.outside import OutsideFloor
from abupdate.ports import Bootloader

# The file in Settings.fleet_dir that makes the device a member of a site.
MEMBERSHIP = "membership"

if TYPE_CHECKING:
    from abupdate.fleetsettings import FleetSettings
    from abupdate.formats.bundle import Envelope, Open, Signed
    from abupdate.formats.contentkey import ContentKey, Identity
    from abupdate.health.peers import Peers
    from abupdate.health.results import CheckResult
    from abupdate.operations.keyring import Trust
    from abupdate.transfer.slots import DeviceSlots


def outside_floor(settings: Settings) -> OutsideFloor | None:
    """The floor's copy in a TPM where one is configured; nothing is asked of it yet."""
    if not settings.floor.tpm_nv:
        return None
    from abupdate.devices.tpm import TpmFloor

    # The service pets a watchdog between two calls.
    patience_s = min(8.0, settings.watchdog.timeout_s / 3)
    return OutsideFloor(TpmFloor(settings.floor.tpm_nv, settings.floor.tpm_tcti, patience_s))


def board(
    settings: Settings,
    *,
    tolerant: bool = False,
    devices: bool = True,
    present: bool = True,
    outside: bool = False,
    writing: bool = False,
    petting: bool = False,
) -> Board:
    """The device as the verbs see it. devices: check the slots' devices and state_dir too; present: all of them must be there.
    outside: also ask the floor's copy in a TPM. writing: a slot is to be written, so that nothing else may lie on it. petting: as in
    `bootloader`.

    Raises ConfigError.
    """
    if devices:
        check_devices(settings, present=present)
    _check_state(settings)
    store, tears = bootloader(settings, petting=petting)
    if writing:
        check_apart(settings, store)
    check_traits(settings, store.traits)
    believed = None if settings.device.booted == "auto" else settings.device.booted
    places = {slot: tuple(part.images.values()) for slot, part in settings.slots.items()}
    trial = settings.trial
    return Board(
        slots=tuple(settings.slots),
        policy=TrialPolicy(trial.tries, trial.confirmed_tries, trial.boot_timeout_s),
        store=store,
        state=StateDir(settings.state_dir, RUNTIME / "lock" if tolerant else None),
        boot=LinuxBoot(places, settings.watchdog.device, believed),
        describe_head=describe_head,
        tears=tears,
        tolerant=tolerant,
        outside=outside_floor(settings) if outside else None,
    )


def check_devices(settings: Settings, *, present: bool = True) -> None:
    """One device for one image, and state_dir on none of them. present: every device must be there. Raises ConfigError."""
    from abupdate.devices import usage

    places = [(f"{slot}.{image}", path) for slot, part in settings.slots.items() for image, path in part.images.items()]
    seen: dict[object, str] = {}
    state = next(parent for parent in (settings.state_dir, *settings.state_dir.parents) if parent.exists())
    for name, path in places:
        if usage.is_to_be_made(path):
            # FAT knows no case: two names that differ in nothing else are one file there.
            folder = path.parent.stat()
            identity: object = (folder.st_dev, folder.st_ino, path.name.casefold())
            if identity in seen:
                raise ConfigError(f"{seen[identity]} and {name} are the same file ({path})", "every image needs a place of its own")
            seen[identity] = name
            continue
        if not present and not path.exists():
            continue
        identity = usage.identify(path)
        if identity in seen:
            raise ConfigError(f"{seen[identity]} and {name} are the same device ({path})", "every image needs a place of its own")
        seen[identity] = name
        if usage.lies_on(state, path):
            raise ConfigError(f"state_dir {settings.state_dir} lies on slot {name} ({path})", "put it on a partition that no update writes")


def check_apart(settings: Settings, store: Bootloader, *, present: bool = True) -> None:
    """Nothing lies on an image's place, under whatever name: no other image, nor the boot store. present: all of them must be there.

    Raises ConfigError.
    """
    from abupdate.devices import usage

    named = [(f"{slot}.{image}", path) for slot, part in settings.slots.items() for image, path in part.images.items()]
    places = [(name, path) for name, path in named if present or path.exists()]
    for (one, path), (other, place) in permutations(places, 2):
        if usage.covers(path, place):
            hint = "every image needs a place of its own"
            raise ConfigError(f"{other} ({place}) lies on {one} ({path})", hint)
    for place, start, end in store.places():
        if not present and not place.exists():
            continue
        if not usage.is_to_be_made(place) and not place.is_char_device():
            try:
                usage.identify(place)
            except ConfigError as error:
                raise ConfigError(f"the boot store's place {error.message}", "`abupdate doctor` says what is missing") from error
        for name, path in places:
            if usage.covers(path, place, start, end):
                raise ConfigError(f"the boot store on {place} lies on slot {name} ({path})", "no update may write over it")


def describe_head(head: bytes) -> SlotRecord | None:
    """What a stored bundle head says of its slot, None where it does not read. Its signatures are not looked at."""
    from abupdate.formats.bundle import parse_stored_head

    try:
        manifest = parse_stored_head(head).signed.manifest
    except AbupdateError:
        return None
    return SlotRecord(SlotState.CONFIRMED, manifest.version, manifest.bundle_id.hex(), manifest.security_counter)


def admission(settings: Settings) -> Open:
    """Opens a bundle's envelope as this device does before it writes anything: the keyring first walks the bundle's chain, durably,
    then signatures, then the manifest. The caller holds the lock. Raises ConfigError for a keyring that cannot be used.
    """
    from abupdate.operations import keyring as operation
    from abupdate.transfer.admission import Identity, admit

    state, rules = state_store(settings), trust(settings)
    # Before the source is opened: what is wrong with this device's keyring is no fault of the bundle.
    found = operation.observe(state, rules)
    if found.note:
        log.warning("%s", found.note)
    device = Identity(settings.compatible, settings.hardware_revision, __version__)
    return lambda envelope: admit(envelope, operation.advance(state, rules, envelope.chain).ring, device)


def recollection(settings: Settings) -> Open:
    """Opens the envelope of a stored head for reading only: nothing is kept, and a key that was revoked after the bundle had been
    written is no reason to say that the slot changed. Raises ConfigError as `admission` does.
    """
    from abupdate.formats.bundle import decode
    from abupdate.formats.trusted import by_anyone, open_with
    from abupdate.operations import keyring as operation

    ring = operation.observe(state_store(settings), trust(settings)).ring

    def remember(envelope: Envelope) -> Signed:
        try:
            return open_with(envelope, ring)
        except Refused as error:
            by_anyone(envelope)
            found = decode(envelope)
            log.warning("version %s would not be installed again: %s", found.manifest.version, error.message)
            return found

    return remember


def state_store(settings: Settings) -> StateDir:
    """`state_dir` as the verbs that need nothing else of the device use it. Raises ConfigError where others can write it."""
    _check_state(settings)
    return StateDir(settings.state_dir)


def _check_state(settings: Settings) -> None:
    """The folder, and in it whatever is believed. Raises ConfigError."""
    if not os.path.lexists(settings.state_dir):
        return
    check_private(settings.state_dir, "state_dir")
    if not os.path.isdir(settings.state_dir):  # noqa: PTH112 # pathlib's raises where the medium fails
        raise ConfigError(f"state_dir {settings.state_dir} is no folder", "name a folder on a partition that no update writes")
    for path in StateDir(settings.state_dir).believed(tuple(settings.slots)):
        # What is no file, or cannot be looked at, counts as lost by those who read it.
        if os.path.isfile(path):  # noqa: PTH113
            check_private(path, "keyring" if path.name == KEYRING else "file")


def trust(settings: Settings) -> Trust:
    """The slot's own keyring and the rules for newer ones. Raises ConfigError for a keyring that cannot be used, Refused for test keys."""
    from abupdate.formats import keyring as rings
    from abupdate.formats import rotation
    from abupdate.operations.keyring import Trust

    allowed = settings.trust.allow_test_keys

    try:
        factory = rings.parse(_read_keyring(settings.trust.keyring))
        rings.check_self_signed(factory)
    except Refused as error:
        raise ConfigError(f"keyring {settings.trust.keyring}: {error.message}", "put the factory keyring back in its place") from error
    return Trust(
        factory=factory,
        recall=lambda kept: rotation.recall(factory, kept),
        usable=lambda ring: rings.check_test_keys(ring, allowed),
        advance=lambda current, kept, chain: rotation.advance(factory, current, kept, chain, allow_test_keys=allowed),
    )


def unsealing(settings: Settings) -> Callable[[Sealing], ContentKey]:
    """Opens sealed bundles with this device's keys, which are read when the first such bundle is met.

    Raises ConfigError at once for a key file that others can read or change. One that is not there, or is no key, is an error
    only where a sealed bundle is to be opened: a device that lost its key must still take the bundle that mends it.
    """
    for path in settings.encryption.keys:
        if os.access(path, os.F_OK):
            check_secret(path, "key")

    def unseal(sealing: Sealing) -> ContentKey:
        from abupdate.formats import contentkey

        return contentkey.unseal(sealing, identities(settings))

    return unseal


def identities(settings: Settings) -> tuple[Identity, ...]:
    """This device's keys for sealed bundles. Raises ConfigError for a file that is not such a key, or that others can read."""
    from abupdate.formats import contentkey, keyfile

    found = []
    for path in settings.encryption.keys:
        check_secret(path, "key")
        try:
            with path.open("rb") as file:
                data = file.read(keyfile.MAX_BYTES)
        except OSError as error:
            raise ConfigError(f"key {path} cannot be read: {error.strerror}", "[encryption] keys names it") from error
        identity = contentkey.parse_identity(data, f"key {path}")
        if identity.test and not settings.trust.allow_test_keys:
            raise ConfigError(f"key {path} is a test key, which everybody has", "make one of its own, or set trust.allow_test_keys = true")
        found.append(identity)
    return tuple(found)


def _read_keyring(path: Path) -> bytes:
    check_private(path, "keyring")
    try:
        with path.open("rb") as file:
            return file.read(1 << 20)
    except OSError as error:
        raise ConfigError(f"keyring {path} cannot be read: {error.strerror}", "[trust] keyring names it") from error


def contents(settings: Settings, max_rate: int | None = None, open_head: Open | None = None) -> DeviceSlots:
    """The slots' images on their devices. open_head: decides about stored heads, the recollection by default."""
    from abupdate.transfer.slots import DeviceSlots

    images = {slot: part.images for slot, part in settings.slots.items()}
    return DeviceSlots(images, max_rate, open_head=open_head or recollection(settings))


def peers(settings: Settings) -> Peers | None:
    """The health check that a member of a site has; None where this device is not enrolled in one, or where nothing tells."""
    if settings.fleet is None or not os.path.lexists(settings.fleet_dir / MEMBERSHIP):
        return None
    from abupdate.health.peers import GRACE_S, Peers

    # It must have spoken by the window's end.
    return Peers(fleet_health(), min(GRACE_S, settings.trial.window_s / 2))


def fleet_health() -> Path:
    """Where the fleet's daemon leaves its word on the peers for the health check."""
    return RUNTIME / "fleet-health"


def hook_results(fleet: FleetSettings, kind: str, timeout_s: int, said: bytes) -> Iterator[CheckResult]:
    """Run the programs of a kind of hook one after the other, in the order of their names; each one's word as it has ended.

    timeout_s: of each. said: for their standard input. Raises ConfigError for a program that others could have put there.
    """
    from abupdate.health.checks import CheckRun, run_once
    from abupdate.health.programs import find_programs

    for program in find_programs(fleet.hooks / kind):
        yield from run_once(CheckRun([program], timeout_s=timeout_s, said=said)).results


def tolerant(settings: Settings, *, service: bool = False) -> Board:
    """The board for confirm, revert and the service, which work with a missing spare slot and a record that cannot be written.

    The service also works where the data partition is missing, so that state_dir would lie on a slot, or where state_dir is not
    safe to use: the boot store alone decides then. Everybody else gets the ConfigError.
    """
    try:
        check_devices(settings, present=False)
        return board(settings, tolerant=True, devices=False, outside=True, petting=service)
    except ConfigError as error:
        if not service:
            raise
        # Raises once more where something else is wrong.
        found = board(replace(settings, state_dir=RUNTIME / "no-state"), tolerant=True, devices=False, outside=True, petting=True)
        log.warning("going on without state_dir: %s", error.message)
        return found
