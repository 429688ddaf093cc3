"""A node's past, read back from its log into the site's state. Pure; what cannot be read back makes the node stop voting, not fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from abupdate.errors import AbupdateError, Refused
from abupdate.fleet import journal
from abupdate.fleet.events import RecordKind
from abupdate.fleet.journal import Snapshot
from abupdate.fleet.peers import position
from abupdate.fleet.site import Site
from abupdate.formats import certificate as certificate_format
from abupdate.formats import entries, frame
from abupdate.formats.certificate import Certificate
from abupdate.formats.entries import ReconfigEntry
from abupdate.formats.messages import EVERYBODY, Frame, Outcome, Thing, Type, Vote


@dataclass(slots=True)
class Past:
    """What the log holds beside the state.

    stopped: why this node does not vote, empty: it does. words: lease -> frame of the node's own last word. began: leases under which it
    was about to go down. opinions: order -> (approve, reason). votes, locks: of all heights. records: how many there were.
    """

    stopped: str = ""
    words: dict[int, bytes] = field(default_factory=dict)
    began: set[int] = field(default_factory=set)
    opinions: dict[bytes, tuple[bool, str]] = field(default_factory=dict)
    votes: list[bytes] = field(default_factory=list)
    locks: list[tuple[int, int, bytes]] = field(default_factory=list)
    records: int = 0


def replay(site: Site, records: Sequence[tuple[RecordKind, bytes]]) -> Past:
    """Bring the site's state to where the log ends."""
    past = Past()
    try:
        for kind, data in records:
            past.records += 1
            _take(site, past, kind, data)
        for data in past.words.values():
            site.facts.add(site.state, frame.parse(data), data)
        _remember_votes(site)
    except (AbupdateError, KeyError, ValueError, IndexError) as error:
        past.stopped = f"the log cannot be read back ({error})"
    return past


def _take(site: Site, past: Past, kind: RecordKind, data: bytes) -> None:
    match kind:
        case RecordKind.BOOT:
            site.wire.boot = max(site.wire.boot, journal.read_number(data))
        case RecordKind.VOTE:
            past.votes.append(data)
        case RecordKind.LOCK:
            past.locks.append(journal.read_lock(data))
        case RecordKind.DECIDED:
            _decided(site, certificate_format.parse(data))
        case RecordKind.FACT:
            one = frame.parse(data)
            if isinstance(one.message, Outcome):
                past.words[one.message.lease] = data
        case RecordKind.OBJECT:
            _object(site, Thing(data[0]), data[1:])
        case RecordKind.SNAPSHOT:
            adopt(site, journal.read_snapshot(data))
        case RecordKind.STOPPED:
            past.stopped = data.decode(errors="replace") or "it was stopped"
        case RecordKind.LEAVING:
            past.began.add(journal.read_number(data))
        case RecordKind.OPINION:
            order, approve, reason = journal.read_opinion(data)
            past.opinions[order] = (approve, reason)


def _decided(site: Site, one: Certificate) -> None:
    if one.height != site.state.height + 1:
        raise Refused(f"height {one.height} follows on height {site.state.height}")
    entry = entries.parse(one.entry)
    found = site.after(entry, one.entry)
    site.before = site.state.last
    site.state = found.state
    site.archive.add_certificate(one)
    if isinstance(entry, ReconfigEntry):
        learn(site, entry.membership)


def _object(site: Site, thing: Thing, data: bytes) -> None:
    if thing is Thing.MEMBERSHIP:
        site.archive.add_membership(data)
    else:
        site.archive.add_order(data)


def learn(site: Site, digest: bytes) -> None:
    """A membership of the archive is an epoch's. Raises KeyError where it is not there."""
    fresh = site.archive.membership(digest)
    if fresh is None:
        raise KeyError(digest)
    site.known[fresh.epoch] = fresh


def adopt(site: Site, one: Snapshot) -> None:
    """Go on from a snapshot that is verified, or comes from the node's own log. Raises KeyError where its membership is not there."""
    if one.state.epoch not in site.known:
        learn(site, one.state.membership)
    site.before = one.before
    site.state = one.state
    site.archive.add_certificate(one.certificate)
    site.adrift = False


def _remember_votes(site: Site) -> None:
    """The newest certificate holds votes of others: so a site that was dark as a whole still knows who voted last."""
    one = site.archive.certificates.get(site.state.height)
    if one is None or isinstance(entries.parse(one.entry), ReconfigEntry):
        return
    site.peers.follow(frozenset(site.membership.by_index))
    for voter, signature in one.signatures:
        peer = site.peers.others.get(voter)
        if peer is not None:
            vote = Vote(one.height, one.round, site.state.last)
            whole = Frame(Type.PRECOMMIT, voter, EVERYBODY, site.state.genesis[:4], site.state.epoch, 0, 0, vote, signature)
            peer.newest, peer.vote = position(one.height, one.round, Type.PRECOMMIT), frame.pack(whole)
