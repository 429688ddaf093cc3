"""abupdate's own EFI variable: what the firmware's variables cannot say of the slots. Pure.

ASCII words, so that whoever meets it understands it: `trial=B good=A,B spent=B floor=12`. Each may be missing. Words that are not
known stay as they are: a newer version wrote them. What makes no sense counts as missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from abupdate.model import MAX_COUNTER

MAX_BYTES = 1024
_WORD = re.compile(r"([a-z][a-z0-9_]{0,31})=([!-~]{0,256})")
_SLOT = re.compile(r"[A-Za-z0-9]{1,16}")


@dataclass(frozen=True, slots=True)
class Marker:
    """trial: the slot on trial or None. good: slots that may boot unless they are on trial. spent: slots of the order without boots left.

    floor: mirror of the security counter's floor. others: words of a newer version.
    """

    trial: str | None = None
    good: tuple[str, ...] = ()
    spent: tuple[str, ...] = ()
    floor: int | None = None
    others: tuple[str, ...] = field(default=())


def decode(data: bytes) -> Marker:
    """The variable's data; never raises."""
    known: dict[str, str] = {}
    others: list[str] = []
    for word in data[:MAX_BYTES].decode("ascii", errors="replace").split(" "):
        match = _WORD.fullmatch(word)
        if match is None or match[1] in known:
            continue
        if match[1] in ("trial", "good", "spent", "floor"):
            known[match[1]] = match[2]
        else:
            others.append(word)
    trial = known.get("trial", "")
    return Marker(
        trial=trial if _SLOT.fullmatch(trial) else None,
        good=_slots(known.get("good", "")),
        spent=_slots(known.get("spent", "")),
        floor=_floor(known.get("floor", "")),
        others=tuple(others),
    )


def encode(marker: Marker) -> bytes:
    """The variable's data, at most MAX_BYTES: what others wrote goes first where there is no room."""
    words = [f"trial={marker.trial}"] if marker.trial else []
    words.append(f"good={','.join(marker.good)}")
    if marker.spent:
        words.append(f"spent={','.join(marker.spent)}")
    if marker.floor is not None:
        words.append(f"floor={marker.floor}")
    for word in marker.others:
        if sum(len(each) + 1 for each in (*words, word)) <= MAX_BYTES:
            words.append(word)
    return " ".join(words).encode()


def _slots(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(slot for slot in text.split(",") if _SLOT.fullmatch(slot)))


def _floor(text: str) -> int | None:
    number = int(text) if re.fullmatch(r"[0-9]{1,19}", text) else MAX_COUNTER + 1
    # What no bundle can reach is damage: it must not lock every update out.
    return number if number <= MAX_COUNTER else None
