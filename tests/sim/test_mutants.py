"""Seeded bugs in a copy of the package: the crash simulator must find each one, in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """old occurs exactly once in `file`; `scenario` is where the simulator must notice that it reads `new`."""

    name: str
    file: str
    old: str
    new: str
    scenario: str
    place: str = "disk"


_WRITTEN = 'SaveRecord(written, f"slot {slot} is written and verified"),'
_STEP_3 = """        CommitBoot(_without(boot, slot, facts.booted, facts.policy), f"slot {slot} must not boot while it is written"),
"""
_ARM = '(CommitBoot(armed_state(facts, slot, verity), f"slot {slot} boots next, on trial"), SaveRecord(armed, f"slot {slot} is armed"))'
_CONFIRM = '(CommitBoot(state, f"slot {booted} is confirmed"), SaveRecord(record, f"slot {booted} is confirmed"))'
_FALLBACK = 'steps.append(CommitBoot(_without(boot, slot, facts.booted, facts.policy), f"take slot {slot} out after its fallback"))'
_NOR = """    area = loaded.areas[target]
    area.write(encode(environment, area.location.size_bytes, loaded.scheme, next_flag(old.flag, loaded.scheme)))
    if loaded.scheme is Scheme.BOOLEAN:
        loaded.areas[loaded.current].mark_obsolete()
"""
_NOR_FIRST = """    area = loaded.areas[target]
    if loaded.scheme is Scheme.BOOLEAN:
        area.mark_obsolete()
        area = loaded.areas[loaded.current]
    area.write(encode(environment, area.location.size_bytes, loaded.scheme, next_flag(old.flag, loaded.scheme)))
"""
_STORE, _IDENTITY, _FLEETLOG = "fleet/store.py", "fleet/identity.py", "formats/fleetlog.py"
_LOG_FIRST = """    create(folder, made.public_key, files, entropy)
    replace(folder / KEY, pem, files=files)
"""
_EFI = "bootloaders/efi.py"
_NEXT_FIRST = """        option = self._entries.wanted(seen, slot, state)
        if armed:
            self._variables.write("BootNext", efiboot.encode_order(seen.numbers(slot)[:1]))
"""
_CLEAN_FIRST = """        for slot in kept:
            self._mend(seen, slot, state)
