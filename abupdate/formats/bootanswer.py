"""What a board's own `get-state` answers and what its `set-state` is told: JSON, one object each, UTF-8. Pure.

get-state prints on standard output:

    {"abupdate": 1,
     "slots": ["A", "B"],                       the slots that it knows: just the configured ones
     "traits": {"max_tries": 3,                 most boots a trial may have
                "counts_confirmed": true,       boots of confirmed slots are counted too
                "falls_through": true,          a kernel that does not load ends on the next slot in the same boot
                "armed_in_store": true,         that an armed trial was tried can be seen in `state`
                "keeps_verity": false},         `verity` is kept and handed to the kernel
     "state": null,                             no copy of the state is valid
     "places": [["/dev/mmcblk0", 4096, 8192]],  optional: devices or files with the store, begin and end in bytes
     "tears": "",                               optional: why a power cut in set-state could lose the store
     "irreplaceable": ""}                       optional: why the store must not be written anew without asking

or, where there is a valid state, as "state":

    {"order": ["B", "A"],                       slots that may boot, first one first; a trial before the slot to fall back to
     "left": {"A": 10, "B": 3},                 boots left of every slot, 0: none
     "trial": "B",                              slot on trial, or null
     "policy": {"tries": 3, "budget": 10, "boot_timeout_s": 120},   optional: the numbers that the store holds, or null
     "floor": 7,                                optional: a number to keep, or null
     "verity": {"B": "00ff..."},                optional: root hashes, hexadecimal
     "fresh": false}                            optional: true where nothing was ever stored

set-state is told on standard input {"abupdate": 1, "action": ..., "slots": [...], "state": {...}} with all keys of a state but `fresh`.
Unknown keys are refused: a misspelt `trial` must not look like none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from abupdate.errors import ConfigError
from abupdate.model import MAX_COUNTER, BootState, BootTraits, TrialPolicy

VERSION = 1
MAX_BYTES = 64 << 10
_MAX_BOOTS = 255
_MAX_PLACES = 16
_MAX_TEXT = 200
_MAX_END = 1 << 62
_HASH = re.compile(r"(?:[0-9a-f]{2}){16,64}", re.ASCII)
_HINT = "bootloader-hooks/custom/ says what is to be answered"


@dataclass(frozen=True, slots=True)
class BootAnswer:
    """state: None where no copy is valid. places: (device or file, begin, end). tears, irreplaceable: as in ports.Bootloader."""

    traits: BootTraits
    state: BootState | None
    places: tuple[tuple[Path, int, int], ...] = ()
    tears: str = ""
    irreplaceable: str = ""


def parse_answer(data: bytes, slots: tuple[str, ...], name: str = "get-state") -> BootAnswer:
    """Raises ConfigError for anything but what the module's docstring describes, about just these slots; `name` is for messages."""
    try:
        return _answer(data, slots)
    except _BadAnswerError as error:
        raise ConfigError(f"{name}: {error}", _HINT) from None


def encode_request(action: str, state: BootState, slots: tuple[str, ...]) -> bytes:
    """One line for set-state. action: `commit`, `rebuild` (the store is not valid) or `check` (would it fit? change nothing)."""
    policy = state.policy
    body = {
        "order": list(state.order),
        "left": {slot: state.left.get(slot, 0) for slot in slots},
        "trial": state.trial,
        "policy": None if policy is None else {"tries": policy.tries, "budget": policy.budget, "boot_timeout_s": policy.boot_timeout_s},
        "floor": state.floor,
        "verity": dict(state.verity),
    }
    return json.dumps({"abupdate": VERSION, "action": action, "slots": list(slots), "state": body}).encode() + b"\n"


class _BadAnswerError(Exception):
    """What is wrong, in words that follow the program's name."""


def _answer(data: bytes, slots: tuple[str, ...]) -> BootAnswer:
    if len(data) > MAX_BYTES:
        raise _BadAnswerError(f"answers with more than {MAX_BYTES} bytes")
    try:
        found = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _BadAnswerError(f"answers with no JSON object: {_short(error)}") from None
    if not isinstance(found, dict):
        raise _BadAnswerError("answers with no JSON object")
    # First, so that a later version is told apart from a mistake.
    if found.get("abupdate") != VERSION or isinstance(found["abupdate"], bool):
        raise _BadAnswerError(f"answers in version {_short(found.get('abupdate'))}, this abupdate knows {VERSION}")
    _keys(found, ("abupdate", "slots", "traits", "state"), ("places", "tears", "irreplaceable"), "the answer")
    if not isinstance(found["slots"], list) or _sorted(found["slots"]) != sorted(slots):
        raise _BadAnswerError(f"knows the slots {_short(found['slots'])}, configured are {', '.join(slots)}")
    state = None if found["state"] is None else _state(found["state"], slots)
    places = found.get("places", [])
    if not isinstance(places, list) or len(places) > _MAX_PLACES:
        raise _BadAnswerError("`places` is no list of places")
    return BootAnswer(
        _traits(found["traits"]),
        state,
        tuple(_place(place) for place in places),
        _text(found.get("tears", ""), "tears"),
        _text(found.get("irreplaceable", ""), "irreplaceable"),
    )


