"""The anti-downgrade floor with all its copies in real files and a real (software) TPM: losing or rolling back one does not lower it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from abupdate import wiring
from abupdate.config import load
from abupdate.devices import tpm as adapter
from abupdate.devices.notify import Notifier
from abupdate.devices.statedir import StateDir
from abupdate.devices.thisboot import LinuxBoot
from abupdate.devices.tpm import TpmFloor
from abupdate.errors import ConfigError, Failed
from abupdate.formats import record as records
from abupdate.model import MAX_COUNTER
from abupdate.operations.outside import OutsideFloor
from abupdate.operations.service import Hardware, Numbers, Service
from tests.swtpm import Tpm
from tests.workstation import Kit, Workstation

INDEX = 0x1500010
NAME = f"{INDEX:#x}"


@pytest.fixture(scope="module")
def tpm() -> Iterator[Tpm]:
    with Tpm() as made:
        yield made


@pytest.fixture
def empty(tpm: Tpm) -> Tpm:
    """Without our index."""
    tpm.tool("tpm2_nvundefine", "-C", "o", NAME)
    return tpm


def copy(tpm: Tpm, patience_s: float = 20.0) -> TpmFloor:
    return TpmFloor(INDEX, tpm.tcti, patience_s)


class Site:
    """A workstation with a TPM: v1 confirmed on B, then v3 on A. `earlier` and `now` keep both states; `back` returns to the latter."""

    def __init__(self, folder: Path, kit: Kit, tpm: Tpm) -> None:
        self.tpm = tpm
        self.kept = folder / "kept"
        (folder / "device").mkdir()
        self.workstation = Workstation(folder / "device", kit)
        with self.workstation.config.open("a") as config:
            config.write(f'[floor]\ntpm_nv = {NAME}\ntpm_tcti = "{tpm.tcti}"\n')
        self.workstation.confirmed("v1", "B")
        self.keep("earlier")
        self.workstation.confirmed("v3", "A")
        self.keep("now")

    def keep(self, name: str) -> None:
        shutil.copytree(self.workstation.folder, self.kept / name)
        self.tpm.save(self.kept / f"{name}-tpm")

    def back(self) -> None:
        for path in self.kept.joinpath("now").rglob("*"):
            if path.is_file():
                target = self.workstation.folder / path.relative_to(self.kept / "now")
                if not target.is_file() or target.read_bytes() != path.read_bytes():
                    shutil.copyfile(path, target)
        if self.tpm.tool("tpm2_nvread", "-C", NAME, "-s", "16", NAME).stdout != adapter.encode(3):
            self.tpm.restore(self.kept / "now-tpm")

    def lose(self, name: str, how: str) -> None:
        """how: "lost", "rolled back" or "damaged"."""
        if name == "tpm":
            if how == "rolled back":
                self.tpm.restore(self.kept / "earlier-tpm")
                assert copy(self.tpm).value() == 1
            else:
                assert self.tpm.tool("tpm2_nvundefine", "-C", "o", NAME).returncode == 0
            if how == "damaged":
                assert self.tpm.tool("tpm2_nvdefine", "-C", "o", "-s", "16", "-a", adapter.ATTRIBUTES, NAME).returncode == 0
                assert self.tpm.tool("tpm2_nvwrite", "-C", NAME, "-i", "-", NAME, data=b"\xff" * 16).returncode == 0
        elif name == "mirror":
            self.workstation.setenv("BOOT_FLOOR", {"lost": "", "rolled back": "1", "damaged": "1" + "f" * 16}[how])
        else:
            path = self.workstation.state / name
            if how == "lost":
                path.unlink()
            elif how == "rolled back":
                earlier = self.kept / "earlier/state" / name
                path.write_bytes((earlier if earlier.exists() else self.kept / "earlier/state/head.B").read_bytes())
            else:
                path.write_bytes(path.read_bytes()[:-7] + bytes(7))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, kit: Kit, tpm: Tpm) -> Iterator[Site]:
    tpm.tool("tpm2_nvundefine", "-C", "o", NAME)
    memory = Path("/dev/shm")
    folder = tmp_path_factory.mktemp("site") if not os.access(memory, os.W_OK) else memory / f"abupdate-floor-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    yield Site(folder, kit, tpm)
    shutil.rmtree(folder)


@pytest.fixture
def site(made: Site) -> Site:
    made.back()
    return made


def refused(site: Site) -> None:
    """An older bundle is refused, with nothing written."""
    workstation = site.workstation
    before = workstation.snapshot()
    done = workstation.run("flash", workstation.kit["v2"])
    assert (done.code, "this device has confirmed 3" in done.err) == (3, True), done.err
    assert workstation.snapshot() == before


COPIES = ("record.0", "record.1", "head.A", "mirror", "tpm")


def test_every_copy_rises_at_confirm_and_not_at_flash(site: Site) -> None:
    earlier = site.kept / "earlier"
    assert [records.decode((earlier / "state" / name).read_bytes())[1].floor for name in COPIES[:2]] == [1, 1]
    assert [records.decode((site.workstation.state / name).read_bytes())[1].floor for name in COPIES[:2]] == [3, 3]
    assert site.workstation.printed()["BOOT_FLOOR"] == "3"
    assert copy(site.tpm).value() == 3
    bundle = site.workstation.kit.bundle("v5", version="5.0", counter=5, seed=5)
    site.workstation.ok("flash", bundle)
    assert site.workstation.printed()["BOOT_FLOOR"] == "3"
    assert copy(site.tpm).value() == 3
    assert site.workstation.status()["floor"] == 3
    site.workstation.ok("revert")
    refused(site)


@pytest.mark.parametrize("how", ["lost", "rolled back", "damaged"])
@pytest.mark.parametrize("name", COPIES)
def test_losing_one_copy_does_not_lower_it(site: Site, name: str, how: str) -> None:
    site.lose(name, how)
    refused(site)
    done = site.workstation.run("revert")
    assert (done.code, "below the floor 3" in done.err) == (3, True), done.err


@pytest.mark.parametrize("left", ["record.0", "record.1", "head.A", "mirror", "tpm"])
def test_one_copy_alone_is_enough(site: Site, left: str) -> None:
    for name in COPIES:
        if name != left:
            site.lose(name, "lost")
    refused(site)


def test_activate_asks_the_tpm_too(site: Site) -> None:
    site.workstation.ok("flash", site.workstation.kit.bundle("v5", version="5.0", counter=5, seed=5), "--no-activate")
    copy(site.tpm).raise_to(7)
    before = site.workstation.snapshot()
    done = site.workstation.run("activate")
    assert (done.code, "this device has confirmed 7" in done.err) == (3, True), done.err
    assert site.workstation.snapshot() == before


def test_without_any_copy_nothing_is_known(site: Site) -> None:
    """The control: the tests above are refused for the copies' sake alone."""
    for name in COPIES:
        site.lose(name, "lost")
    site.workstation.ok("flash", site.workstation.kit["v2"])


