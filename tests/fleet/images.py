"""Bundles of a simulated site, and how a device fares with each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum


class Fate(Enum):
    """What becomes of an image on a device."""

    GOOD = "good"
    CRITICAL = "critical"  # a health check fails: reverted within the window
    HANGS = "hangs"  # the watchdog bites at each try, then the bootloader falls back
    UNWRITABLE = "unwritable"  # fails while it is fetched or verified
    STUCK = "stuck"  # cannot be activated under the lease


@dataclass(frozen=True, slots=True)
class Image:
    """One bundle. fates: what happens on some nodes; GOOD on all others."""

    name: str
    counter: int = 1
    fates: tuple[tuple[int, Fate], ...] = ()

    @property
    def bundle(self) -> bytes:
        """Its id."""
        return hashlib.sha256(b"image " + self.name.encode()).digest()

    def fate(self, node: int) -> Fate:
        """What becomes of it on this node."""
        return dict(self.fates).get(node, Fate.GOOD)


FACTORY = Image("factory", 1)