def _state(raw: object, slots: tuple[str, ...]) -> BootState:
    state = _object(raw, "state")
    _keys(state, ("order", "left", "trial"), ("policy", "floor", "verity", "fresh"), "`state`")
    order = state["order"]
    if not isinstance(order, list) or any(slot not in slots for slot in order) or len(set(order)) != len(order):
        raise _BadAnswerError(f"`order` is {_short(order)}, the slots are {', '.join(slots)}, each once at most")
    left = _object(state["left"], "left")
    _keys(left, slots, (), "`left`")
    trial = state["trial"]
    if trial is not None and (not isinstance(trial, str) or trial not in slots):
        raise _BadAnswerError(f"`trial` is {_short(trial)}, which is no slot")
    verity = _object(state.get("verity", {}), "verity")
    _keys(verity, (), slots, "`verity`")
    for root in verity.values():
        if not isinstance(root, str) or not _HASH.fullmatch(root):
            raise _BadAnswerError("`verity` holds what is no root hash in small hexadecimal digits")
    return BootState(
        order=tuple(order),
        left={slot: _number(left[slot], _MAX_BOOTS, "left") for slot in slots},
        trial=trial,
        policy=_policy(state.get("policy")),
        floor=None if state.get("floor") is None else _number(state["floor"], MAX_COUNTER, "floor"),
        fresh=_flag(state.get("fresh", False), "fresh"),
        verity={slot: str(verity[slot]) for slot in slots if slot in verity},
    )


def _policy(raw: object) -> TrialPolicy | None:
    if raw is None:
        return None
    policy = _object(raw, "policy")
    _keys(policy, ("tries", "budget", "boot_timeout_s"), (), "`policy`")
    return TrialPolicy(*(_number(policy[name], 65535, name) for name in ("tries", "budget", "boot_timeout_s")))


def _traits(raw: object) -> BootTraits:
    traits = _object(raw, "traits")
    flags = ("counts_confirmed", "falls_through", "armed_in_store", "keeps_verity")
    _keys(traits, ("max_tries", *flags[:3]), flags[3:], "`traits`")
    most = _number(traits["max_tries"], _MAX_BOOTS, "max_tries")
    if most < 1:
        raise _BadAnswerError("`max_tries` is 0: a trial needs one boot")
    return BootTraits(most, *(_flag(traits.get(name, False), name) for name in flags))


def _place(raw: object) -> tuple[Path, int, int]:
    if not isinstance(raw, list) or len(raw) != 3 or not isinstance(raw[0], str) or not raw[0].startswith("/") or "\0" in raw[0]:
        raise _BadAnswerError("`places` holds what is no [PATH, BEGIN, END]")
    start, end = (_number(number, _MAX_END, "places") for number in raw[1:])
    if start >= end:
        raise _BadAnswerError("`places` holds a place that ends before it begins")
    return Path(_text(raw[0], "places", 4096)), start, end


def _object(raw: object, name: str) -> Mapping[str, object]:
    if not isinstance(raw, dict):
        raise _BadAnswerError(f"`{name}` is no object")
    return raw


def _keys(found: Mapping[str, object], needed: tuple[str, ...], more: tuple[str, ...], where: str) -> None:
    for key in needed:
        if key not in found:
            raise _BadAnswerError(f"{where} has no `{key}`")
    for key in found:
        if key not in needed and key not in more:
            raise _BadAnswerError(f"{where} has `{_short(key)}`, which nothing here knows")


def _number(raw: object, most: int, name: str) -> int:
    if type(raw) is not int or not 0 <= raw <= most:
        raise _BadAnswerError(f"`{name}` is {_short(raw)}, not a number from 0 to {most}")
    return raw


def _flag(raw: object, name: str) -> bool:
    if not isinstance(raw, bool):
        raise _BadAnswerError(f"`{name}` is {_short(raw)}, neither true nor false")
    return raw


def _text(raw: object, name: str, most: int = _MAX_TEXT) -> str:
    if not isinstance(raw, str) or len(raw) > most or not raw.isprintable():
        raise _BadAnswerError(f"`{name}` is no text of at most {most} printable characters")
    return raw


def _sorted(names: list[object]) -> list[str]:
    return sorted(name for name in names if isinstance(name, str)) if all(isinstance(name, str) for name in names) else []


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _short(value: object) -> str:
    """Something from an answer, or an error about one, fit for a line."""
    text = value if isinstance(value, str) else str(value) if isinstance(value, Exception) else json.dumps(value)
    text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return text if len(text) <= 60 else text[:57] + "..."
