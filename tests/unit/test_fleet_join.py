"""`fleet join` and `fleet recover` on a device: its key, the membership that names it, and what is refused."""

from __future__ import annotations

import random
import shutil
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from abupdate.durable import LinuxFiles
from abupdate.errors import AbupdateError, ConfigError
from abupdate.fleet import enrolment, identity, store
from abupdate.formats import keyring
from abupdate.formats import membership as memberships
from abupdate.model import Role, RoleName
from tests.workstation import Kit, Result, Workstation, call


@dataclass
class Admin:
    """A workstation that makes memberships; `keys` are the nodes by name, three others fill the site."""

    folder: Path
    kit: Kit
    keys: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        for name in ("anna", "gw2", "gw3", "gw4"):
            self.kit.make("keys", "generate", self.folder / name)
        self.keys = {name: f"{name}.pub" for name in ("gw2", "gw3", "gw4")}

    def write(self, name: str = "site", root: str = "root") -> Path:
        path = self.folder / f"{name}.toml"
        lines = [f'site = "{name}"', f'roots = ["{self.kit.folder / root}.pub"]', 'admins = ["anna.pub"]']
        path.write_text("\n".join([*lines, *(f'[nodes.{node}]\nkey = "{key}"' for node, key in self.keys.items())]))
        return path

    def init(self, output: str, *words: str | Path, name: str = "site", root: str = "root", signer: str = "root") -> Path:
        path = self.folder / output
        self.kit.make("fleet", "init", self.write(name, root), "-o", path, "--key", self.kit.folder / f"{signer}.pem", *words)
        return path


@pytest.fixture
def admin(tmp_path: Path, kit: Kit) -> Admin:
    return Admin(tmp_path / "admin", kit)


@pytest.fixture
def device(workstation: Workstation) -> Workstation:
    text = workstation.config.read_text()
    workstation.config.write_text(f'{text}[fleet]\nudp_interface = "lo"\n')
    return workstation


def enrol(device: Workstation, admin: Admin) -> Path:
    """The device's key is in the site, as gw1; the signed membership."""
    admin.keys = {"gw1": device.ok("--json", "fleet", "join").document["key"], **admin.keys}
    return admin.init("site.abm")


def refused(device: Workstation, code: int, text: str, *words: str | Path) -> None:
    """The verb ends with this code, says why in one line, and changes nothing."""
    before = fleet_files(device)
    done: Result = device.run("fleet", *words)
    assert (done.code, done.out) == (code, ""), done
    assert text in done.err, done.err
    assert done.err.count("\n") == 1
    assert fleet_files(device) == before


def fleet_files(device: Workstation) -> dict[str, bytes]:
    folder = device.state / "fleet"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "lock"} if folder.is_dir() else {}


def test_enrolment_takes_two_commands(device: Workstation, admin: Admin) -> None:
    shown = device.ok("fleet", "join").out
    (node,) = tomllib.loads(shown)["nodes"].values()
    key = identity.load(device.state / "fleet")
    assert key is not None
    assert node == {"key": key.public_key.hex()}
    document = device.ok("--json", "fleet", "join", enrol(device, admin)).document
    assert document == {"site": "site", "epoch": 1, "node": "gw1", "index": 0, "voter": True}
    (found,) = enrolment.load(device.state / "fleet")
    assert enrolment.member(found, key.public_key).name == "gw1"
    again = device.ok("fleet", "join").out
    assert "# this device is gw1 of site site, epoch 1" in again
    assert tomllib.loads(again)["nodes"]
    shown_document = device.ok("--json", "fleet", "join").document
    assert (shown_document["site"], shown_document["node"], shown_document["key"]) == ("site", "gw1", node["key"])


def test_what_is_kept_is_for_root_alone(device: Workstation, admin: Admin) -> None:
    device.ok("fleet", "join", enrol(device, admin))
    for path in (device.state / "fleet").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((device.state / "fleet").stat().st_mode) == 0o700


def test_the_same_membership_again_is_nothing_to_do(device: Workstation, admin: Admin) -> None:
    file = enrol(device, admin)
    device.ok("fleet", "join", file)
    refused(device, 4, "already", "join", file)


