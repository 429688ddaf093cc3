"""The fleet's golden files: what was on a wire or signed once is read for ever, and written again byte for byte; frames.md explains it.

The files in golden/fleet are never made anew for a change of the code: a change that needs that is a new wire version.
"""

from __future__ import annotations

import re

import pytest
from cobs import cobs

from abupdate.formats import certificate, entries, evidence, frame, signature
from abupdate.formats import membership as memberships
from abupdate.formats import order as orders
from abupdate.formats.messages import EVERYBODY, Type, Vote
from tests.formats import fleetgolden, framepage
from tests.formats.fleetgolden import FOLDER
from tests.formats.sitefiles import BUNDLE, OLDER
from tests.rings import pair

NAMES = sorted(path.name for path in FOLDER.iterdir())
FRAMES = fleetgolden.samples()
TAG = bytes.fromhex("2ac733dc")


def test_there_is_a_golden_file_of_everything() -> None:
    assert sorted(fleetgolden.files()) == NAMES
    assert {sample.type for sample in FRAMES.values()} == set(Type)
    assert {entries.parse((FOLDER / name).read_bytes()).__class__ for name in NAMES if name.endswith(".entry")} == {
        entry.__class__ for entry in fleetgolden.log_entries().values()
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_file_is_written_byte_for_byte(name: str) -> None:
    assert fleetgolden.files()[name] == (FOLDER / name).read_bytes()


@pytest.mark.parametrize("name", FRAMES)
def test_a_golden_frame_is_read_and_its_signature_is_good(name: str) -> None:
    data = (FOLDER / f"{name}.frame").read_bytes()
    one, sample = frame.parse(data), FRAMES[name]
    assert (one.type, one.message, one.to, one.token) == (sample.type, sample.message, sample.to, sample.token)
    assert (one.source, one.epoch, one.boot, one.seq) == (3, 1, 5, 77)
    site = memberships.parse((FOLDER / "golden.abm").read_bytes())
    assert one.tag == site.genesis[:4] == TAG
    verified = signature.verify(site.by_index[3].key, one.signature, frame.signed(site.genesis, one))
    assert verified == (one.type is not Type.POLL)
    assert len(cobs.encode(data) + b"\0") == len(data) + 2


def test_the_golden_membership_is_read() -> None:
    site = memberships.parse((FOLDER / "golden.abm").read_bytes())
    memberships.check_signed(site)
    assert (site.site, site.epoch, site.digest) == ("plant-7", 1, site.genesis)
    assert [(member.index, member.name, member.voter) for member in site.members] == [(index, f"gw{index}", True) for index in range(4)]
    assert [member.key for member in site.members] == [pair(f"node-{index}").public.raw for index in range(4)]
    assert (site.faults, site.min_up, site.groups, site.approvals, site.stall_ok, site.heartbeat_s) == (1, 1, {"pumps": 1}, 2, False, 5)
    assert (len(site.roots), site.root_threshold, len(site.admins), site.admin_threshold, site.now_threshold) == (2, 1, 3, 1, 2)


def test_the_golden_order_is_read() -> None:
    site = memberships.parse((FOLDER / "golden.abm").read_bytes())
    order = orders.parse((FOLDER / "golden.abo").read_bytes())
    assert len(orders.signers(order, site.admins)) == 2
    assert (order.kind.name, order.genesis, order.epoch, order.admin_seq) == ("UPDATE", site.genesis, 1, 1)
    assert (order.bundle, order.version, order.counter, order.compatible) == (BUNDLE, "2.0", 7, "acme")
    assert (order.sources, order.share) == (("https://updates.example/new.abu", "/media/new.abu"), 75)
    assert (order.width, order.halt_at, order.on_halt.name, order.overdue_s) == (1, 2, "ROLLBACK", 1800)
    assert (order.rollback_to, order.rollback_version) == (OLDER, "1.0")


def test_the_golden_certificate_is_read_and_its_votes_are_good() -> None:
    site = memberships.parse((FOLDER / "golden.abm").read_bytes())
    one = certificate.parse((FOLDER / "golden.certificate").read_bytes())
    assert (one.height, one.round, one.state) == (1, 2, fleetgolden.STATE)
    assert entries.parse(one.entry) == fleetgolden.log_entries()["order"]
    assert [voter for voter, _ in one.signatures] == [0, 1, 3]
    vote = frame.payload(Vote(1, 2, fleetgolden.VALUE))
    for voter, value in one.signatures:
        signed = frame.content(site.genesis, Type.PRECOMMIT, voter, EVERYBODY, 1, vote)
        assert signature.verify(site.by_index[voter].key, value, signed)


def test_the_golden_evidence_is_read_and_its_votes_are_good() -> None:
    site = memberships.parse((FOLDER / "golden.abm").read_bytes())
    proof = evidence.parse((FOLDER / "golden.evidence").read_bytes())
    for data in (proof.first, proof.second):
        one = frame.parse(data)
        assert signature.verify(site.by_index[2].key, one.signature, frame.signed(site.genesis, one))


def test_the_page_is_that_of_the_golden_files() -> None:
    """`python -m tests.formats.fleetgolden` writes it."""
    assert framepage.PAGE.read_text() == framepage.page()


ROW = re.compile(r"^\| (\d+) \| `((?:[0-9a-f]{2})+)` \| (\w+) \| (.+) \|$")


def test_the_page_explains_every_byte() -> None:
    """Read as text: the rows of a section follow on each other, and are the whole file."""
    sections = framepage.PAGE.read_text().split("\n## ")[1:]
    assert [section.split(" ")[0] for section in sections] == [f"{name}.frame" for name in FRAMES]
    for section in sections:
        name, length = section.split("\n")[0].split(" ")[:2]
        rows = [found for found in map(ROW.match, section.splitlines()) if found is not None]
        shown = b""
        for row in rows:
            assert int(row[1]) == len(shown), name
            assert row[4].strip()
            shown += bytes.fromhex(row[2])
        assert shown == (FOLDER / name).read_bytes()
        assert length == f"({len(shown)}"
        assert len(section.splitlines()) == len(rows) + 6