def test_all_of_state_dir_put_back_to_an_earlier_day(site: Site) -> None:
    shutil.rmtree(site.workstation.state)
    shutil.copytree(site.kept / "earlier/state", site.workstation.state)
    refused(site)
    site.lose("mirror", "rolled back")
    refused(site)


def serve(workstation: Workstation, root: Path) -> None:
    """The service's start on a confirmed slot, then its end."""
    (root / "proc/sys/kernel/random").mkdir(parents=True, exist_ok=True)
    (root / "proc/sys/kernel/random/boot_id").write_text("this boot\n")

    class Up(Notifier):
        def ready(self, status: str = "") -> bool:
            os.kill(os.getpid(), signal.SIGTERM)
            return True

    def never(*given: object) -> None:
        raise AssertionError(given)

    settings = load(workstation.config)
    board = wiring.tolerant(settings, service=True)
    board = replace(board, boot=LinuxBoot({}, Path("/dev/watchdog0"), settings.device.booted, root))
    hardware = Hardware(never, lambda: False, False, False, False, never, never, lambda: False)  # type: ignore[arg-type]
    assert Service(board, never, hardware, Up({}), Numbers(300.0, 120, 30)).run() == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["lost", "rolled back"])
def test_the_service_raises_copies_that_are_behind(site: Site, tmp_path: Path, how: str) -> None:
    """So copies lost one after the other do not lower it either."""
    for name in ("mirror", "tpm"):
        site.lose(name, how)
        serve(site.workstation, tmp_path)
    assert site.workstation.printed()["BOOT_FLOOR"] == "3"
    assert copy(site.tpm).value() == 3
    for name in ("record.0", "record.1", "head.A"):
        site.lose(name, how)
    refused(site)