def test_the_next_epoch_is_taken_and_never_an_older_one(device: Workstation, admin: Admin) -> None:
    first = enrol(device, admin)
    second = admin.init("second.abm", "--previous", first)
    third = admin.init("third.abm", "--previous", second)
    other = shutil.copy(second, admin.folder / "copy.abm")
    device.ok("fleet", "join", first)
    assert device.ok("--json", "fleet", "join", second).document["epoch"] == 2
    refused(device, 4, "already", "join", other)
    refused(device, 3, "epoch 1", "join", first)
    assert device.ok("--json", "fleet", "join", third).document["epoch"] == 3


def test_a_device_that_missed_an_epoch_takes_the_newest(device: Workstation, admin: Admin) -> None:
    first = enrol(device, admin)
    third = admin.init("third.abm", "--previous", admin.init("second.abm", "--previous", first))
    device.ok("fleet", "join", first)
    assert device.ok("--json", "fleet", "join", third).document["epoch"] == 3
    # The log that the device has begins in epoch 1.
    assert [one.epoch for one in enrolment.load(device.state / "fleet")] == [1, 3]


def test_no_more_epochs_are_kept_than_a_log_may_need(device: Workstation, admin: Admin) -> None:
    file = enrol(device, admin)
    device.ok("fleet", "join", file)
    for epoch in range(2, 12):
        file = admin.init(f"{epoch}.abm", "--previous", file)
        device.ok("fleet", "join", file)
    assert [one.epoch for one in enrolment.load(device.state / "fleet")] == list(range(4, 12))


def test_two_memberships_of_one_epoch(device: Workstation, admin: Admin) -> None:
    first = enrol(device, admin)
    second = admin.init("second.abm", "--previous", first)
    del admin.keys["gw4"]
    twin = admin.init("twin.abm", "--previous", first)
    device.ok("fleet", "join", first)
    device.ok("fleet", "join", second)
    refused(device, 3, "epoch 2", "join", twin)


def test_who_is_not_named_is_not_a_member(device: Workstation, admin: Admin) -> None:
    device.ok("fleet", "join")
    refused(device, 3, "does not name this device's key", "join", admin.init("site.abm"))


def test_root_keys_that_the_device_does_not_trust(device: Workstation, admin: Admin, kit: Kit) -> None:
    enrol(device, admin)
    file = admin.init("strange.abm", root="stranger", signer="stranger")
    refused(device, 3, "0 of the root keys that this device trusts", "join", file)


def test_a_membership_that_is_not_signed(device: Workstation, admin: Admin) -> None:
    admin.keys = {"gw1": device.ok("--json", "fleet", "join").document["key"], **admin.keys}
    file = admin.folder / "unsigned.abm"
    assert call("fleet", "init", admin.write(), "-o", file).code == 0
    refused(device, 3, "signed", "join", file)


def test_another_site_is_refused_until_the_device_leaves(device: Workstation, admin: Admin) -> None:
    device.ok("fleet", "join", enrol(device, admin))
    other = admin.init("other.abm", name="other")
    refused(device, 3, "another site, site", "join", other)
    before = device.ok("--json", "fleet", "join").document["key"]
    anew = device.ok("--json", "fleet", "join", "--anew").document
    assert (anew["site"], anew["key"] != before) == (None, True)
    refused(device, 3, "does not name", "join", other)
    admin.keys["gw1"] = anew["key"]
    assert device.ok("--json", "fleet", "join", admin.init("other2.abm", name="other")).document["site"] == "other"
    assert {"membership.old", "node.key.old", "log.old"} <= fleet_files(device).keys()


def test_anew_on_a_device_that_has_lost_everything_is_a_beginning_like_any_other(device: Workstation) -> None:
    first = device.ok("--json", "fleet", "join", "--anew").document["key"]
    assert device.ok("--json", "fleet", "join").document["key"] == first


def test_anew_goes_with_no_membership(device: Workstation, admin: Admin) -> None:
    file = enrol(device, admin)
    refused(device, 2, "--anew", "join", "--anew", file)


