"""hook_model.py in the words of bootloader-hooks/uboot/boot.cmd; tests/qemu/test_uboot_hook.py runs one table of scenarios through both.

Numbers are parsed as U-Boot does: hexadecimal up to the first strange character, 32 bits.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

from tests.sim import hook_model
from tests.sim.hook_model import DEFAULT_ORDER, SLOTS, HookBoot, Words

__all__ = ["DEFAULT_BUDGET", "DEFAULT_ORDER", "DEFAULT_TIMEOUT", "MAX_LEFT", "MAX_TIMEOUT_S", "SLOTS", "HookBoot", "boot", "number"]

DEFAULT_BUDGET, DEFAULT_TIMEOUT = "a", "78"
MAX_LEFT = 0xFF
MAX_TIMEOUT_S = 2046

_HEX = re.compile(r"(?:0[xX](?=[0-9a-fA-F]))?([0-9a-fA-F]*)")


def number(text: str) -> int:
    """A number as U-Boot's `itest` reads it; 0 where there is none."""
    match = _HEX.match(text)
    digits = match.group(1) if match else ""
    return int(digits or "0", 16) & 0xFFFFFFFF


def _timeout_s(text: str) -> int:
    return min(number(text or DEFAULT_TIMEOUT), MAX_TIMEOUT_S)


def _written(value: int, old: str) -> str:
    """A number shorter than the place of the old one gets zeros in front, as the hook leaves them."""
    return f"{value:x}".rjust(len(old), "0")


_WORDS = Words("BOOT_", DEFAULT_BUDGET, MAX_LEFT, number, _timeout_s, _written)


def boot(env: Mapping[str, str] | None, loads: Container[str] = SLOTS, can_save: bool = True) -> HookBoot:
    """See hook_model.boot; None: no copy of the environment is valid."""
    return hook_model.boot(_WORDS, env, loads, can_save)
