"""Agent and boot script mean the same by the variables that they share: names, numbers, order, trial, what is fresh."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abupdate.bootloaders.ubootvars import changed, state_of
from abupdate.formats.ubootenv import Environment
from abupdate.model import BootState, TrialPolicy
from tests.contract.ubootdialects import OnMender, OnSWUpdate, Rauc
from tests.sim import uboot_hook_model

SLOTS = ("A", "B")
SCRIPT = Path(__file__).resolve().parents[2] / "bootloader-hooks/uboot/boot.cmd"
# For people and for the agent alone; the boot script has no use for them.
AGENT_ONLY = {"BOOT_TRIES", "BOOT_FLOOR"}

words = st.sampled_from(["A", "B", "C", "AB", "a"])
numbers = st.sampled_from(["0", "1", "a", "00a", "0x3", "3x", "x", "-1", "ff", "100", "100000000", "1ffffffff", "0x", "0xg"]) | st.text(
    "0123456789abcdefxX -", max_size=12
)


def test_every_name_that_is_written_is_read_by_the_boot_script() -> None:
    state = BootState(SLOTS, {"A": 1, "B": 1}, "B", TrialPolicy(), 1, verity=dict.fromkeys(SLOTS, "5a" * 32))
    written = {entry.partition(b"=")[0].decode() for entry in changed(Environment(), state, SLOTS).entries}
    read = set(re.findall(r"\bBOOT_[A-Z_]+\b", "\n".join(line for line in SCRIPT.read_text().splitlines() if not line.startswith("#"))))
    assert written - AGENT_ONLY == read - AGENT_ONLY
    assert written >= AGENT_ONLY


@pytest.mark.parametrize("subject", [Rauc, OnMender, OnSWUpdate])
def test_every_variable_of_another_script_is_one_that_ours_after_its_pattern_has(
    subject: type[Rauc | OnMender | OnSWUpdate], tmp_path: Path
) -> None:
    made = subject(tmp_path)
    store = made.store()
    before = made.values()
    store.commit(BootState(("B", "A"), {"A": 1, "B": 1}, "B", TrialPolicy(1, 0, 90), 1))
    written = {name for name, value in made.values().items() if before.get(name) != value}
    script = (SCRIPT.parent / f"{made.dialect.name}.cmd").read_text()
    code = "\n".join(line for line in script.splitlines() if not line.startswith("#")).replace("rootfs_copy", "rootfs")
    read = set(re.findall(r"\b(?:BOOT_[A-Z_]+|mender_[a-z_]+|rootfs|ustate|bootcount|bootlimit|upgrade_available)\b", code))
    # What is good behind the slot that boots is the agent's own note where the script has no word for it.
    notes = AGENT_ONLY | {"BOOT_BUDGET"} | (set() if subject is Rauc else {"BOOT_ORDER"})
    assert written - notes <= read
    assert {"BOOT_TIMEOUT"} < read


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "BOOT_ORDER": st.lists(words, max_size=4).map(" ".join),
            "BOOT_A_LEFT": numbers,
            "BOOT_B_LEFT": numbers,
            "BOOT_TRIAL": st.lists(words, max_size=2).map(" ".join),
            "BOOT_BUDGET": numbers,
        },
    )
)
def test_the_first_slot_to_boot_is_the_same_for_both(env: dict[str, str]) -> None:
    """What the agent's view of any environment predicts is what the model of the boot script does with it."""
    state = state_of(Environment(tuple(f"{name}={value}".encode() for name, value in env.items())), SLOTS)
    booted = uboot_hook_model.boot(env)
    untouched = not any(env.get(name) for name in ("BOOT_ORDER", "BOOT_TRIAL", "BOOT_A_LEFT", "BOOT_B_LEFT"))
    assert state.fresh == (not env.get("BOOT_ORDER") and not env.get("BOOT_TRIAL"))
    left = [slot for slot in state.order if state.left[slot] > 0]
    confirmed = [slot for slot in state.order if slot != state.trial] or [slot for slot in SLOTS if slot != state.trial]
    expected = confirmed[0] if untouched or not left else left[0]
    assert booted.slot == expected
    assert booted.trial == (expected == state.trial)