def test_nobody_leaves_while_the_daemon_runs(device: Workstation, admin: Admin) -> None:
    device.ok("fleet", "join", enrol(device, admin))
    with store.hold(device.state / "fleet"):
        refused(device, 5, "daemon", "join", "--anew")


@pytest.mark.parametrize("words", [("join",), ("recover",)])
def test_a_file_that_is_none(device: Workstation, tmp_path: Path, words: tuple[str, ...]) -> None:
    device.ok("fleet", "join")
    refused(device, 2, "absent.abm", *words, "absent.abm")
    file = tmp_path / "file"
    for data in (b"", b"x", random.Random(1).randbytes(1 << 20)):
        file.write_bytes(data)
        refused(device, 3, "", *words, file)


def test_bits_that_flip_on_the_way(device: Workstation, admin: Admin, tmp_path: Path) -> None:
    good = enrol(device, admin).read_bytes()
    file = tmp_path / "file"
    for place in range(0, len(good), 5):
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        refused(device, 3, "", "join", file)


def test_a_membership_that_was_damaged_on_the_device_is_put_back(device: Workstation, admin: Admin) -> None:
    file = enrol(device, admin)
    device.ok("fleet", "join", file)
    kept = device.state / "fleet" / enrolment.MEMBERSHIP
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="membership"):
        enrolment.load(device.state / "fleet")
    device.ok("fleet", "join", file)
    assert kept.read_bytes() == file.read_bytes()


def test_without_the_section_there_is_a_warning(workstation: Workstation, admin: Admin, caplog: pytest.LogCaptureFixture) -> None:
    workstation.ok("fleet", "join", enrol(workstation, admin))
    assert "no section [fleet]" in caplog.text


class Cut(Exception):
    """The power is cut."""


class Cutting(LinuxFiles):
    """Real files, until the call of this number; from then on nothing happens any more."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def _count(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise Cut

    def rename(self, path: Path, target: Path) -> None:
        self._count()
        super().rename(path, target)

    def unlink(self, path: Path) -> None:
        self._count()
        super().unlink(path)

    def fsync(self, descriptor: int) -> None:
        self._count()
        super().fsync(descriptor)

    def fdatasync(self, descriptor: int) -> None:
        self._count()
        super().fdatasync(descriptor)


def recovered(device: Workstation, admin: Admin) -> Path:
    """The device is in a site that begins anew with this file."""
    first = enrol(device, admin)
    device.ok("fleet", "join", first)
    return admin.init("anew.abm", "--recover", first, "--height", "40", "--lease", "gw1=17")


def test_a_new_beginning_keeps_the_key_and_empties_the_log(device: Workstation, admin: Admin) -> None:
    file = recovered(device, admin)
    before = fleet_files(device)
    refused(device, 3, "fleet recover", "join", file)
    assert device.ok("--json", "fleet", "recover", file).document["node"] == "gw1"
    after = fleet_files(device)
    assert (after["node.key"], after["log.old"]) == (before["node.key"], before["log"])
    assert after["log"] != before["log"]
    assert after["membership"] == file.read_bytes()
    contents = store.peek(device.state / "fleet")
    assert contents is not None
    assert (contents.records, contents.damaged) == ((), False)


def test_a_new_log_is_not_thrown_away(device: Workstation, admin: Admin) -> None:
    file = recovered(device, admin)
    device.ok("fleet", "recover", file)
    refused(device, 4, "already", "recover", file)


def test_no_new_beginning_while_the_daemon_runs(device: Workstation, admin: Admin) -> None:
    file = recovered(device, admin)
    with store.hold(device.state / "fleet"):
        refused(device, 5, "daemon", "recover", file)


def test_a_device_of_another_site_or_of_none(device: Workstation, admin: Admin, tmp_path: Path) -> None:
    refused(device, 3, "no new beginning", "recover", enrol(device, admin))
    file = recovered_elsewhere(device, admin)
    device.ok("fleet", "join", admin.folder / "site.abm")
    refused(device, 3, "another site", "recover", file)


def recovered_elsewhere(device: Workstation, admin: Admin) -> Path:
    first = admin.init("other.abm", name="other")
    return admin.init("other-anew.abm", "--recover", first, "--height", "1", name="other")


def test_a_device_that_has_no_key(device: Workstation, admin: Admin) -> None:
    first = admin.init("site.abm")
    file = admin.init("anew.abm", "--recover", first, "--height", "1")
    refused(device, 2, "no node key", "recover", file)


def test_a_new_beginning_that_is_cut_anywhere_is_finished_by_the_same_command(device: Workstation, admin: Admin) -> None:
    """In between no daemon can start: the membership is not given out, or the log is still the old one with the old membership."""
    file = recovered(device, admin)
    folder = device.state / "fleet"
    keep = device.folder / "keep"
    shutil.copytree(folder, keep)
    role = trusted_roots(device)
    count = 0
    while True:
        shutil.rmtree(folder)
        shutil.copytree(keep, folder)
        try:
            enrolment.recover(folder, file.read_bytes(), role, files=Cutting(count))
        except Cut:
            pass
        else:
            break
        assert_not_startable(folder, keep)
        # Cut behind the last name that changes, it is done already.
        is_done = not (folder / enrolment.RECOVERING).exists() and (folder / "log.old").exists()
        assert device.run("fleet", "recover", file).code == (4 if is_done else 0)
        (found,) = enrolment.load(folder)
        assert found.digest == memberships.parse(file.read_bytes()).digest
        contents = store.peek(folder)
        assert contents is not None
        assert contents.records == ()
        count += 1
    assert count > 8, "there is something to cut"


def assert_not_startable(folder: Path, keep: Path) -> None:
    try:
        (found,) = enrolment.load(folder)
    except AbupdateError:
        return
    log_is_old = (folder / "log").exists() and (folder / "log").read_bytes() == (keep / "log").read_bytes()
    done = not (folder / enrolment.RECOVERING).exists() and found.recovery is not None
    assert log_is_old == (found.recovery is None)
    assert log_is_old or done


def trusted_roots(device: Workstation) -> Role:
    """The root role of the device's keyring."""
    return keyring.parse((device.folder / "ring.abk").read_bytes()).roles[RoleName.ROOT]


