"""What systemd-boot does with the entries on an ESP, as a pure function: which one it starts, and how it renames the file.

Written after its documentation and what the real one was seen to do; tests/qemu/test_sdboot.py runs one table through both. It shares no
code with the store.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

_COUNTER = re.compile(r"^(.*?)\+(\d+)(?:-(\d+))?\.conf$")
# Sorts behind every sort-key: systemd-boot puts entries without one last.
_NONE = "\uffff"


@dataclass(frozen=True, slots=True)
class SdBoot:
    """One start. file: the entry that is started, None: the firmware goes on. renamed: its name from now on. slot: of abupdate.slot=.

    trial: abupdate.trial=1 is among the kernel's arguments. passed: slots whose entries would have come before it, but for their kernel.
    """

    file: str | None
    renamed: str | None
    slot: str | None
    trial: bool
    passed: tuple[str, ...] = ()


def boot(files: Mapping[str, bytes], kernels: Container[str], default: str = "slot-*") -> SdBoot:
    """Start once. files: loader/entries. kernels: paths that are there on the ESP."""
    found = []
    for name, data in files.items():
        lines = [line.split(None, 1) for line in re.split(r"[\r\n]", data.split(b"\0")[0].decode("utf-8", "replace"))]
        pairs = [(line[0], line[1].strip()) for line in lines if len(line) == 2 and not line[0].startswith("#")]
        kernel = next((value for key, value in reversed(pairs) if key in ("linux", "efi")), None)
        if not name.endswith(".conf") or kernel is None:
            continue
        options = " ".join(value for key, value in pairs if key == "options").split()
        key = next((value for key, value in reversed(pairs) if key == "sort-key"), _NONE)
        counter = _COUNTER.match(name)
        left = int(counter[2]) if counter else None
        found.append(((left == 0, key, name.lower()), name, kernel, options, counter))
    # Of one sort-key, or none, the later name first.
    found.sort(key=lambda one: one[0][2].partition(".")[0].partition("+")[0], reverse=True)
    found.sort(key=lambda one: one[0][:2])
    passed: list[str] = []
    for _, name, kernel, options, counter in found:
        given = dict(word.partition("=")[::2] for word in options)
        slot = given.get("abupdate.slot")
        if kernel not in kernels:
            passed += [slot] if slot else []
            continue
        if not fnmatchcase(name.lower(), default):
            continue
        renamed = name
        if counter:
            renamed = f"{counter[1]}+{max(int(counter[2]) - 1, 0)}-{int(counter[3] or 0) + 1}.conf"
        if renamed in files:
            renamed = name  # a renaming that fails stops nothing: the boot is not counted
        return SdBoot(name, renamed, slot, given.get("abupdate.trial") == "1", tuple(passed))
    return SdBoot(None, None, None, False, tuple(passed))