"""
_ORDER_FIRST = "        self._write_order(kept)\n" + _CLEAN_FIRST
_STATEDIR, _DURABLE = "devices/statedir.py", "durable.py"

MUTANTS = (
    Mutant(
        "written before the write and its flush",
        "machine.py",
        f"        WriteSlot(slot),\n        ReadBack(slot),\n        {_WRITTEN}",
        f"        {_WRITTEN}\n        WriteSlot(slot),\n        ReadBack(slot),",
        "flash --no-activate",
    ),
    Mutant("step 3 dropped", "machine.py", _STEP_3, "", "flash, both slots good"),
    Mutant(
        "armed without read-back",
        "machine.py",
        "        ReadBack(slot),\n        SaveRecord(written",
        "        SaveRecord(written",
        "flash, medium loses a block",
    ),
    Mutant(
        "commit in two writes",
        "operations/board.py",
        "board.store.commit(step.state)",
        "board.store.commit(replace(step.state, trial=None)); board.store.commit(step.state)",
        "activate",
    ),
    Mutant("record before the store at arming", "machine.py", f"return {_ARM}", f"return {_ARM}[::-1]", "activate"),
    Mutant("no boot id before arming", "machine.py", "if written != facts.record:", "if False:", "activate"),
    Mutant("record before the store at confirm", "machine.py", f"return {_CONFIRM}", f"return {_CONFIRM}[::-1]", "confirm"),
    Mutant(
        "confirm takes the other good slot out",
        "machine.py",
        "    order = (booted, *(s for s in boot.order if s != booted))",
        "    order = (booted,)",
        "confirm",
    ),
    Mutant(
        "nothing to fall back to behind a trial",
        "machine.py",
        "or _full(facts)\n    rest = tuple(s for s in boot.order if s not in (slot, facts.booted))",
        "and 0\n    rest = tuple(s for s in boot.order if s not in (slot, facts.booted))",
        "activate",
    ),
    Mutant("store before the reason at a fallback", "machine.py", _FALLBACK, _FALLBACK.replace("append(", "insert(0, "), "service, after"),
    Mutant(
        "file not flushed", _DURABLE, "            files.fsync(descriptor)\n        finally", "            pass\n        finally", "confirm"
    ),
    Mutant("folder not flushed", _DURABLE, "raise\n    sync_folder(path.parent, files)", "raise", "confirm"),
    Mutant("folders not flushed after a kill", _STATEDIR, "            self._sync_names()\n", "", "revert, armed"),
    Mutant(
        "overwrites the copy that counts",
        "bootloaders/uboot.py",
        "target = 1 - loaded.current if len(loaded.areas) == 2 else 0",
        "target = loaded.current",
        "flash --no-activate",
    ),
    Mutant(
        "older copy counts", "formats/ubootenv.py", "return 1 if second > first else 0", "return 0 if second > first else 1", "activate"
    ),
    Mutant(
        "counts a fallback in the boot that armed it",
        "machine.py",
        '"this boot" if attempt.boot_id == facts.boot_id else "another boot"',
        '"another boot"',
        "activate",
    ),
    Mutant(
        "the chain is used before it is kept",
        "operations/keyring.py",
        "        state.save_keyring(step.data)\n",
        "",
        "flash that brings keyrings",
    ),
    Mutant(
        "TPM before the boot store", "machine.py", "(*steps, RaiseFloor(risen))", "(RaiseFloor(risen), *steps)", "confirm, floor in a TPM"
    ),
    Mutant(
        "TPM never made up for", "machine.py", "if facts.outside is not None and facts.outside < known:", "if False:", "service, TPM behind"
    ),
    Mutant(
        "a newer record is overwritten",
        _STATEDIR,
        "                self._keep_unknown(name)\n",
        "",
        "confirm, newer record beside",
    ),
    Mutant("old mark cleared first on NOR", "bootloaders/uboot.py", _NOR, _NOR_FIRST, "confirm", "nor"),
    Mutant(
        "a cut erase is never done again",
        "bootloaders/envflash.py",
        "        except MediumError:\n            # An erase",
        "        except ZeroDivisionError:\n            # An erase",
        "flash --no-activate",
        "nand",
    ),
    Mutant(
        "fleet log: appended without a flush",
        _STORE,
        "            self._files.fdatasync(descriptor)\n        except",
        "            pass\n        except",
        "fleet log, append",
    ),
    Mutant("fleet log: replaced without a flush", _STORE, "        files.fsync(descriptor)\n", "", "fleet log, replace"),
    Mutant("fleet log: new name not flushed", _STORE, "LOG)\n    sync_folder(folder, files)\n", "LOG)\n", "fleet log, replace"),
    Mutant(
        "fleet log: believed before it is flushed",
        _STORE,
        "        self._files.fdatasync(self._descriptor)\n        data",
        "        data",
        "fleet log, append",
    ),
    Mutant(
        "fleet log: names not flushed after a kill",
        _STORE,
        "            sync_folder(folder, self._files)\n        try:",
        "            pass\n        try:",
        "fleet log, replace twice",
    ),
    Mutant(
        "fleet log: torn end stays",
        _STORE,
        "            self._files.ftruncate(self._descriptor, contents.whole_bytes)\n",
        "",
        "fleet log, append much",
    ),
    Mutant(
        "fleet log: part of a cut counts as damage",
        _FLEETLOG,
        "found.first > end.sequence + 1",
        "found.sequence > end.sequence + 1",
        "fleet log, append much",
    ),
    Mutant("fleet log: a fault is told once", _STORE, "NONCE_BYTES), fault=self._fault)", "NONCE_BYTES))", "fleet log, lost"),
    Mutant(
        "fleet log: a lost one is begun anew",
        _STORE,
        'return self._go_on(Fault.LOST, (), "")',
        'return self._go_on(Fault.NONE, (), "")',
        "fleet log, lost",
    ),
    Mutant(
        "fleet key: before its log",
        _IDENTITY,
        _LOG_FIRST,
        "".join(reversed(_LOG_FIRST.splitlines(keepends=True))),
        "fleet log, first start",
    ),
    Mutant(
        "fleet key: given away before its log", _IDENTITY, "for name in (LOG, KEY):", "for name in (KEY, LOG):", "fleet log, enrolled anew"
    ),
    Mutant(
        "fleet key: not flushed when it is given away",
        _IDENTITY,
        "                sync_folder(folder, files)\n",
        "",
        "fleet log, enrolled anew",
    ),
    Mutant(
        "fleet key: names not flushed after a kill",
        _IDENTITY,
        "            sync_folder(above, files)\n",
        "            pass\n",
        "fleet key, shown",
    ),
    Mutant(
        "efi: BootNext before the entry that it names",
        _EFI,
        "        option = self._entries.wanted(seen, slot, state)\n",
        _NEXT_FIRST,
        "activate",
        "efi",
    ),
    Mutant("efi: BootOrder before the entry is clean", _EFI, _CLEAN_FIRST, _ORDER_FIRST, "confirm", "efi"),
    Mutant("efi: a slot on trial in BootOrder", _EFI, "if slot != state.trial and state.left.get", "if state.left.get", "activate", "efi"),
    Mutant("slot never flushed", "transfer/slots.py", "            target.flush()\n", "            pass\n", "flash, both slots good"),
)
# What the design names; the others run with everything.
_NAMED = frozenset(mutant.name for mutant in MUTANTS[:4])


def _params() -> list[object]:
    return [pytest.param(m, id=m.name, marks=() if m.name in _NAMED else pytest.mark.slow) for m in MUTANTS]


def _simulate(folder: Path, scenario: str, place: str = "disk") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "tests.sim", "--depth", "1", "--jobs", "1", "--few", "--place", place, scenario]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False)


def copy_package(folder: Path) -> None:
    """With the compiled files: Python takes one only where its source has the time and size that it was made from."""
    shutil.copytree(ROOT / "abupdate", folder / "abupdate")
    (folder / "tests").symlink_to(ROOT / "tests")


@pytest.mark.parametrize("mutant", _params())
def test_a_seeded_bug_is_found(mutant: Mutant, tmp_path: Path) -> None:
    copy_package(tmp_path)
    path = tmp_path / "abupdate" / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) == 1, "the code has changed: this mutant needs a new place"
    text = text.replace(mutant.old, mutant.new)
    if "replace(step" in mutant.new:
        text = text.replace("from dataclasses import dataclass, field", "from dataclasses import dataclass, field, replace")
    path.write_text(text)
    done = _simulate(tmp_path, mutant.scenario, mutant.place)
    assert f"# {tmp_path}/abupdate/__init__.py" in done.stdout
    assert "VIOLATION" in done.stdout, f"not found:\n{done.stdout}\n{done.stderr}"
    assert done.returncode == 1


def test_the_unchanged_code_passes_the_same_way(tmp_path: Path) -> None:
    copy_package(tmp_path)
    done = _simulate(tmp_path, "activate")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "VIOLATION" not in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" 0")