def test_a_leave_that_is_cut_anywhere_lets_nobody_vote_and_is_finished_by_the_same_call(device: Workstation, admin: Admin) -> None:
    device.ok("fleet", "join", enrol(device, admin))
    folder = device.state / "fleet"
    keep = device.folder / "keep"
    shutil.copytree(folder, keep)
    old = fleet_files(device)
    seen: set[tuple[bool, ...]] = set()
    for count in range(100):
        shutil.rmtree(folder)
        shutil.copytree(keep, folder)
        try:
            enrolment.leave(folder, files=Cutting(count))
        except Cut:
            pass
        else:
            break
        left = tuple((folder / name).exists() for name in (store.LOG, identity.KEY, enrolment.MEMBERSHIP))
        # Whole as before, or the log is away already; and the key is away before the membership.
        assert left in {(True, True, True), (False, True, True), (False, False, True), (False, False, False)}
        seen.add(left)
        enrolment.leave(folder)
        now = fleet_files(device)
        assert {name: now[f"{name}.old"] for name in (store.LOG, identity.KEY, enrolment.MEMBERSHIP)} == old
        assert (identity.load(folder), enrolment.load(folder)) == (None, ())
    assert len(seen) == 4


def test_a_device_leaves_out_of_a_recovery_that_was_cut_short(device: Workstation, admin: Admin) -> None:
    file = recovered(device, admin)
    folder = device.state / "fleet"
    with pytest.raises(Cut):
        enrolment.recover(folder, file.read_bytes(), trusted_roots(device), files=CutBehindTheMark(100))
    refused(device, 2, "cut short", "join")
    assert device.ok("--json", "fleet", "join", "--anew").document["site"] is None
    assert not (folder / enrolment.RECOVERING).exists()


class CutBehindTheMark(Cutting):
    """The power is cut when the log is to be put aside."""

    def rename(self, path: Path, target: Path) -> None:
        if path.name == store.LOG:
            raise Cut
        super().rename(path, target)