def test_doctor_shows_and_raises_copies_that_are_behind(site: Site) -> None:
    def floors() -> dict[str, str]:
        rows = site.workstation.run("--json", "doctor").document["findings"]
        return {row["text"]: row["grade"] for row in rows if row["topic"] == "floor"}

    assert set(floors().values()) == {"ok"}
    site.lose("mirror", "lost")
    site.lose("tpm", "rolled back")
    assert floors() == {
        "the record says 3": "ok",
        "the boot store says 0, the floor is 3": "warn",
        f"the TPM index {NAME} says 1, the floor is 3": "warn",
    }
    done = site.workstation.run("doctor", "--fix")
    assert "raised to 3" in done.err
    assert set(floors().values()) == {"ok"}
    assert copy(site.tpm).value() == 3
    site.tpm.stop()
    try:
        assert "warn" in floors().values()
    finally:
        site.tpm.start()


def test_the_bootloaders_own_fallback_is_exempt(site: Site, tmp_path: Path) -> None:
    workstation = site.workstation
    workstation.setenv("BOOT_A_LEFT", "0")
    workstation.reboot("B")
    serve(workstation, tmp_path)
    document = workstation.status()
    assert (document["booted"], document["primary"], document["situation"], document["floor"]) == ("B", "B", "steady", 3)
    assert document["slots"]["B"]["version"] == "1.0"
    refused(site)
    workstation.ok("flash", workstation.kit["v3"])
    workstation.reboot("A")
    workstation.ok("confirm")


def test_a_fallback_of_a_trial_does_not_raise_it(site: Site) -> None:
    workstation = site.workstation
    workstation.ok("flash", workstation.kit.bundle("v5", version="5.0", counter=5, seed=5))
    workstation.reboot("B")
    assert workstation.status()["floor"] == 3
    workstation.ok("revert")
    workstation.reboot("A")
    workstation.ok("flash", workstation.kit.bundle("v4", version="4.0", counter=4, seed=4))


@pytest.mark.parametrize("name", ["record.0", "head.B"])
def test_confirm_with_a_witness_of_an_earlier_day(site: Site, name: str) -> None:
    """Record and stored manifest both tell what is being confirmed; the other one still does."""
    workstation = site.workstation
    workstation.ok("flash", workstation.kit.bundle("v5", version="5.0", counter=5, seed=5))
    workstation.reboot("B")
    for file in ("record.0", "record.1") if name == "record.0" else (name,):
        shutil.copyfile(site.kept / "now/state" / file, workstation.state / file)
    workstation.ok("confirm")
    assert workstation.printed()["BOOT_FLOOR"] == "5"
    assert copy(site.tpm).value() == 5


def put(site: Site, name: str, counter: int) -> None:
    """Let one copy say this, whole as it is."""
    if name == "mirror":
        site.workstation.setenv("BOOT_FLOOR", f"{counter:x}")
    elif name == "record.0":
        path = site.workstation.state / name
        sequence, known = records.decode(path.read_bytes())
        path.write_bytes(records.encode(replace(known, floor=counter), sequence))
    else:
        copy(site.tpm).raise_to(counter)


