"""Which test shows what on which bootloader: the README's table, each cell a boot in QEMU, a model, or the reason why there is none."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("flash", "trial", "confirm", "revert", "hang", "panic", "tries exhausted", "power cut")


@dataclass(frozen=True)
class Boot:
    """Tests that boot the real bootloader, as FILE::FUNCTION below tests/qemu. One in every run is enough for the table to say so."""

    tests: tuple[str, ...]

    def shown(self) -> str:
        return "boot" if any(not is_slow(f"tests/qemu/{test}") for test in self.tests) else "boot (*all*)"


@dataclass(frozen=True)
class Model:
    """Tests over a model of the boot side, as FILE::FUNCTION below tests."""

    tests: tuple[str, ...]

    def shown(self) -> str:
        return "model"


@dataclass(frozen=True)
class Without:
    """n/a, and why."""

    reason: str

    def shown(self) -> str:
        return f"n/a: {self.reason}"


Cell = Boot | Model | Without


_X86 = "test_x86_device.py"
# Whole emulated devices, each of them under the same tests; one update of each bootloader is in every run.
_DEVICE: dict[str, Cell] = {
    "flash": Boot((f"{_X86}::test_good_update_is_tried_and_confirmed",)),
    "trial": Boot((f"{_X86}::test_good_update_is_tried_and_confirmed",)),
    "confirm": Boot((f"{_X86}::test_good_update_is_tried_and_confirmed", f"{_X86}::test_good_update_stays_over_a_power_cycle")),
    "revert": Boot((f"{_X86}::test_running_trial_can_be_reverted", f"{_X86}::test_armed_trial_can_be_cancelled")),
    "hang": Boot((f"{_X86}::test_bad_update_ends_on_the_version_before",)),
    "panic": Boot((f"{_X86}::test_bad_update_ends_on_the_version_before",)),
    "tries exhausted": Boot((f"{_X86}::test_trial_that_is_never_confirmed_uses_up_its_tries",)),
    "power cut": Boot(
        (
            f"{_X86}::test_power_cut_while_flashing_leaves_a_device_that_boots_and_can_be_flashed",
            f"{_X86}::test_power_cut_after_arming_starts_the_trial",
        )
    ),
}
_CRASH = "sim/test_crash.py::test_the_boot_store_in_every_place"
_LIFE = "contract/test_models.py"


def _model(flash: str) -> dict[str, Cell]:
    """The cells of what is shown on a model alone. flash: over the adapter's real files."""
    tried, ended = (
        f"{_LIFE}::test_update_is_tried_and_confirmed_and_stays",
        f"{_LIFE}::test_trial_that_hangs_or_panics_ends_on_the_good_slot",
    )
    return {
        "flash": Model((flash, tried)),
        "trial": Model((tried,)),
        "confirm": Model((tried,)),
        "revert": Model((f"{_LIFE}::test_revert_on_trial", f"{_LIFE}::test_armed_trial_is_cancelled")),
        "hang": Model((ended,)),
        "panic": Model((ended,)),
        "tries exhausted": Model((ended, f"{_LIFE}::test_flash_again_after_a_fallback")),
        "power cut": Model((_CRASH,)),
    }


