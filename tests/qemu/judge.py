"""Looks at a disk of the emulated device without booting it: does it boot something whole, and is what it says so?

Applied, each to what lies on the disk: the real fw_printenv and the agent's own reader to the environment, the hook's decision to
what they found, the agent's verification to the slots that could boot or are called whole, e2fsck to the data partition, the agent's
reader to the record. What was seen before in the same bytes is not looked at twice.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from abupdate import machine
from abupdate.bootloaders.uboot import UBootStore
from abupdate.devices.statedir import StateDir
from abupdate.errors import AbupdateError, StoreUnreadable
from abupdate.formats import bundle as bundle_format
from abupdate.formats import keyring as rings
from abupdate.formats.bundle import Head
from abupdate.model import Phase, Record, SlotState, TrialPolicy
from abupdate.operations.board import Board, observe
from abupdate.transfer.verify import verify_image
from abupdate.wiring import describe_head
from qemu.powerloss import Medium
from tests.sim import uboot_hook_model as hook

SLOTS = ("A", "B")
PARTS = {slot: {image: f"{image}_{slot.lower()}" for image in ("rootfs", "boot")} for slot in SLOTS}
COPIES = (0, 0x80000)
COPY_BYTES = 0x4000
POLICY = TrialPolicy(3, 3, 20)
OLD, NEW = "v1", "v2"  # what slot A holds from the factory, and what the story flashes to B
_STEP = 1 << 16
_GOOD = (SlotState.WRITTEN, SlotState.TRIAL, SlotState.CONFIRMED)


class Stage(IntEnum):
    """What the guest had acknowledged, in words, when the power went."""

    FRESH = 0
    SETTLED = 1
    FLASHED = 2
    CONFIRMED = 3


@dataclass(frozen=True)
class Finding:
    """What a disk shows. faults: empty where all is as it must be. boots: slot that the hook starts next, None where no copy is valid.

    trial: it is on trial. state: of slot B, as the agent would report it.
    """

    faults: tuple[str, ...]
    boots: str | None = None
    trial: bool = False
    state: SlotState | None = None


@dataclass(frozen=True)
class PartitionTarget:
    """`ports.Target` for reading: a partition within a medium."""

    medium: Medium
    start: int
    size_bytes: int

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """See ports.Target."""
        return self.medium.read_into(buffer[: max(0, self.size_bytes - offset)], self.start + offset)

    def pwrite(self, buffer: memoryview, offset: int) -> None:
        """Nothing here is written."""
        raise NotImplementedError

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class Facts:
    """`ports.ThisBoot` of the boot that would come next."""

    slot: str
    boot_id: str = "the boot after the cut"
    settled: bool = False

    def mark_settled(self) -> None:
        """Nothing to remember."""

    def booted(self) -> str:
        """See ports.ThisBoot."""
        return self.slot

    def reset_reason(self) -> str:
        """A power cut leaves no word."""
        return ""

    def unsaved(self) -> bool:
        """See ports.ThisBoot."""
        return False

    def boottime_s(self) -> float:
        """See ports.ThisBoot."""
        return 0.0


@dataclass(frozen=True)
class _Environment:
    """What the environment says, each fault once. values: by fw_printenv, None where it finds no valid copy."""

    values: Mapping[str, str] | None
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Data:
    """What the data partition holds. folder: state_dir as it was found (perhaps absent)."""

    folder: Path
    faults: tuple[str, ...] = ()


@dataclass
class Judge:
    """Knows the device's disk and bundles. foreign: variables of others, which must stay as they are. scratch: a folder of its own."""

    image: Path
    bundles: Mapping[str, Path]
    keyring: Path
    foreign: Mapping[str, str]
    scratch: Path
    _seen: dict[Hashable, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scratch.mkdir(parents=True, exist_ok=True)
        table = json.loads(_output("sfdisk", "-J", str(self.image)))["partitiontable"]
        self._places = {row["name"]: (row["start"] * 512, row["size"] * 512) for row in table["partitions"]}
        ring = rings.parse(self.keyring.read_bytes())
        rings.check_self_signed(ring)
        self._heads: dict[str, Head] = {}
        for version, path in self.bundles.items():
            with path.open("rb") as file:
                head = bundle_format.read_head(file.read, path.stat().st_size)
            signed = head.signed
            rings.check_bundle(signed.manifest, signed.manifest_bytes, signed.signatures, ring)
            self._heads[version] = head
        start, size = self._places["data"]
        with self.image.open("rb") as file:
            file.seek(start)
            pieces = ((offset, file.read(_STEP)) for offset in range(0, size, _STEP))
            self._data_steps = {offset for offset, piece in pieces if any(piece)}
        self._config = self.scratch / "fw_env.config"
        self._env_file = self.scratch / "env"
        self._config.write_text("".join(f"{self._env_file} {offset:#x} {COPY_BYTES:#x}\n" for offset in COPIES))

    def judge(self, medium: Medium, stage: Stage) -> Finding:
        """Look at everything; stage: what the guest had acknowledged before."""
        environment = self._environment(medium)
        data = self._data(medium)
        faults = [*environment.faults, *data.faults]
        state = StateDir(data.folder)
        record, _ = state.load()
        faults += self._record_faults(record, data.folder, stage)
        if environment.values is None:
            return Finding((*faults, "no copy of the environment is valid"))
        decision = hook.boot(environment.values)
        faults += self._boot_faults(medium, environment.values, decision)
        faults += self._heads_faults(record, state)
        if decision.slot is None:
            return Finding((*faults, "the hook starts no slot"))
        states = self._reported(state, decision.slot)
        if isinstance(states, str):
            return Finding((*faults, states), decision.slot, decision.trial)
        claimed = {slot for slot, said in states.items() if said in _GOOD}
        if record is not None:
            claimed |= {slot for slot, known in record.slots.items() if known.state in _GOOD}
            if record.attempt is not None and record.attempt.phase in (Phase.WRITTEN, Phase.ARMED, Phase.CONFIRMED):
                claimed.add(record.attempt.slot)
        faults += [f"slot {slot} is called whole and is not: {why}" for slot in sorted(claimed) if (why := self._differs(medium, slot))]
        faults += self._stage_faults(environment.values, decision, states, record, stage)
        return Finding(tuple(dict.fromkeys(faults)), decision.slot, decision.trial, states["B"])

    # ---- environment and hook

    def environment_lost(self, medium: Medium) -> bool:
        """Whether no copy of the environment is valid."""
        return self._environment(medium).values is None

    def _environment(self, medium: Medium) -> _Environment:
        start, _ = self._places["env"]
        copies = tuple(medium.read(start + offset, COPY_BYTES) for offset in COPIES)
        key = ("env", hashlib.sha256(b"".join(copies)).digest())
        with self._env_file.open("wb") as file:
            for offset, copy in zip(COPIES, copies, strict=True):
                file.seek(offset)
                file.write(copy)
        found = self._seen.get(key)
        if not isinstance(found, _Environment):
            found = self._seen[key] = self._read_environment()
        return found

    def _read_environment(self) -> _Environment:
        printed = subprocess.run(["fw_printenv", "-c", self._config], capture_output=True, text=True, errors="surrogateescape", check=False)
        values = dict(line.partition("=")[::2] for line in printed.stdout.splitlines()) if printed.returncode == 0 else None
        try:
            said = self._store().read()
        except StoreUnreadable:
            return _Environment(values, () if values is None else ("the agent cannot read the environment, fw_printenv can",))
        if values is None:
            return _Environment(None, (f"fw_printenv cannot read the environment, the agent can: {printed.stderr.strip()}",))
        faults = [f"variable {name} of somebody else was changed" for name in self.foreign if values.get(name) != self.foreign[name]]
        shown = (tuple(values.get("BOOT_ORDER", "").split()), values.get("BOOT_TRIAL"))
        if shown != (said.order, said.trial):
            faults.append(f"fw_printenv shows {shown}, the agent {(said.order, said.trial)}")
        return _Environment(values, tuple(faults))

    def _store(self) -> UBootStore:
        return UBootStore(self._config, SLOTS, lock_path=self.scratch / "lock", default_environment=self.scratch / "none")

    def _boot_faults(self, medium: Medium, values: Mapping[str, str], decision: hook.HookBoot) -> Iterator[str]:
        """Whatever could boot is whole, not only what boots next; the slot that ran from the factory on is never lost."""
        could = {
            slot for slot in values.get("BOOT_ORDER", "").split() if slot in SLOTS and hook.number(values.get(f"BOOT_{slot}_LEFT", "0"))
        }
        for slot in sorted(could | {decision.slot or "A"}):
            if why := self._differs(medium, slot):
                yield f"slot {slot} can boot and is not whole: {why}"
        if "A" not in could:
            yield "slot A, good from the factory, has no boots left"
        elif why := self._differs(medium, "A"):
            yield f"slot A, good from the factory, is damaged: {why}"

    def _differs(self, medium: Medium, slot: str) -> str:
        """Empty, or why the slot is not what its signed tables say."""
        head = self._heads[OLD if slot == "A" else NEW]
        for image in head.signed.manifest.images:
            start, size = self._places[PARTS[slot][image.name]]
            key = (slot, image.name, medium.stamp(start, size))
            if key not in self._seen:
                try:
                    verify_image(image, head.tables.chunks(image.name), PartitionTarget(medium, start, size), lambda done: None)
                    self._seen[key] = ""
                except AbupdateError as error:
                    self._seen[key] = error.message
            if why := self._seen[key]:
                return str(why)
        return ""

    # ---- data partition and record

    def _data(self, medium: Medium) -> _Data:
        start, size = self._places["data"]
        key = ("data", medium.stamp(start, size))
        found = self._seen.get(key)
        if not isinstance(found, _Data):
            folder = Path(tempfile.mkdtemp(prefix="data-", dir=self.scratch))
            found = self._seen[key] = self._read_data(medium, folder)
        return found

    def _read_data(self, medium: Medium, folder: Path) -> _Data:
        start, size = self._places["data"]
        partition = folder / "data.img"
        with partition.open("wb") as file:
            file.truncate(size)
            for offset in self._data_steps | {at - start for low, length in medium.written() for at in range(low, low + length, _STEP)}:
                if 0 <= offset < size and any(piece := medium.read(start + offset, _STEP)):
                    file.seek(offset)
                    file.write(piece)
        faults: list[str] = []
        replayed = subprocess.run(["e2fsck", "-p", partition], capture_output=True, text=True, check=False)
        if replayed.returncode != 0:  # the journal alone must do
            faults.append(f"e2fsck -p ended with {replayed.returncode}: {replayed.stdout.strip()[-300:]}")
        checked = subprocess.run(["e2fsck", "-fn", partition], capture_output=True, text=True, check=False)
        if checked.returncode != 0:
            faults.append(f"the data partition is not clean after the replay of its journal: {checked.stdout.strip()[-300:]}")
        subprocess.run(["debugfs", "-R", f"rdump /abupdate {folder}", partition], capture_output=True, check=False)
        partition.unlink()
        return _Data(folder / "abupdate", tuple(faults))

    def _record_faults(self, record: Record | None, folder: Path, stage: Stage) -> Iterator[str]:
        copies = [path for path in (folder / "record.0", folder / "record.1") if path.exists()]
        if record is None and copies:
            yield f"the record is lost: {[condition for _, condition in StateDir(folder).copies()]}"
        elif record is None and stage >= Stage.SETTLED:
            yield "the record that the service had written is not there"

    def _heads_faults(self, record: Record | None, state: StateDir) -> Iterator[str]:
        """The manifest is kept before the record speaks of the slot."""
        known = record.slots.get("B") if record else None
        if known is None or known.state is SlotState.EMPTY:
            return
        head = self._heads[NEW]
        if known.bundle != head.signed.manifest.bundle_id.hex():
            yield f"the record calls slot B {known.version}, bundle {known.bundle[:8]}"
        elif state.load_head("B") != head.kept:
            yield "the record speaks of slot B, and the manifest that was kept is not the bundle's"

    # ---- what the agent would say, and what it has said

    def _reported(self, state: StateDir, booted: str) -> Mapping[str, SlotState] | str:
        """The states as `status` would report them, or a fault."""
        board = Board(SLOTS, POLICY, self._store(), state, Facts(booted), describe_head)
        try:
            facts = observe(board)
            machine.settle(facts)
            return machine.slot_states(facts)
        except AbupdateError as error:
            return f"the agent would fail: {error.message}"

    def _stage_faults(
        self, values: Mapping[str, str], decision: hook.HookBoot, states: Mapping[str, SlotState], record: Record | None, stage: Stage
    ) -> Iterable[str]:
        """What was acknowledged is so."""
        faults: list[str] = []
        phase = record.attempt.phase if record and record.attempt else None
        if stage >= Stage.FLASHED:
            if decision.slot != "B":
                faults.append(f"flash had said that slot B boots next, slot {decision.slot} does")
            if phase not in (Phase.ARMED, Phase.CONFIRMED):
                faults.append(f"flash had said done, the record says {phase.value if phase else 'nothing'}")
        if stage >= Stage.CONFIRMED:
            if decision.trial or "BOOT_TRIAL" in values or states["B"] is not SlotState.CONFIRMED:
                faults.append(f"confirm had said done, slot B is {states['B'].value}")
            floor = self._heads[NEW].signed.manifest.security_counter
            if record is None or (phase, record.floor) != (Phase.CONFIRMED, floor):
                faults.append(f"confirm had said done, the record says {phase.value if phase else 'nothing'}")
        return faults

    def forget(self) -> None:
        """Drop what was seen of the data partition, which takes room."""
        for key in [key for key, found in self._seen.items() if isinstance(found, _Data)]:
            found = self._seen.pop(key)
            if isinstance(found, _Data):
                shutil.rmtree(found.folder.parent, ignore_errors=True)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
