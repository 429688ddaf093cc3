"""Who is behind, and how it gets what it missed: certificates height by height, or a snapshot of the state. Pure.

A certificate's Q signatures show everything: whoever hands it out needs no trust.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from abupdate.errors import Refused
from abupdate.fleet import journal
from abupdate.fleet import state as state_format
from abupdate.fleet.journal import Snapshot
from abupdate.fleet.site import Next, Site, voted_hash
from abupdate.formats import entries, frame
from abupdate.formats.certificate import Certificate
from abupdate.formats.entries import ReconfigEntry
from abupdate.formats.membership import Membership
from abupdate.formats.messages import EVERYBODY, CertRequest, Nack, Thing, Type, Vote

_SERVE_AGAIN_S = 0.3
_SERVED_KEPT = 256
_PATIENCE_S = 0.5
_ASK_AGAIN_S = 1.0


@dataclass(slots=True)
class CatchUp:
    """taller: a node that is further, and how far. next_s: when it is asked."""

    site: Site
    taller: tuple[int, int] | None = None
    next_s: float = 0.0
    _served: dict[tuple[bytes, int], float] = field(default_factory=dict)

    @property
    def wake_s(self) -> float | None:
        """When a question is due."""
        return self.next_s if self.taller is not None else None

    def notice(self, node: int, height: int) -> None:
        """A peer has decided this height."""
        site = self.site
        if height > site.state.height and (self.taller is None or self.taller[1] <= site.state.height):
            # What is on its way gets here by itself most of the time.
            self.taller, self.next_s = (node, height), site.now_s + _PATIENCE_S

    def follow(self) -> None:
        """A height was decided here."""
        if self.taller is not None and self.taller[1] <= self.site.state.height:
            self.taller = None
        self.next_s = self.site.now_s

    def ask(self) -> None:
        """Ask for the next height where that is due, each time another node."""
        site = self.site
        if self.taller is None or site.now_s < self.next_s:
            return
        node, height = self.taller
        beats = ((other, site.peers.others[other].beat) for other in sorted(site.seen()))
        taller = [other for other, beat in beats if beat is not None and beat.height > site.state.height]
        site.say(Type.CERT_REQ, CertRequest(0 if site.adrift else site.state.height + 1), node)
        following = [other for other in taller if other > node] or taller
        self.taller, self.next_s = (following[0] if following else node, height), site.now_s + _ASK_AGAIN_S

    def serve(self, asker: int, message: Nack) -> None:
        """Send a thing that somebody asks for, where it is here."""
        site = self.site
        if self._lately(message.digest, asker):
            return
        if message.thing is Thing.FACT:
            fact = site.facts.get(message.digest)
            if fact is not None:
                site.send(fact.frame.type, fact.data, urgent=True)
            return
        data = site.archive.serve(message.thing, message.digest)
        if data is not None:
            site.hand_out(message.digest, data, message.missing)

    def serve_height(self, asker: int, height: int) -> None:
        """Send a height's certificate, or a snapshot where that height is too long ago."""
        site = self.site
        if height > site.state.height or self._lately(height.to_bytes(4, "big"), asker):
            return
        data, thing = site.archive.certificate_file(height), Thing.CERTIFICATE
        if data is None:
            newest = self.snapshot_now()
            if newest is None:
                return
            data, thing, height = journal.snapshot(newest), Thing.SNAPSHOT, newest.state.height
        site.announce(Type.CERT, thing, site.archive.add_loose(data), data, height)

    def _lately(self, what: bytes, asker: int) -> bool:
        now_s = self.site.now_s
        if now_s - self._served.get((what, asker), -1.0) < _SERVE_AGAIN_S:
            return True
        self._served[what, asker] = now_s
        if len(self._served) > _SERVED_KEPT:
            self._served.pop(next(iter(self._served)))
        return False

    def snapshot_now(self) -> Snapshot | None:
        """The newest state with its certificate, None before the first height."""
        site = self.site
        one = site.archive.certificates.get(site.state.height)
        if one is None:
            return None
        reconfigured = isinstance(entries.parse(one.entry), ReconfigEntry)
        return Snapshot(site.state.epoch - reconfigured, site.before, one, site.state)

    def certificate(self, sender: int, one: Certificate) -> Next | None:
        """What a certificate decides, None where it is not the next height's or something that it names must come first. Raises Refused."""
        site = self.site
        if one.height != site.state.height + 1 or site.adrift:
            return None
        entry = entries.parse(one.entry)
        try:
            found = site.after(entry, one.entry)
        except KeyError as missing:
            digest = missing.args[0]
            if isinstance(digest, bytes):
                thing = Thing.MEMBERSHIP if isinstance(entry, ReconfigEntry) else Thing.ORDER
                site.objects.want(thing, digest, sender, site.now_s, pinned=True)
            return None
        self._check(one, found.value, site.membership)
        return found

    def snapshot(self, sender: int, one: Snapshot) -> bool:
        """Whether the snapshot is good to go on from; what it lacks is asked for. Raises Refused."""
        site, state = self.site, one.state
        if state.height <= site.state.height or state.genesis != site.state.genesis or one.certificate.height != state.height:
            return False
        membership = site.known.get(one.epoch)
        if membership is None:
            raise Refused("the snapshot is of an epoch whose membership is not known here")
        digest = state_format.digest(state)
        value = voted_hash(state.genesis, state.height, one.certificate.entry, one.before, digest)
        if digest != one.certificate.state or value != state.last:
            raise Refused("the snapshot's state is not what was voted on")
        self._check(one.certificate, value, membership)
        absent = [(Thing.ORDER, order) for order in state.orders() if site.archive.order(order) is None]
        if state.epoch not in site.known and site.archive.membership(state.membership) is None:
            absent.append((Thing.MEMBERSHIP, state.membership))
        for thing, digest in absent:
            site.objects.want(thing, digest, sender, site.now_s, pinned=True, certified=True)
        return not absent

    def _check(self, one: Certificate, value: bytes, membership: Membership) -> None:
        """Refuse a certificate without Q right signatures."""
        site = self.site
        payload = frame.payload(Vote(one.height, one.round, value))
        good = 0
        for voter, signature in one.signatures:
            member = membership.by_index.get(voter)
            if member is None or not member.voter:
                continue
            content = frame.content(site.state.genesis, Type.PRECOMMIT, voter, EVERYBODY, membership.epoch, payload)
            good += site.wire.seal.verify(member.key, signature, content)
        if good < membership.quorum:
            raise Refused(f"the certificate has {good} good signatures and needs {membership.quorum}")
