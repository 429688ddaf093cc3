"""The health check that every member of a site has: whether this device sees its peers, and whether enough of them doubt it.

The fleet's daemon writes its word into a file; a file that is missing or old says that the daemon is not well. None of it is ever critical.
"""

from __future__ import annotations

from pathlib import Path

from abupdate.errors import Refused
from abupdate.formats.peerhealth import MAX_BYTES, PeerHealth, decode
from abupdate.health.results import Health

# The daemon writes every few seconds; a busy device may be late.
STALE_S = 30.0
GRACE_S = 60.0


class Peers:
    """Looks at the daemon's word. For the first `grace_s` of this object's life only a good one counts."""

    def __init__(self, path: Path, grace_s: float = GRACE_S) -> None:
        self._path = path
        self._grace_s = grace_s
        self._since_s: float | None = None

    def sample(self, now_s: float) -> tuple[Health, str] | None:
        """Health as the peers show it, and why; None while it is too early to say. now_s: seconds since boot, suspend included."""
        if self._since_s is None:
            self._since_s = now_s
        word = self._read(now_s)
        if word is not None and word.sees_quorum:
            return Health.OK, "this device sees its peers"
        if now_s - self._since_s < self._grace_s:
            return None
        return Health.DEGRADED, "the fleet's daemon says nothing" if word is None else "this device does not see enough of its peers"

    def held_back(self, now_s: float) -> str:
        """Empty, or which peers hold back the confirmation."""
        word = self._read(now_s)
        return f"doubted by {', '.join(word.doubters)}" if word is not None and word.held_back else ""

    def _read(self, now_s: float) -> PeerHealth | None:
        try:
            with self._path.open("rb") as file:
                word = decode(file.read(MAX_BYTES))
        except (OSError, Refused):
            return None
        return word if now_s - STALE_S <= word.at_s <= now_s + 1.0 else None
