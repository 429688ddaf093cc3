"""What the fleet's daemon tells the trial's health check, in a file that lasts until the next boot: a JSON object of at most 1 KiB.

{"at_s": seconds since boot, "sees_quorum": true, "doubters": ["gw-2"], "needed": 1}
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from abupdate.errors import Refused

MAX_BYTES = 4096
_MAX_NAMES = 64


@dataclass(frozen=True, slots=True)
class PeerHealth:
    """at_s: when it was written, seconds since boot with suspend. sees_quorum: enough voters are heard, this node among them.

    doubters: members that would hold back this node's confirmation. needed: how many of them count (f+1).
    """

    at_s: float
    sees_quorum: bool
    doubters: tuple[str, ...]
    needed: int

    @property
    def held_back(self) -> bool:
        """Enough peers doubt this node."""
        return len(self.doubters) >= self.needed


def encode(health: PeerHealth) -> bytes:
    """The file's bytes."""
    document = {
        "at_s": round(health.at_s, 1),
        "sees_quorum": health.sees_quorum,
        "doubters": health.doubters[:_MAX_NAMES],
        "needed": health.needed,
    }
    return json.dumps(document).encode() + b"\n"


def decode(data: bytes) -> PeerHealth:
    """Raises Refused for anything that `encode` does not make."""
    try:
        document = json.loads(data[: MAX_BYTES + 1])
        at_s, sees, doubters, needed = (document[name] for name in ("at_s", "sees_quorum", "doubters", "needed"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused("not the daemon's word on its peers") from error
    good = isinstance(at_s, float | int) and isinstance(sees, bool) and isinstance(doubters, list) and type(needed) is int
    if not good or isinstance(at_s, bool) or needed < 1 or not all(isinstance(name, str) for name in doubters):
        raise Refused("not the daemon's word on its peers")
    return PeerHealth(float(at_s), sees, tuple(doubters[:_MAX_NAMES]), needed)
