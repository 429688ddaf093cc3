"""What every modelled medium shares: a frozen value that is interned, the choices of what a power cut leaves of it, and their order.

A running medium (`Disk`, `Chip`, `Tree`) changes and calls a listener before each step; `freeze` makes it a `Part`. Equal parts are one
object, so that a state of the whole device is a tuple that compares by identity.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Protocol

# What a step is called, and whether the process is inside one call of the kernel then (nobody can kill it between).
OnEvent = Callable[[str, bool], None]

# How many outcomes of one cut are looked at: all of them up to here, else the extremes and samples.
ALL_SUBSETS = 1024
SAMPLES = 512


def quiet(what: str, inside: bool = False) -> None:
    """A listener that does not listen."""


class Part(Protocol):
    """A frozen medium; equal ones are one object."""

    def __hash__(self) -> int:
        """By identity."""

    @property
    def choices(self) -> tuple[int, ...]:
        """For everything that is not durable yet, in how many ways a cut may leave it; the last way is whole. Empty: all is durable."""

    def after(self, picks: Iterator[int]) -> Part:
        """The medium after a cut, everything durable."""

    def thaw(self, on_event: OnEvent = quiet) -> Running:
        """A running copy."""


class Running(Protocol):
    """A medium that changes."""

    def listen(self, on_event: OnEvent) -> None:
        """Call before each step from now on."""

    def freeze(self) -> Part:
        """What it is now."""


def digest(*pieces: bytes) -> bytes:
    """16 bytes that stand for the content."""
    found = blake2b(digest_size=16)
    for piece in pieces:
        found.update(len(piece).to_bytes(8, "big"))
        found.update(piece)
    return found.digest()


def outcomes(choices: Sequence[int], seed: int, most: int = ALL_SUBSETS, samples: int = SAMPLES) -> Iterator[tuple[int, ...]]:
    """Every combination where there are at most `most`; else none, all, each prefix and suffix, each single one, each one missing, and
    seeded samples."""
    total = 1
    for count in choices:
        total *= count
    if total <= most:
        yield from itertools.product(*map(range, choices))
        return
    whole = tuple(count - 1 for count in choices)
    found: dict[tuple[int, ...], None] = {(0,) * len(choices): None, whole: None}
    for at, count in enumerate(choices):
        rest = len(choices) - at - 1
        for pick in range(count):
            found[whole[:at] + (pick,) + (0,) * rest] = None
            found[(0,) * at + (pick,) + whole[at + 1 :]] = None
            found[(0,) * at + (pick,) + (0,) * rest] = None
            found[(*whole[:at], pick, *whole[at + 1 :])] = None
    chance = random.Random(seed * 1_000_003 + len(choices))
    if len(found) > most:
        yield from chance.sample(sorted(found), most)
        return
    for _ in range(samples):
        found[tuple(chance.randrange(count) for count in choices)] = None
    yield from found


def mixes(old: bytes, new: bytes, unit: int) -> tuple[bytes, ...]:
    """What may stand where `new` was being written over `old`: old first, new last, between them tears at multiples of `unit` bytes."""
    if old == new:
        return (old,)
    size = len(new)
    half = max(unit, size // 2 // unit * unit)
    every_other = b"".join((new if at // unit % 2 else old)[at : at + unit] for at in range(0, size, unit))
    torn = (new[:unit] + old[unit:size], new[:half] + old[half:size], old[:half] + new[half:], every_other)
    return tuple(dict.fromkeys((old, *(one for one in torn if one not in (old, new)), new)))
