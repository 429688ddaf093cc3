"""The U-Boot hook and the store speak of the same variables, and the hook's defaults are the policy's."""

from __future__ import annotations

import re
from pathlib import Path

from abupdate.bootloaders.ubootvars import changed, state_of
from abupdate.formats.ubootenv import Environment
from abupdate.model import BootState, TrialPolicy
from tests.sim import uboot_hook_model

HOOK = (Path(__file__).resolve().parents[2] / "bootloader-hooks" / "uboot" / "boot.cmd").read_text()
CODE = "\n".join(line for line in HOOK.splitlines() if not line.startswith("#"))
STATE = BootState(("B", "A"), {"A": 10, "B": 3}, "B", TrialPolicy(), floor=1, verity={"A": "0a", "B": "0b"})


def test_every_variable_of_the_hook_is_one_that_the_store_writes() -> None:
    written = {entry.split(b"=")[0].decode() for entry in changed(Environment(), STATE, ("A", "B")).entries}
    used = set(re.findall(r"\bBOOT_[A-Z]+(?:_LEFT|_VERITY)?\b", CODE))
    assert used <= written
    # BOOT_TRIES is in LEFT already when the hook sees it; the floor is none of its business.
    assert written - used == {"BOOT_TRIES", "BOOT_FLOOR"}


def test_defaults_are_the_policy_s() -> None:
    assert f"${{BOOT_BUDGET:-{TrialPolicy().budget:x}}}" in CODE
    assert f"${{BOOT_TIMEOUT:-{TrialPolicy().boot_timeout_s:x}}}" in CODE
    assert '"${BOOT_ORDER:-A B}"' in CODE


def test_a_store_that_is_fresh_to_the_agent_is_not_counted() -> None:
    assert state_of(Environment((b"foreign=1",)), ("A", "B")).fresh
    assert uboot_hook_model.boot({"foreign": "1"}).writes == 0
