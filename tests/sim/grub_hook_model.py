"""hook_model.py in the words of bootloader-hooks/grub/grub.cfg; tests/qemu/test_grub_hook.py runs one table of scenarios through both.

`rauc_boot` is RAUC's script for GRUB, after its documented variables.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

from tests.sim import hook_model
from tests.sim.hook_model import SLOTS, HookBoot, Words

DEFAULT_TIMEOUT_S = 120
# The hook's table of numbers ends here.
MAX_LEFT = 15


def number(text: str) -> int:
    """What the hook makes of a count."""
    return min(int(text), MAX_LEFT) if re.fullmatch("[0-9]+", text) else 0


def timeout(text: str) -> int:
    """Seconds that the kernel gets."""
    return int(text) if re.fullmatch("0+|0*[1-9][0-9]{0,4}", text) else DEFAULT_TIMEOUT_S


_WORDS = Words("", "10", MAX_LEFT, number, timeout, lambda value, old: f"{value:02}")


def boot(env: Mapping[str, str] | None, loads: Container[str] = SLOTS, can_save: bool = True) -> HookBoot:
    """See hook_model.boot; None: it is no environment block."""
    return hook_model.boot(_WORDS, env, loads, can_save)


def rauc_boot(env: Mapping[str, str] | None, loads: Container[str] = SLOTS) -> HookBoot:
    """RAUC's script once. No fall through: a slot whose kernel does not load is what boots, and then nothing runs.

    Where every slot was tried, those that are good get their try back and a rescue system starts: here the first good one at the next
    start.
    """
    values = {"ORDER": "A B", **dict.fromkeys(("A_OK", "B_OK", "A_TRY", "B_TRY"), "0"), **(env or {})}
    chosen = None
    for slot in values["ORDER"].split():
        if slot not in SLOTS:
            continue
        fits = values[f"{slot}_OK"] == "1" and values[f"{slot}_TRY"] == "0"
        values[f"{slot}_TRY"] = "1"
        if fits:
            chosen = slot
            break
    if chosen is None:
        for slot in SLOTS:
            if values[f"{slot}_OK"] == "1":
                values[f"{slot}_TRY"] = "0"
    after = None if env is None else {**env, "A_TRY": values["A_TRY"], "B_TRY": values["B_TRY"]}
    saves = () if after is None else (after,)
    failed = (chosen,) if chosen is not None and chosen not in loads else ()
    return HookBoot(chosen, False, after, len(saves), failed, False, 0, saves)