@pytest.mark.parametrize("name", ["mirror", "record.0", "tpm"])
def test_an_absurd_copy_stops_updates_but_not_the_device(site: Site, name: str) -> None:
    """A copy that is whole is believed, whatever it says: to pass over the highest one is how a rollback would look. Doctor names it."""
    workstation = site.workstation
    absurd = MAX_COUNTER
    put(site, name, absurd)
    assert workstation.run("flash", workstation.kit.bundle("v5", version="5.0", counter=5, seed=5)).code == 3
    assert workstation.status()["situation"] == "steady"
    findings = workstation.run("--json", "doctor").document["findings"]
    label = {"mirror": "boot store", "record.0": "record", "tpm": f"TPM index {NAME}"}[name]
    assert f"only the {label} says {absurd}, every other copy at most 3" in [row["text"] for row in findings]


@pytest.mark.parametrize("name", ["mirror", "record.0", "tpm"])
def test_a_copy_that_no_bundle_could_have_made_is_damage(site: Site, name: str) -> None:
    """It stops no update, and does not spread to the copies that are right."""
    workstation, beyond = site.workstation, MAX_COUNTER + 1
    put(site, name, beyond)
    assert workstation.run("flash", workstation.kit["v1"]).code == 3
    workstation.ok("flash", workstation.kit.bundle("v5", version="5.0", counter=5, seed=5))
    workstation.reboot("B")
    workstation.ok("confirm")
    assert workstation.printed()["BOOT_FLOOR"] == "5"
    assert workstation.run("flash", workstation.kit["v3"]).code == 3


@pytest.mark.parametrize("how", ["lost", "rolled back"])
@pytest.mark.parametrize("names", [("record.0", "record.1"), ("head.B",)], ids=" and ".join)
def test_revert_below_the_floor_with_what_tells_of_the_other_slot_gone(site: Site, names: tuple[str, ...], how: str) -> None:
    """B holds v1, the floor is 3: the record knows it, and so does the stored manifest."""
    workstation = site.workstation
    for name in names:
        if how == "lost":
            (workstation.state / name).unlink()
        elif name.startswith("record"):
            # As if B had held the newest that was ever there.
            sequence, known = records.decode((workstation.state / name).read_bytes())
            newer = replace(known, slots={**known.slots, "B": replace(known.slots["B"], counter=7)})
            (workstation.state / name).write_bytes(records.encode(newer, sequence))
        else:
            (workstation.state / name).write_bytes((workstation.state / "head.A").read_bytes())
    done = workstation.run("revert")
    assert (done.code, "slot B has security counter 1, below the floor 3" in done.err) == (3, True), done.err


def test_a_trial_is_confirmed_under_an_absurd_floor(site: Site) -> None:
    workstation = site.workstation
    workstation.ok("flash", workstation.kit.bundle("v5", version="5.0", counter=5, seed=5))
    workstation.reboot("B")
    workstation.setenv("BOOT_FLOOR", "f" * 16)
    workstation.ok("confirm")