_UPDATE, _BAD, _DIALECTS, _SAVEENV = "test_update.py", "test_bad_updates.py", "test_uboot_dialects.py", "test_uboot_saveenv.py"
_STORES = "contract/test_stores.py"
_COUNTED: dict[str, Cell] = {
    "flash": Boot((f"{_DIALECTS}::test_trial_boots_counted_and_is_confirmed",)),
    "trial": Boot((f"{_DIALECTS}::test_trial_boots_counted_and_is_confirmed",)),
    "confirm": Boot((f"{_DIALECTS}::test_trial_boots_counted_and_is_confirmed",)),
    "revert": Boot((f"{_DIALECTS}::test_reverted_trial_never_boots_again",)),
    "hang": Boot((f"{_DIALECTS}::test_watchdog_ends_trials_that_hang_until_altbootcmd_goes_back",)),
    "panic": Model((f"{_LIFE}::test_trial_that_hangs_or_panics_ends_on_the_good_slot",)),
    "tries exhausted": Boot((f"{_DIALECTS}::test_tries_used_up_altbootcmd_goes_back_and_both_sides_say_so",)),
    "power cut": Model((_CRASH,)),
}
MATRIX: Mapping[str, Mapping[str, Cell]] = {
    "U-Boot, `boot.cmd`": {
        "flash": Boot((f"{_UPDATE}::test_good_update_is_tried_confirmed_and_stays",)),
        "trial": Boot((f"{_UPDATE}::test_good_update_is_tried_confirmed_and_stays",)),
        "confirm": Boot((f"{_UPDATE}::test_healthy_trial_is_confirmed_at_the_end_of_the_window",)),
        "revert": Boot((f"{_UPDATE}::test_running_trial_can_be_ended_by_hand", f"{_UPDATE}::test_armed_trial_can_be_cancelled")),
        "hang": Boot((f"{_BAD}::test_bad_update_ends_on_the_version_before",)),
        "panic": Boot((f"{_BAD}::test_bad_update_ends_on_the_version_before",)),
        "tries exhausted": Boot(("test_uboot_hook.py::test_counting_ends_in_the_fallback_and_a_refill_restores_every_value",)),
        "power cut": Boot(("test_power_cuts.py::test_the_device_boots_after_a_cut_and_ends_where_it_should",)),
    },
    "U-Boot, `saveenv.cmd`": {
        "flash": Boot((f"{_SAVEENV}::test_counting_ends_in_the_fallback_with_abupdate_s_store_on_the_other_side",)),
        "trial": Boot((f"{_SAVEENV}::test_decision_is_that_of_boot_cmd",)),
        "confirm": Boot((f"{_SAVEENV}::test_decision_is_that_of_boot_cmd",)),
        "revert": Model((f"{_LIFE}::test_revert_on_trial", f"{_LIFE}::test_armed_trial_is_cancelled")),
        "hang": Boot((f"{_SAVEENV}::test_board_s_watchdog_ends_a_trial_that_hangs_until_the_tries_are_used_up",)),
        "panic": Model((f"{_LIFE}::test_trial_that_hangs_or_panics_ends_on_the_good_slot",)),
        "tries exhausted": Boot((f"{_SAVEENV}::test_counting_ends_in_the_fallback_with_abupdate_s_store_on_the_other_side",)),
        "power cut": Boot((f"{_SAVEENV}::test_one_damaged_copy_is_written_over",)),
    },
    "U-Boot, RAUC's variables": {
        **_COUNTED,
        "flash": Boot((f"{_DIALECTS}::test_rauc_trial_is_counted_confirmed_and_refilled",)),
        "trial": Boot((f"{_DIALECTS}::test_rauc_trial_is_counted_confirmed_and_refilled",)),
        "confirm": Boot((f"{_DIALECTS}::test_rauc_trial_is_counted_confirmed_and_refilled",)),
        "revert": Model((f"{_LIFE}::test_revert_on_trial", f"{_LIFE}::test_armed_trial_is_cancelled")),
        "hang": Model((f"{_LIFE}::test_trial_that_hangs_or_panics_ends_on_the_good_slot",)),
        "tries exhausted": Boot((f"{_DIALECTS}::test_rauc_trial_used_up_falls_back_and_confirmed_boots_are_counted_too",)),
    },
    "U-Boot, Mender's variables": _COUNTED,
    "U-Boot, SWUpdate's variables": _COUNTED,
    "GRUB, BIOS and UEFI": _DEVICE,
    "GRUB, RAUC's variables": _model(f"{_STORES}::test_flash_arms_a_trial_and_keeps_the_good_slot_behind_it"),
    "systemd-boot": _DEVICE,
    "EFI firmware alone": _DEVICE,
    "Raspberry Pi (tryboot)": _model(f"{_STORES}::test_flash_arms_a_trial_and_keeps_the_good_slot_behind_it"),
    "a board's own programs": _model(f"{_STORES}::test_flash_arms_a_trial_and_keeps_the_good_slot_behind_it"),
}


def table() -> str:
    """The README's table."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, cells in MATRIX.items():
        lines.append(f"| {name} | " + " | ".join(cells[column].shown() for column in COLUMNS) + " |")
    return "\n".join(lines)


@cache
def _functions(path: Path) -> Mapping[str, bool]:
    """Test functions of a file -> whether they run under --all alone."""
    tree = ast.parse(path.read_text())
    marks = [node for node in tree.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node.targets[0])]
    whole = any(_is_mark(child) for node in marks for child in ast.walk(node))
    return {
        node.name: whole or any(_is_mark(one) for one in node.decorator_list)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def _is_mark(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "slow"


def is_slow(test: str) -> bool:
    """Whether the test, as FILE::FUNCTION, runs under --all alone. Raises KeyError for one that is not there."""
    file, _, name = test.partition("::")
    return _functions(ROOT / file)[name]


def named(cell: Cell) -> tuple[str, ...]:
    """FILE::FUNCTION from the project's folder on."""
    match cell:
        case Boot():
            return tuple(f"tests/qemu/{test}" for test in cell.tests)
        case Model():
            return tuple(f"tests/{test}" for test in cell.tests)
        case Without():
            return ()
