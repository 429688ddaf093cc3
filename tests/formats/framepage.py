"""frames.md: every byte of the golden frames, explained from the declaration (frame_spec.py) and not from the decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abupdate.formats import frame_spec
from abupdate.formats.messages import EVERYBODY, NOTHING, Stage, Thing, Type
from tests.formats import fleetgolden
from tests.formats.fleetgolden import FOLDER

PAGE = Path(__file__).parent / "frames.md"
HEAD = """# The fleet's frames, byte by byte

This page is made from the golden files in [golden/fleet](golden/fleet) by `python -m tests.formats.fleetgolden`; a test proves that
both agree. Every frame is of node 3 and of epoch 1 of the site in `golden.abm`, and its signature is real. Numbers are big-endian.
On a serial line a frame is encoded with COBS and ends with a zero byte: two bytes more. What is signed is told in
`abupdate/formats/frame.py`, the rules of the payloads are in `abupdate/formats/payloads.py`.

* genesis of the site: `{genesis}`
* public key of node 3: `{key}` (the private one is SHA-256 of `node-3`)
"""


@dataclass(frozen=True, slots=True)
class Row:
    """Some bytes of a frame, and what they are."""

    offset: int
    data: bytes
    field: str
    meaning: str


def _who(number: int) -> str:
    return "everybody" if number == EVERYBODY else f"node {number}"


def _numbers(bitmap: bytes) -> str:
    found = [str(number) for number in range(8 * len(bitmap)) if bitmap[number // 8] >> number % 8 & 1]
    return ", ".join(found) or "none"


def _flags(value: int) -> str:
    return ", ".join(name for bit, name in ((1, "healthy"), (2, "on trial"), (4, "stopped")) if value & bit) or "none"


def _step(value: int) -> str:
    return f"{'precommit' if value & 0x8000 else 'prevote'} of round {value & 0x7FFF}"


def _reason(value: bytes) -> str:
    return f"reason: {value.decode()!r}" if value else "no reason"


MEANINGS: Mapping[str, Callable[[Any], str]] = {
    "version": lambda value: f"version {value >> 4}, {'carries the token' if value & 1 else 'no token'}",
    "type": lambda value: Type(value).name,
    "source": lambda value: f"its author: node {value}",
    "to": lambda value: f"for {_who(value)}",
    "tag": lambda value: "the site: the first bytes of its genesis",
    "epoch": lambda value: f"epoch {value}",
    "boot": lambda value: f"boot counter {value}",
    "seq": lambda value: f"sequence {value}",
    "length": lambda value: f"{value} bytes of payload",
    "signature": lambda value: "Ed25519 signature",
    "crc": lambda value: "CRC-32 of all before it",
    "nonce": lambda value: f"nonce {value:#010x}",
    "node": lambda value: f"an answer to node {value}",
    "height": lambda value: f"height {value}" if value else "no height",
    "step": _step,
    "lease": lambda value: f"lease {value}" if value else "no lease",
    "stage": lambda value: f"stage {Stage(value).name}",
    "flags": lambda value: f"flags: {_flags(value)}",
    "bundle": lambda value: "bundle id" if len(value) == 32 else "first bytes of the id of the bundle that is booted",
    "doubts": lambda value: f"doubts about nodes: {_numbers(value)}",
    "thing": lambda value: f"a thing of the kind {Thing(value).name}",
    "digest": lambda value: "its digest",
    "missing": lambda value: f"missing fragments: {_numbers(value)}",
    "index": lambda value: f"fragment {value}, counted from 0",
    "count": lambda value: f"of {value}",
    "data": lambda value: f"{len(value)} bytes of the object",
    "round": lambda value: f"round {value}",
    "valid_round": lambda value: "no valid round" if value == 0xFFFF else f"valid round {value}",
    "kind": lambda value: "the entry's digest follows" if value else "the entry itself follows",
    "entry": lambda value: "digest of the entry" if len(value) == 32 else "the entry",
    "value": lambda value: "nothing" if value == NOTHING else "the voted hash",
    "size_bytes": lambda value: f"{value} bytes",
    "order": lambda value: "id of the order",
    "plan": lambda value: "id of the plan, which is its order's",
    "attempt": lambda value: f"attempt {value}",
    "expected_s": lambda value: f"for about {value} seconds",
    "reason": _reason,
}


def rows(data: bytes) -> list[Row]:
    """A frame field by field. Fields of no bytes are left out."""
    found = frame_spec.frame_spec.parse(data)
    whole = found.checked.value
    pieces = [
        *_pieces(frame_spec.header, whole.header),
        *_pieces(frame_spec.PAYLOADS[Type(whole.header.type)], whole.payload),
        (whole.signature, "signature", MEANINGS["signature"](whole.signature)),
        (found.crc.to_bytes(4, "big"), "crc", MEANINGS["crc"](found.crc)),
    ]
    listed: list[Row] = []
    offset = 0
    for piece, field, meaning in pieces:
        if piece:
            listed.append(Row(offset, piece, field, meaning))
        offset += len(piece)
    return listed


def _pieces(declared: Any, values: Any) -> Iterator[tuple[bytes, str, str]]:
    """Bytes, name and meaning of each named field of a construct Struct."""
    for subcon in declared.subcons:
        if subcon.name is None:
            continue
        value = values[subcon.name]
        if subcon.name == "echoes":
            for echo in value:
                yield from _pieces(frame_spec.echo, echo)
        else:
            yield value if isinstance(value, bytes) else subcon.build(value), subcon.name, MEANINGS[subcon.name](value)


def page() -> str:
    """The page, from the golden files."""
    parts = [HEAD.format(genesis=fleetgolden.membership().genesis.hex(), key=fleetgolden.membership().by_index[3].key.hex())]
    for name, sample in fleetgolden.samples().items():
        data = (FOLDER / f"{name}.frame").read_bytes()
        parts.append(f"\n## {name}.frame ({len(data)} bytes)\n\n{sample.says}\n\n| offset | bytes | field | meaning |\n|--:|---|---|---|\n")
        parts += [f"| {row.offset} | `{row.data.hex()}` | {row.field} | {row.meaning} |\n" for row in rows(data)]
    return "".join(parts)
