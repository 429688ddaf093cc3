"""What is kept of the site's decisions, for people: `fleet log`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from abupdate.fleet.ports import DecidedEntry
from abupdate.formats import entries
from abupdate.formats.certificate import Certificate
from abupdate.formats.entries import ReconfigEntry
from abupdate.formats.membership import Membership


def decided_entries(
    certificates: Iterable[Certificate], epoch: int, known: Mapping[int, Membership], first: int, count: int
) -> list[DecidedEntry]:
    """Entries from a height on, at most `count`; first 0: the newest ones. Ascending, without gaps up to the last height.

    certificates: of the last heights, in any order. epoch: after the last of them. known: memberships by epoch.
    """
    found: list[DecidedEntry] = []
    for one in sorted(certificates, key=lambda one: one.height, reverse=True):
        entry = entries.parse(one.entry)
        if isinstance(entry, ReconfigEntry):
            # It acts from the next height on.
            epoch -= 1
        if epoch not in known:
            break
        signers = frozenset(voter for voter, _ in one.signatures)
        found.append(DecidedEntry(one.height, one.round, known[epoch], entry, signers))
    wanted = [one for one in reversed(found) if one.height >= first]
    return wanted[:count] if first else wanted[-count:]
