"""The number of a node's starts in a real (software) TPM: a log that is older than it belongs to a restored snapshot."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from abupdate import fleetwiring
from abupdate.config import load
from abupdate.devices.tpm import BOOTS, TpmFloor
from abupdate.errors import Failed
from abupdate.fleet import identity
from tests.localsite import LocalSite
from tests.swtpm import Tpm
from tests.workstation import Kit

INDEX = 0x1500011


@pytest.fixture(scope="module")
def tpm() -> Iterator[Tpm]:
    with Tpm() as made:
        yield made


@pytest.fixture
def site(tpm: Tpm, kit: Kit) -> Iterator[LocalSite]:
    """The first member alone is started; its TPM's index is not there."""
    tpm.tool("tpm2_nvundefine", "-C", "o", f"{INDEX:#x}")
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="abupdate-", dir=place) as folder:
        made = LocalSite(Path(folder), kit, 3, fleet=f'tpm_nv = {INDEX}\n[floor]\ntpm_tcti = "{tpm.tcti}"')
        try:
            yield made
        finally:
            made.stop()


def counter(site: LocalSite) -> TpmFloor:
    """As the daemon reaches it."""
    settings = load(site.members[0].device.config)
    assert settings.fleet is not None
    key = identity.load(settings.fleet_dir)
    assert key is not None
    found = fleetwiring.starts(settings, settings.fleet, key.public_key)
    assert found is not None
    return found


def stopped(site: LocalSite) -> str:
    member = site.members[0]
    member.start()
    site.until(lambda: bool(member.status()), "answering", 20)
    said = str(member.status()["stopped"])
    member.stop()
    return said


def test_a_log_that_knows_of_as_many_starts_is_believed_and_an_older_one_never_again(site: LocalSite) -> None:
    assert stopped(site) == ""
    counter(site).raise_to(1)
    assert stopped(site) == ""
    counter(site).raise_to(2)
    assert stopped(site) == "", "the second start is in the log"
    counter(site).raise_to(9)
    assert "older than the monotonic counter" in stopped(site)
    assert "older than the monotonic counter" in stopped(site), "it is in the log now"


def test_another_nodes_counter_is_neither_believed_nor_overwritten(site: LocalSite, tpm: Tpm) -> None:
    TpmFloor(INDEX, tpm.tcti, domain=BOOTS + b"another key").raise_to(40)
    with pytest.raises(Failed, match="no number of this node's starts"):
        counter(site).value()
    with pytest.raises(Failed):
        counter(site).raise_to(41)
    assert stopped(site) == ""
    assert "for the peers alone to tell" in site.members[0].log
    assert TpmFloor(INDEX, tpm.tcti, domain=BOOTS + b"another key").value() == 40


def test_without_a_tpm_the_node_starts_all_the_same(site: LocalSite, tpm: Tpm) -> None:
    tpm.stop()
    try:
        assert stopped(site) == ""
    finally:
        tpm.start()
