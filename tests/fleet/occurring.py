"""What must occur in a campaign of thousands of schedules: an invariant that nothing puts to the test is not checked.

Names are those of `Result.counts` (oracle.py: what was decided, and what came of it) and `Result.faults` (world.py: what went wrong).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from abupdate.formats.entries import Ending, Entry
from abupdate.formats.order import OrderKind
from tests.fleet import actions
from tests.fleet.byzantine import BEHAVIOURS

# So many schedules show all of it.
ENOUGH = 3000

DECIDED = frozenset(
    {
        *(one.__name__.removesuffix("Entry").lower() for one in get_args(Entry)),
        *(kind.name for kind in OrderKind),
        *(f"release {ending.name}" for ending in Ending),
        "ROLLBACK now",
        "a plan halts",
        "a plan turns back",
        "an epoch begins while leases are held",
        "several leases at once",
        "with learners",
    }
)
FAULTS = frozenset(
    {
        *(deed.__name__ for deed in get_args(actions.Deed)),
        *BEHAVIOURS,
        "a clock that is off by years",
        "a recovery with held leases",
        "an older log",
        "an older log that others can tell",
        "crash at a log write",
        "frames come late",
        "frames come twice",
        "frames get lost",
        "goes down unasked under a lease",
        "power cut",
        "process ends",
    }
)


def missing(counts: Mapping[str, int], faults: Mapping[str, int]) -> list[str]:
    """What has never occurred, sorted."""
    return sorted(name for names, seen in ((DECIDED, counts), (FAULTS, faults)) for name in names if not seen.get(name))
