"""What mender.cmd, swupdate.cmd and rauc.cmd of bootloader-hooks/uboot decide, with the U-Boot that counts for the first two. Pure.

U-Boot counts before anything else runs, and saves, while upgrade_available is 1; beyond bootlimit it runs altbootcmd, by which the scripts
go back and save twice, so that the older copy does not bring the trial back. RAUC's script counts by itself.
tests/qemu/test_uboot_dialects.py runs the scripts.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

SLOTS = ("A", "B")
PARTS = {"A": 10, "B": 11}
COPIES = {"A": "1", "B": "2"}


@dataclass(frozen=True, slots=True)
class CountedBoot:
    """What one start does. slot: whose kernel is tried last; trial: on trial; failed: slots whose kernel did not load.

    saves: the environment as each write left it. resets: the board starts anew by itself.
    """

    slot: str
    trial: bool
    failed: tuple[str, ...]
    saves: tuple[Mapping[str, str], ...]
    resets: bool


def boot(script: str, env: Mapping[str, str], loads: Container[str] = SLOTS) -> CountedBoot:
    """Start once. script: "mender" or "swupdate". env: the stored environment, in which the script has put what was missing."""
    now, saves = dict(env), list[Mapping[str, str]]()
    counted = 0
    if now.get("upgrade_available", "0") != "0":
        counted = int(now.get("bootcount", "0")) + 1
        now["bootcount"] = str(counted)
        saves.append(dict(now))
    over = 0 < int(now["bootlimit"]) < counted
    trial = now.get("upgrade_available") == "1" and (script == "mender" or now.get("ustate") in ("1", "2"))
    if trial and over:
        first = "B" if _first(script, now) == "A" else "A"
        now |= {"upgrade_available": "0", "bootcount": "0"}
        if script == "mender":
            now |= {"mender_boot_part": str(PARTS[first]), "mender_boot_part_hex": f"{PARTS[first]:x}"}
        else:
            now |= {"rootfs_copy": COPIES[first], "ustate": "3"}
        saves += [dict(now), dict(now)]
        trial = False
    first = _first(script, now)
    other = "B" if first == "A" else "A"
    failed: list[str] = []
    note = [slot for slot in now.get("BOOT_ORDER", "").split() if slot in SLOTS]
    good = note[:1] == [first] and other in note and now.get(f"BOOT_{other}_LEFT", "1") != "0"
    for slot in (first, other) if good else (first,):
        if slot in loads:
            return CountedBoot(slot, trial, tuple(failed), tuple(saves), resets=False)
        failed.append(slot)
        if trial:
            break
    return CountedBoot(failed[-1], trial, tuple(failed), tuple(saves), resets=True)


def rauc_boot(env: Mapping[str, str], loads: Container[str] = SLOTS) -> CountedBoot:
    """Start RAUC's script once. Where no slot of the order has a boot left, all get three again and the board begins anew."""
    now = {"BOOT_ORDER": "A B", "BOOT_A_LEFT": "3", "BOOT_B_LEFT": "3", **env}
    saves = list[Mapping[str, str]]()
    order = [slot for slot in now["BOOT_ORDER"].split() if slot in SLOTS]
    if all(int(now[f"BOOT_{slot}_LEFT"]) == 0 for slot in order):
        now |= {"BOOT_A_LEFT": "3", "BOOT_B_LEFT": "3"}
        saves.append(dict(now))
    slot = next(slot for slot in order if int(now[f"BOOT_{slot}_LEFT"]) > 0)
    now[f"BOOT_{slot}_LEFT"] = f"{int(now[f'BOOT_{slot}_LEFT'], 16) - 1:x}"
    saves.append(dict(now))
    failed = () if slot in loads else (slot,)
    return CountedBoot(slot, now.get("BOOT_TRIAL") == slot, failed, tuple(saves), resets=bool(failed))


def _first(script: str, env: Mapping[str, str]) -> str:
    if script == "mender":
        return "B" if env["mender_boot_part"] == str(PARTS["B"]) else "A"
    return "B" if env["rootfs_copy"] == COPIES["B"] else "A"
