"""The boot script for a U-Boot that saves by itself speaks of the same variables and defaults as boot.cmd, the store and the model."""

from __future__ import annotations

import re
from pathlib import Path

from abupdate.bootloaders.ubootvars import changed
from abupdate.formats.ubootenv import Environment
from abupdate.model import BootState, TrialPolicy

HOOKS = Path(__file__).resolve().parents[2] / "bootloader-hooks/uboot"
STATE = BootState(("B", "A"), {"A": 10, "B": 3}, "B", TrialPolicy(), floor=1, verity={"A": "0a", "B": "0b"})


def code(name: str) -> str:
    return "\n".join(line for line in (HOOKS / name).read_text().splitlines() if not line.strip().startswith("#"))


def test_every_variable_of_the_script_is_one_that_the_store_writes() -> None:
    written = {entry.split(b"=")[0].decode() for entry in changed(Environment(), STATE, ("A", "B")).entries}
    used = set(re.findall(r"\bBOOT_[A-Z]+(?:_LEFT|_VERITY)?\b", code("saveenv.cmd")))
    assert written - used == {"BOOT_TRIES", "BOOT_FLOOR"}
    assert used <= written


def test_defaults_are_those_of_boot_cmd() -> None:
    def defaults(text: str) -> dict[str, str]:
        return dict(re.findall(r"\$\{(BOOT_\w+):-([^}]+)\}", text))

    assert defaults(code("saveenv.cmd")).items() >= defaults(code("boot.cmd")).items()
    assert defaults(code("saveenv.cmd"))["BOOT_BUDGET"] == f"{TrialPolicy().budget:x}"


def test_what_the_script_makes_in_the_environment_is_deleted_before_it_is_saved() -> None:
    text = code("saveenv.cmd")
    made = set(re.findall(r"\bsetexpr(?:\.\w)? (\w+)", text)) | set(re.findall(r"\bsetenv (\w+) [^;\s]", text))
    kept = {"BOOT_A_LEFT", "BOOT_B_LEFT"}
    deleted = set(re.findall(r"\bsetenv (abu_\w+) *(?:;|$)", text, re.MULTILINE)) | {"bootargs"}
    assert made == deleted | kept
    assert "env import -d -b ${abu_keep} ${abu_size} bootargs" in text