def test_a_tpm_that_is_missing_blocks_nothing(site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    workstation = site.workstation

    def warnings() -> int:
        said = [one.getMessage() for one in caplog.records]
        caplog.clear()
        assert all(line.startswith("the other copies of the floor decide: ") for line in said)
        return len(said)

    site.tpm.stop()
    try:
        bundle = workstation.kit.bundle("v5", version="5.0", counter=5, seed=5)
        workstation.ok("flash", bundle)
        assert warnings() == 1
        workstation.reboot("B")
        done = workstation.ok("--json", "confirm")
        assert done.document["confirmed"]
        assert warnings() == 1
        workstation.ok("status")
        assert warnings() == 0, "status does not ask"
        assert workstation.run("revert").code == 3
        assert workstation.run("flash", workstation.kit["v3"]).code == 3
    finally:
        site.tpm.start()
    assert copy(site.tpm).value() == 3
    serve(workstation, tmp_path)
    assert copy(site.tpm).value() == 5


# -- the adapter


def test_an_index_is_made_raised_and_never_lowered(empty: Tpm) -> None:
    floor = copy(empty)
    assert floor.value() == 0
    floor.raise_to(0)
    assert NAME not in empty.tool("tpm2_getcap", "handles-nv-index").stdout.decode().lower()
    for counter, expected in ((7, 7), (7, 7), (3, 7), (20261123, 20261123), ((1 << 64) - 1, (1 << 64) - 1)):
        floor.raise_to(counter)
        assert floor.value() == expected
    public = empty.tool("tpm2_nvreadpublic", NAME).stdout.decode()
    assert "size: 16" in public
    assert "no_da" in public


def test_an_index_that_was_made_and_never_written(empty: Tpm) -> None:
    assert empty.tool("tpm2_nvdefine", "-C", "o", "-s", "16", "-a", adapter.ATTRIBUTES, NAME).returncode == 0
    assert copy(empty).value() == 0
    copy(empty).raise_to(4)
    assert copy(empty).value() == 4


@pytest.mark.parametrize(
    ("size", "content"), [(16, bytes(16)), (16, b"\xff" * 16), (8, bytes(7) + b"\5"), (32, b"another program's own value 1234")]
)
def test_what_another_program_keeps_is_neither_believed_nor_touched(empty: Tpm, size: int, content: bytes) -> None:
    assert empty.tool("tpm2_nvdefine", "-C", "o", "-s", str(size), "-a", adapter.ATTRIBUTES, NAME).returncode == 0
    assert empty.tool("tpm2_nvwrite", "-C", NAME, "-i", "-", NAME, data=content).returncode == 0
    with pytest.raises(Failed):
        copy(empty).value()
    with pytest.raises(Failed):
        copy(empty).raise_to(9)
    assert empty.tool("tpm2_nvread", "-C", NAME, "-s", str(size), NAME).stdout == content


def test_an_owner_with_a_password_is_asked_to_make_it(empty: Tpm) -> None:
    assert empty.tool("tpm2_changeauth", "-c", "o", "secret").returncode == 0
    try:
        with pytest.raises(Failed) as caught:
            copy(empty).raise_to(4)
        assert copy(empty).define_command() in caught.value.hint
        made = empty.tool("tpm2_nvdefine", "-C", "o", "-P", "secret", "-s", "16", "-a", adapter.ATTRIBUTES, NAME)
        assert made.returncode == 0
        copy(empty).raise_to(4)
        assert copy(empty).value() == 4
    finally:
        assert empty.tool("tpm2_changeauth", "-c", "o", "-p", "secret", "").returncode == 0


def test_a_tool_that_hangs_is_bounded() -> None:
    """The real tool, whose TPM never answers."""
    before = time.monotonic()
    with pytest.raises(Failed, match="does not answer"):
        TpmFloor(INDEX, f"cmd:sleep 4712.{os.getpid()}", 0.5).raise_to(3)
    assert time.monotonic() - before < 5
    word = f"4712.{os.getpid()}".encode()
    end = time.monotonic() + 10
    while left := [path for path in Path("/proc").glob("[0-9]*/cmdline") if word in _read(path)]:
        assert time.monotonic() < end, left
        time.sleep(0.01)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("trap '' TERM; exec yes", "does not answer"),
        ("printf 'ERROR: \\033[31mhostile\\nERROR: more\\n' >&2; exit 1", r": +\[31mhostile"),
        ("head -c 5000000 /dev/zero", "no floor"),
        ("exit 0", "no floor"),
        ("kill -SEGV $$", "no word why"),
    ],
)
def test_strange_tools(tmp_path: Path, body: str, match: str) -> None:
    tool = tmp_path / "tpm2_nvread"
    tool.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{body}\n")
    tool.chmod(0o755)
    with pytest.raises(Failed, match=match) as caught:
        TpmFloor(INDEX, "device:/dev/none", 0.3 if "yes" in body else 20.0, str(tmp_path)).value()
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("wrote", "match"),
    [
        ("cat > /dev/null", "does not show the counter 3"),
        ("cat > /dev/null; rm INDEX", "does not show the counter 3"),
        ("head -c 8 > INDEX", "no floor"),
        ("echo 'ERROR: locked' >&2; exit 1", "tpm2_nvwrite: locked"),
        ("cat > INDEX", ""),
    ],
    ids=["forgets", "loses the index", "half of it", "refuses", "writes"],
)
def test_a_floor_is_raised_when_the_tpm_shows_it(tmp_path: Path, wrote: str, match: str) -> None:
    index = tmp_path / "index"
    index.write_bytes(adapter.encode(2))
    reading = "cat INDEX && exit; echo 'ERROR: Esys_NV_ReadPublic(0x18B) - tpm:handle(1):the handle is not correct' >&2; exit 1"
    for name, body in (("tpm2_nvread", reading), ("tpm2_nvwrite", wrote)):
        (tmp_path / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{body}\n".replace("INDEX", str(index)))
        (tmp_path / name).chmod(0o755)
    floor = TpmFloor(INDEX, "device:/dev/none", 20.0, str(tmp_path))
    floor.raise_to(2)
    if match:
        with pytest.raises(Failed, match=match):
            floor.raise_to(3)
    else:
        floor.raise_to(3)
        assert floor.value() == 3


def test_without_the_tools(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="tpm2_nvread is not there") as caught:
        TpmFloor(INDEX, "device:/dev/none", 1.0, str(tmp_path)).value()
    assert "tpm2-tools" in caught.value.hint


def test_a_copy_that_fails_is_tried_again_seldom(caplog: pytest.LogCaptureFixture) -> None:
    class Copy:
        name = "chip"
        works = False
        calls = 0
        counter = 2

        def value(self) -> int:
            self.calls += 1
            if not self.works:
                raise Failed("the chip is silent")
            return self.counter

        def raise_to(self, counter: int) -> None:
            self.calls += 1
            self.counter = counter

    now = 1000.0
    chip = Copy()
    outside = OutsideFloor(chip, lambda: now)
    for _ in range(5):
        assert outside.value() == 0
        outside.raise_to(3)
    assert (chip.calls, len(caplog.records)) == (1, 1)
    now += 61
    assert outside.value() == 0
    assert (chip.calls, len(caplog.records)) == (2, 1)
    chip.works = True
    now += 61
    outside.raise_to(3)
    assert (outside.value(), chip.counter, chip.calls, outside.problem) == (3, 3, 4, None)


def test_a_copy_that_is_read_and_cannot_be_written_blocks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """An index that its owner has locked: the confirmation before it stands, and is no failure."""

    class Copy:
        name = "chip"

        def value(self) -> int:
            return 2

        def raise_to(self, counter: int) -> None:
            raise Failed("the chip is locked")

    outside = OutsideFloor(Copy())
    for _ in range(3):
        outside.raise_to(3)
    assert outside.problem is not None
    assert outside.problem.message == "the chip is locked"
    assert len(caplog.records) == 1


def test_the_section_of_the_configuration(workstation: Workstation) -> None:
    assert load(workstation.config).floor.tpm_nv == 0
    assert wiring.board(load(workstation.config), outside=True).outside is None
    text = workstation.config.read_text()
    workstation.config.write_text(text + f"[floor]\ntpm_nv = {NAME}\n")
    assert load(workstation.config).floor.tpm_tcti == "device:/dev/tpmrm0"
    assert wiring.board(load(workstation.config)).outside is None
    for value in ("0x81000001", "0x1c00002", '"0x1500010"', "0"):
        workstation.config.write_text(text + f"[floor]\ntpm_nv = {value}\n")
        with pytest.raises(ConfigError, match="tpm_nv"):
            load(workstation.config)


def test_saving_the_record_keeps_what_the_other_file_knew(site: Site) -> None:
    """Of two whole files the newer counts; the floor of the older one must not be lost when both are written anew."""
    workstation = site.workstation
    for name in ("mirror", "tpm", "head.A"):
        site.lose(name, "lost")
    state = StateDir(workstation.state)
    known, _ = state.load()
    assert known is not None
    (workstation.state / "record.0").write_bytes(records.encode(replace(known, floor=1), 1000))
    assert workstation.status()["floor"] == 3
    workstation.ok("flash", workstation.kit.bundle("v5", version="5.0", counter=5, seed=5))
    workstation.ok("revert")
    assert workstation.status()["floor"] == 3
    assert records.decode((workstation.state / "record.1").read_bytes())[1].floor == 3
