"""Bad configuration: one line, a hint, exit 2, and nothing changed; how fragments merge."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest

from abupdate.config import Settings, TrialSettings, compose, load
from abupdate.errors import ConfigError
from abupdate.fleetsettings import FleetSettings, checked
from abupdate.formats import keyring
from abupdate.formats.signature import Domain, message
from abupdate.host.keys import load_private
from abupdate.host.signing import sign_all
from tests.workstation import Kit, Result, Workstation

VERBS: tuple[tuple[str, ...], ...] = (("status",), ("flash", "v1"), ("activate",), ("confirm",), ("revert",), ("verify",))


def assert_refused(workstation: Workstation, kit: Kit, *words: str, verbs: tuple[tuple[str, ...], ...] = VERBS) -> None:
    """Every verb ends with exit 2, one line with a hint that holds the words, and leaves all as it was."""
    slots, raw, state = workstation.hashes(), workstation.env.read_bytes(), workstation.state_files()
    for verb in verbs:
        done: Result = workstation.run(*(kit[part] if part == "v1" else part for part in verb))
        assert done.code == 2, (verb, done)
        assert done.out == ""
        assert done.err.count("\n") == 1, done.err
        assert done.err.endswith(")\n"), f"no hint: {done.err}"
        for word in words:
            assert word in done.err, (verb, done.err)
    assert (workstation.hashes(), workstation.env.read_bytes(), workstation.state_files()) == (slots, raw, state)


Edit = Callable[[Workstation], None]


def replaced(old: str, new: str) -> Edit:
    return lambda workstation: workstation.edit(old, new)


def appended(text: str) -> Edit:
    def edit(workstation: Workstation) -> None:
        workstation.config.write_text(workstation.config.read_text() + text)

    return edit


def raw(data: bytes) -> Edit:
    def edit(workstation: Workstation) -> None:
        workstation.config.write_bytes(data)

    return edit


BAD: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "unknown key at the top": (replaced('compatible = "acme"', 'compatibel = "acme"'), ("compatibel", "did you mean compatible?")),
    "unknown key far from any": (replaced('compatible = "acme"', 'compatible = "acme"\nzzz = 1'), ("zzz", "known keys")),
    "unknown section": (appended("[watchdogs]\n"), ("watchdogs", "did you mean watchdog?")),
    "unknown key in a section": (appended("[trial]\nwindow = 3\n"), ("window", "[trial]", "did you mean window_s?")),
    "unknown key in a slot": (replaced("[slots.B]", "[slots.B]\nimage = 3"), ("image", "slots.B", "did you mean images?")),
    "a key file that is no list": (appended('[encryption]\nkeys = "device.key"\n'), ("encryption.keys", "list of paths")),
    "a key file without a name": (appended('[encryption]\nkeys = [""]\n'), ("encryption.keys", "path")),
    "a key file that is a number": (appended("[encryption]\nkeys = [7]\n"), ("encryption.keys", "path")),
    "a key file twice": (appended('[encryption]\nkeys = ["a", "./a"]\n'), ("encryption.keys", "twice")),
    "nine key files": (appended('[encryption]\nkeys = ["1","2","3","4","5","6","7","8","9"]\n'), ("encryption.keys", "9 files")),
    "another kind of key": (replaced('booted = "A"', 'booted = "A"\nboot = 1'), ("boot", "[device]")),
    "no compatible": (replaced('compatible = "acme"\n', ""), ("compatible",)),
    "empty compatible": (replaced('compatible = "acme"', 'compatible = ""'), ("compatible",)),
    "compatible with a NUL": (replaced('compatible = "acme"', 'compatible = "acme\\u0000"'), ("compatible", "NUL")),
    "no bootloader": (replaced('[bootloader]\nkind = "uboot"\nfw_env_config = "fw_env.config"\n', ""), ("[bootloader]",)),
    "no kind": (replaced('kind = "uboot"\n', ""), ("kind", "one of uboot, grub, systemd-boot")),
    "unknown kind": (replaced('kind = "uboot"', 'kind = "lilo"'), ("lilo", "uboot")),
    "a kind of a later version": (replaced('kind = "uboot"', 'kind = "grub"'), ("grub",)),
    "no trust": (replaced('[trust]\nkeyring = "ring.abk"\n', ""), ("[trust]",)),
    "no keyring": (replaced('keyring = "ring.abk"', "allow_test_keys = false"), ("keyring",)),
    "one slot": (replaced('[slots.B]\nimages = { rootfs = "rootfs_b", boot = "boot_b" }\n', ""), ("1 slot", "two")),
    "three slots": (appended('[slots.C]\nimages = { rootfs = "c", boot = "d" }\n'), ("3 slots", "two")),
    "slot without images": (replaced('images = { rootfs = "rootfs_b", boot = "boot_b" }', "images = {}"), ("slots.B", "images")),
    "slot name with a path": (replaced("[slots.B]", '[slots."../B"]'), ("../B",)),
    "image name with a path": (replaced('rootfs = "rootfs_b"', '"../x" = "rootfs_b"'), ("../x",)),
    "an image in one slot only": (replaced(', boot = "boot_b"', ""), ("boot", "one slot only")),
    "same path twice": (replaced('rootfs = "rootfs_b"', 'rootfs = "rootfs_a"'), ("rootfs_a", "twice")),
    "same path in one slot": (replaced('boot = "boot_b"', 'boot = "rootfs_b"'), ("rootfs_b", "twice")),
    "no such device": (replaced('rootfs = "rootfs_b"', 'rootfs = "absent"'), ("absent",)),
    "a folder as a device": (replaced('rootfs = "rootfs_b"', 'rootfs = "."'), ("neither a block device nor a regular file",)),
    "a character device": (replaced('rootfs = "rootfs_b"', 'rootfs = "/dev/zero"'), ("neither a block device nor a regular file",)),
    "booted is no slot": (replaced('booted = "A"', 'booted = "C"'), ("C", "A, B")),
    "nothing tells what booted": (replaced('[device]\nbooted = "A"\n', ""), ("which slot runs",)),
    "tries 0": (appended("[trial]\ntries = 0\n"), ("tries", "1 to 99")),
    "tries beyond": (appended("[trial]\ntries = 100\n"), ("tries", "1 to 99")),
    "budget below": (appended("[trial]\nconfirmed_tries = -1\n"), ("confirmed_tries", "0 to 99")),
    "a number as text": (appended('[trial]\nwindow_s = "300"\n'), ("window_s", "whole number")),
    "a number with a point": (appended("[trial]\nwindow_s = 300.0\n"), ("window_s", "whole number")),
    "true as a number": (appended("[trial]\ntries = true\n"), ("tries", "whole number")),
    "a number as truth": (replaced('kind = "uboot"', 'kind = "uboot"\nallow_single_env = 1'), ("allow_single_env", "true or false")),
    "a list as a path": (replaced('state_dir = "state"', 'state_dir = ["state"]'), ("state_dir", "path")),
    "an empty path": (replaced('state_dir = "state"', 'state_dir = ""'), ("state_dir", "path")),
    "watchdog beyond 30 s": (replaced('device = "no-watchdog"', 'device = "x"\ntimeout_s = 31'), ("timeout_s", "1 to 30")),
    "after_confirm": (replaced('device = "no-watchdog"', 'device = "x"\nafter_confirm = "stop"'), ("after_confirm", "disarm")),
    "a section as a value": (replaced('compatible = "acme"', 'compatible = "acme"\ntrial = 3'), ("[trial]",)),
    "slots as a list": (raw(b'compatible = "a"\nslots = []\n[bootloader]\nkind="uboot"\n[trust]\nkeyring="r"\n'), ("[slots]",)),
    "not UTF-8": (raw(b'compatible = "\xff"\n'), ("UTF-8", "byte 14")),
    "not TOML": (raw(b"compatible = acme\n"), ("not TOML", "line 1")),
    "a NUL in it": (raw(b'compatible = "acme"\n\0'), ("not TOML",)),
    "nested too deeply": (raw(b"a = " + b"[" * 4_000), ("not TOML",)),
    "huge": (raw(b"#" * (1 << 21)), ("larger than",)),
    "empty": (raw(b""), ("compatible",)),
    "a fleet without a medium": (appended("[fleet]\n"), ("[fleet]", "udp_interface")),
    "an interface with a slash": (appended('[fleet]\nudp_interface = "../x"\n'), ("udp_interface", "eth0")),
    "an interface with a blank": (appended('[fleet]\nudp_interface = "eth 0"\n'), ("udp_interface",)),
    "a long interface": (appended('[fleet]\nudp_interface = "abcdefghijklmnop"\n'), ("udp_interface", "16 characters")),
    "a group that is one host": (appended('[fleet]\nudp_interface = "e"\nudp_group = "192.0.2.1"\n'), ("udp_group", "multicast")),
    "a group that is no address": (appended('[fleet]\nudp_interface = "e"\nudp_group = "all"\n'), ("udp_group", "multicast")),
    "neither group nor peers": (appended('[fleet]\nudp_interface = "e"\nudp_group = ""\n'), ("udp_group", "udp_peers")),
    "port 0": (appended('[fleet]\nudp_interface = "e"\nudp_port = 0\n'), ("udp_port", "1 to 65535")),
    "a peer that is no list": (appended('[fleet]\nudp_interface = "e"\nudp_peers = "a:1"\n'), ("udp_peers", "list of strings")),
    "a peer that is a number": (appended('[fleet]\nudp_interface = "e"\nudp_peers = [7]\n'), ("udp_peers", "string")),
    "a peer without a port": (appended('[fleet]\nudp_interface = "e"\nudp_peers = ["192.0.2.7"]\n'), ("udp_peers", "192.0.2.7")),
    "a peer's port beyond": (appended('[fleet]\nudp_interface = "e"\nudp_peers = ["192.0.2.7:65536"]\n'), ("udp_peers", "65536")),
    "a peer without a host": (appended('[fleet]\nudp_interface = "e"\nudp_peers = [":7"]\n'), ("udp_peers",)),
    "a peer with half an address": (appended('[fleet]\nudp_interface = "e"\nudp_peers = ["[fe80:]:7"]\n'), ("udp_peers", "fe80")),
    "a peer twice": (appended('[fleet]\nudp_interface = "e"\nudp_peers = ["192.0.2.7:7", "192.0.2.7:07"]\n'), ("udp_peers", "twice")),
    "a peer's name": (appended('[fleet]\nudp_interface = "e"\nudp_peers = ["gateway.local:7"]\n'), ("udp_peers", "gateway.local")),
    "a peer with a scope": (appended('[fleet]\nudp_interface = "e"\nudp_peers = ["[fe80::7%e]:7"]\n'), ("udp_peers", "fe80::7%e")),
    "a group with a scope": (appended('[fleet]\nudp_interface = "e"\nudp_group = "ff02::7%e"\n'), ("udp_group", "ff02::7%e")),
    "65 peers": (appended(f'[fleet]\nudp_interface = "e"\nudp_peers = {["192.0.2.7:1"] * 65}\n'), ("udp_peers", "65")),
    "a serial line by its short name": (appended('[fleet]\nserial_device = "ttyS1"\n'), ("serial_device", "usb:")),
    "an adapter without a product": (appended('[fleet]\nserial_device = "usb:0403"\n'), ("serial_device", "usb:")),
    "a slow line": (appended('[fleet]\nserial_device = "/dev/x"\nserial_baud = 300\n'), ("serial_baud", "9600")),
    "an unknown way to approve": (appended('[fleet]\nserial_device = "/dev/x"\napprove = "yes"\n'), ("approve", "auto, manual")),
    "a window at no time": (appended('[fleet]\nserial_device = "/dev/x"\nwindow = "24:00-25:00"\n'), ("window", "02:00-04:00")),
    "a window of no length": (appended('[fleet]\nserial_device = "/dev/x"\nwindow = "02:00-02:00"\n'), ("window",)),
    "an unknown key of the fleet": (appended('[fleet]\nudp_iface = "e"\n'), ("udp_iface", "did you mean udp_interface?")),
    "fw_env.config is absent": (replaced('fw_env_config = "fw_env.config"', 'fw_env_config = "absent"'), ("absent", "env 0x0 0x4000")),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_configuration_that_is_wrong(workstation: Workstation, kit: Kit, case: str) -> None:
    edit, words = BAD[case]
    edit(workstation)
    # confirm and revert work with a spare slot that is missing, and status tells of the other; what is wrong with it is for the others.
    spared: dict[str, tuple[str, ...]] = {"no such device": ("confirm", "revert", "status", "verify")}
    spared |= dict.fromkeys(("a folder as a device", "a character device"), ("confirm", "revert"))
    assert_refused(workstation, kit, *words, verbs=tuple(verb for verb in VERBS if verb[0] not in spared.get(case, ())))


def test_a_configuration_that_is_absent(workstation: Workstation, kit: Kit) -> None:
    workstation.config.unlink()
    assert_refused(workstation, kit, "config.toml", "No such file")


def test_a_configuration_that_is_a_folder(workstation: Workstation, kit: Kit) -> None:
    workstation.config.unlink()
    workstation.config.mkdir()
    assert_refused(workstation, kit, "config.toml")


# ---- one device, one image


def test_the_same_device_in_other_words(workstation: Workstation, kit: Kit) -> None:
    (workstation.folder / "x").mkdir()
    workstation.edit('rootfs = "rootfs_b"', 'rootfs = "x/../rootfs_a"')
    assert_refused(workstation, kit, "A.rootfs", "B.rootfs", "same device")


def test_the_same_device_by_a_symbolic_link(workstation: Workstation, kit: Kit) -> None:
    workstation.places["B.rootfs"].unlink()
    workstation.places["B.rootfs"].symlink_to(workstation.places["A.rootfs"])
    assert_refused(workstation, kit, "A.rootfs", "B.rootfs", "same device")


def test_the_same_device_by_a_hard_link(workstation: Workstation, kit: Kit) -> None:
    workstation.places["B.rootfs"].unlink()
    workstation.places["B.rootfs"].hardlink_to(workstation.places["A.boot"])
    assert_refused(workstation, kit, "A.boot", "B.rootfs", "same device")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Undoes mounts and loop devices in the right order."""
    with ExitStack() as exits:
        yield exits


def sh(*argv: str | Path) -> str:
    """Standard output of a command that must succeed."""
    return subprocess.run([str(part) for part in argv], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("as_device", [False, True], ids=["backing file is the slot", "loop device is the slot"])
@pytest.mark.parametrize("exists", [False, True], ids=["state_dir to be made", "state_dir exists"])
def test_state_dir_on_a_slot(workstation_on_disk: Workstation, kit: Kit, stack: ExitStack, as_device: bool, exists: bool) -> None:
    workstation = workstation_on_disk
    image = workstation.places["B.rootfs"]
    os.truncate(image, 4 << 20)
    # Nothing that the file system writes of its own accord, or the slot changes without abupdate.
    sh("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=0", image)
    loop = sh("losetup", "--find", "--show", image)
    stack.callback(sh, "losetup", "--detach", loop)
    mounted = workstation.folder / "mounted"
    mounted.mkdir()
    sh("mount", "-o", "noatime", loop, mounted)
    stack.callback(sh, "umount", mounted)
    if exists:
        (mounted / "deep" / "state").mkdir(parents=True, mode=0o700)
    workstation.edit('state_dir = "state"', 'state_dir = "mounted/deep/state"')
    if as_device:
        workstation.edit('rootfs = "rootfs_b"', f'rootfs = "{loop}"')
    before = sorted(mounted.rglob("*"))
    sh("sync", "-f", mounted)
    assert_refused(workstation, kit, "state_dir", "lies on slot B.rootfs")
    kept = workstation.run("keyring", "update", kit.ring)
    assert (kept.code, "lies on slot B.rootfs" in kept.err) == (2, True), "a keyring is kept there too"
    assert sorted(mounted.rglob("*")) == before


def test_state_dir_beside_slot_files_is_fine(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])


# ---- the boot store


def test_both_copies_are_wrong(workstation: Workstation, kit: Kit) -> None:
    workstation.confirmed("v1", "B")
    workstation.spoil_environment(0, 1)
    assert_refused(workstation, kit, "checksums are wrong", "doctor --fix")


@pytest.mark.parametrize("copy", [0, 1])
def test_one_copy_is_wrong(workstation: Workstation, kit: Kit, copy: int) -> None:
    workstation.confirmed("v1", "B")
    workstation.confirmed("v2", "A")
    workstation.spoil_environment(copy)
    workstation.ok("status")
    # What counts then is the last state or the one before it; either is one that the device can be brought on from.
    if workstation.status()["trial"]:
        workstation.ok("confirm")
    workstation.ok("flash", kit["v3"])
    assert workstation.printed()["BOOT_ORDER"] == "B A"


@pytest.mark.parametrize("text", ["", "nonsense\n", "/dev/zero 0 0x4000\n", "absent 0x0 0x4000\n", "env 0x0 0x40000000000\n", "env -1 5\n"])
def test_a_boot_store_that_cannot_be_read(workstation: Workstation, kit: Kit, text: str) -> None:
    workstation.fw_env_config.write_text(text.replace("absent", str(workstation.folder / "absent")).replace("env ", f"{workstation.env} "))
    assert_refused(workstation, kit)


def test_two_copies_that_overlap(workstation: Workstation, kit: Kit) -> None:
    workstation.fw_env_config.write_text(f"{workstation.env} 0x0 0x4000\n{workstation.env} 0x2000 0x4000\n")
    assert_refused(workstation, kit, "overlap")


def single(workstation: Workstation) -> None:
    """A single environment, as mkenvimage makes it."""
    made = workstation.folder / "made"
    subprocess.run(["mkenvimage", "-s", "0x4000", "-o", made, "-"], input=b"foreign=kept\n", check=True)
    workstation.env.write_bytes(made.read_bytes())
    workstation.fw_env_config.write_text(f"{workstation.env} 0x0 0x4000\n")


def test_a_single_environment(workstation: Workstation, kit: Kit) -> None:
    single(workstation)
    workstation.ok("status")
    assert_refused(
        workstation, kit, "power cut", "allow_single_env", verbs=(("flash", "v1"), ("flash", "v1", "--no-activate"), ("activate",))
    )
    workstation.edit('kind = "uboot"', 'kind = "uboot"\nallow_single_env = true')
    workstation.confirmed("v1", "B")
    assert workstation.printed()["BOOT_ORDER"] == "B A"


def test_confirm_and_revert_do_not_mind_a_single_environment(workstation: Workstation, kit: Kit) -> None:
    single(workstation)
    workstation.edit('kind = "uboot"', 'kind = "uboot"\nallow_single_env = true')
    workstation.ok("flash", kit["v1"])
    workstation.edit("allow_single_env = true", "allow_single_env = false")
    workstation.reboot("B")
    workstation.ok("confirm")


# ---- what others can write


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
@pytest.mark.parametrize("what", ["config.toml", "ring.abk", "config.d/10-x.toml"])
def test_a_file_that_others_can_write(workstation: Workstation, kit: Kit, what: str, mode: int) -> None:
    path = workstation.folder / what
    path.parent.mkdir(exist_ok=True)
    path.touch()
    path.chmod(mode)
    verbs = (("flash", "v1"), ("activate",), ("verify",)) if what == "ring.abk" else VERBS
    assert_refused(workstation, kit, path.name, "group or others", "chmod go-w", verbs=verbs)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_state_dir_that_others_can_write(workstation: Workstation, kit: Kit, mode: int) -> None:
    workstation.state.mkdir()
    workstation.state.chmod(mode)
    assert_refused(workstation, kit, "state_dir", "group or others", "chmod go-w")


@pytest.mark.parametrize("what", ["config.toml", "ring.abk", "state"])
def test_a_file_of_a_stranger(workstation: Workstation, kit: Kit, what: str) -> None:
    workstation.state.mkdir(mode=0o700)
    os.chown(workstation.folder / what, 12345, -1)
    verbs = (("flash", "v1"), ("activate",), ("verify",)) if what == "ring.abk" else VERBS
    assert_refused(workstation, kit, what, "12345", "chown", verbs=verbs)


def test_files_that_others_can_read_are_fine(workstation: Workstation, kit: Kit) -> None:
    for name in ("config.toml", "ring.abk"):
        (workstation.folder / name).chmod(0o644)
    workstation.state.mkdir(mode=0o755)
    workstation.ok("flash", kit["v1"])


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\0" * 2_000_000])
def test_a_keyring_that_is_none(workstation: Workstation, kit: Kit, data: bytes) -> None:
    (workstation.folder / "ring.abk").write_bytes(data)
    assert_refused(workstation, kit, "ring.abk", verbs=(("flash", "v1"), ("activate",), ("verify",)))


def test_a_keyring_whose_signatures_are_damaged(workstation: Workstation, kit: Kit) -> None:
    ring = workstation.folder / "ring.abk"
    data = bytearray(ring.read_bytes())
    data[-1] ^= 1
    ring.write_bytes(data)
    assert_refused(workstation, kit, "ring.abk", verbs=(("flash", "v1"), ("activate",), ("verify",)))


@pytest.mark.parametrize("keys", [(), ("stranger",), ("release",)], ids=["nobody", "a stranger", "a key of another role"])
def test_a_keyring_that_its_root_has_not_signed(workstation: Workstation, kit: Kit, keys: tuple[str, ...]) -> None:
    body = keyring.parse(kit.ring.read_bytes()).body
    signers = [load_private(kit.folder / f"{key}.pem") for key in keys]
    made = keyring.build(body, sign_all(signers, message(Domain.KEYRING, body)) if signers else ())
    (workstation.folder / "ring.abk").write_bytes(made)
    words = ("ring.abk", "signed by 0 of its root keys and needs 1")
    assert_refused(workstation, kit, *words, verbs=(("flash", "v1"), ("activate",), ("verify",)))


def test_a_keyring_that_is_absent(workstation: Workstation, kit: Kit) -> None:
    (workstation.folder / "ring.abk").unlink()
    assert_refused(workstation, kit, "ring.abk", verbs=(("flash", "v1"), ("activate",), ("verify",)))


# ---- what is right


def minimal(folder: Path, text: str = "") -> Path:
    """A configuration with what must be there."""
    path = folder / "config.toml"
    path.write_text(
        'compatible = "acme"\n[slots.A]\nimages = { rootfs = "/dev/a" }\n[slots.B]\nimages = { rootfs = "b" }\n'
        '[bootloader]\nkind = "uboot"\n[trust]\nkeyring = "/etc/k"\n' + text
    )
    return path


def test_the_defaults_are_those_of_the_design(tmp_path: Path) -> None:
    settings = load(minimal(tmp_path))
    assert isinstance(settings, Settings)
    assert (settings.hardware_revision, settings.state_dir) == ("", Path("/var/lib/abupdate"))
    assert asdict(settings.trial) == {
        "window_s": 300,
        "tries": 3,
        "confirmed_tries": 10,
        "boot_timeout_s": 120,
        "auto_confirm": True,
    }
    assert asdict(settings.watchdog) == {"device": Path("/dev/watchdog0"), "timeout_s": 30, "after_confirm": "pet", "always": False}
    assert asdict(settings.health) == {
        "dir": Path("/etc/abupdate/health.d"),
        "interval_s": 10,
        "degraded_row_s": 60,
        "degraded_total_s": 120,
        "memory_mib": 512,
    }
    assert asdict(settings.floor) == {"tpm_nv": 0, "tpm_tcti": "device:/dev/tpmrm0"}
    assert (settings.bootloader.allow_single_env, settings.bootloader.fw_env_config) == (False, Path("/etc/fw_env.config"))
    assert (settings.trust.allow_test_keys, settings.device.booted) == (False, "auto")


def test_relative_paths_start_at_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minimal(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = load(Path("config.toml"))
    assert settings.slots["A"].images["rootfs"] == Path("/dev/a")
    assert settings.slots["B"].images["rootfs"] == tmp_path / "b"


def test_fragments_merge_in_the_order_of_their_names(tmp_path: Path) -> None:
    path = minimal(tmp_path, "[trial]\nwindow_s = 1\ntries = 1\n")
    folder = tmp_path / "config.d"
    folder.mkdir()
    (folder / "20-late.toml").write_text("[trial]\nwindow_s = 20\n[device]\nbooted = 'B'\n")
    (folder / "10-early.toml").write_text("[trial]\nwindow_s = 10\nboot_timeout_s = 10\n")
    (folder / "30-other.conf").write_text("[trial]\nwindow_s = 30\n")
    (folder / "9.toml").write_text("[slots.B]\nimages = { rootfs = '/dev/b' }\n")
    settings = load(path)
    assert settings.trial == TrialSettings(window_s=20, tries=1, boot_timeout_s=10)
    assert settings.device.booted == "B"
    assert settings.slots["B"].images["rootfs"] == Path("/dev/b")
    assert settings.slots["A"].images["rootfs"] == Path("/dev/a")


def test_a_fault_in_a_fragment_names_it(tmp_path: Path) -> None:
    path = minimal(tmp_path)
    (tmp_path / "config.d").mkdir()
    (tmp_path / "config.d" / "5.toml").write_text("x =")
    with pytest.raises(ConfigError, match=r"config\.d/5\.toml is not TOML"):
        load(path)
    (tmp_path / "config.d" / "5.toml").write_text("[trail]\nwindow_s = 5\n")
    with pytest.raises(ConfigError, match="trail") as caught:
        load(path)
    assert caught.value.hint == "did you mean trial?"


@pytest.mark.parametrize("section", ["slots", "bootloader", "trust", "trial"])
def test_a_fragment_that_puts_a_value_over_a_section(tmp_path: Path, section: str) -> None:
    path = minimal(tmp_path, "[trial]\n")
    (tmp_path / "config.d").mkdir()
    (tmp_path / "config.d" / "5.toml").write_text(f"{section} = 5\n")
    with pytest.raises(ConfigError, match=section):
        load(path)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[trial]\ntries = " + "9" * 4000, "tries is out of range"),
        ("[trial]\ntries = " + "9" * 5000, "a line"),
        ("[trial]\ntries = 0x" + "f" * 4000, "tries is out of range"),
        ("[trial]\ntries = -0x" + "f" * 4000, "not TOML"),
        ("[trial]\ntries = " + "9_" * 2000 + "9", "tries is out of range"),
        ("x" * 4000 + " = 1", "unknown key"),
        (".".join("x" * 5000) + " = 1", "a line"),
        ("\n".join(f"[{'a.' * 2000}b{number}]" for number in range(15)), "unknown key"),
    ],
    ids=["decimal", "long decimal", "hexadecimal", "negative", "underscores", "long key", "deep key", "deep sections"],
)
def test_numbers_and_keys_without_end(tmp_path: Path, text: str, word: str) -> None:
    started = time.thread_time()
    with pytest.raises(ConfigError, match=word) as caught:
        load(minimal(tmp_path, text))
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
    assert time.thread_time() - started < 3


def test_two_fragments_that_are_nested_without_end(tmp_path: Path) -> None:
    path = minimal(tmp_path)
    (tmp_path / "config.d").mkdir()
    for name in ("1", "2"):
        (tmp_path / "config.d" / f"{name}.toml").write_text(".".join("a" * 1500) + " = 1")
    with pytest.raises(ConfigError, match="nested too deeply"):
        load(path)


@pytest.mark.parametrize("character", ["\\n", "\\r", "\\u001b", "\\u0000", "\\u007f", "\\u0085"])
def test_texts_that_are_not_for_a_terminal(tmp_path: Path, character: str) -> None:
    with pytest.raises(ConfigError, match="control character"):
        load(minimal(tmp_path, f'[device]\nbooted = "A{character}"'))


def fleet(workstation: Workstation, text: str) -> FleetSettings:
    workstation.config.write_text(workstation.config.read_text() + text)
    found = load(workstation.config).fleet
    assert found is not None
    return found


def test_a_device_without_the_section_is_no_member(workstation: Workstation) -> None:
    settings = load(workstation.config)
    assert settings.fleet is None
    assert settings.fleet_dir == workstation.state / "fleet"


def test_peers_on_a_network_and_on_a_bus(workstation: Workstation) -> None:
    found = fleet(
        workstation,
        """
[fleet]
udp_interface = "eth0"
udp_group = "ff02::4d47"
udp_peers = ["192.0.2.7:7717", "[fe80::7]:1", "192.0.2.8:65535"]
serial_device = "usb:0403:6001:FT0001"
hooks = "hooks"
control = "fleet.sock"
""",
    )
    assert found.peers == (("192.0.2.7", 7717), ("fe80::7", 1), ("192.0.2.8", 65535))
    assert (found.hooks, found.control) == (workstation.folder / "hooks", workstation.folder / "fleet.sock")


@pytest.mark.parametrize(
    ("window", "open_at", "closed_at"),
    [
        ("02:00-04:00", (120, 239), (0, 119, 240, 1439)),
        ("23:30-01:00", (1410, 1439, 0, 59), (60, 1409)),
        ("", (0, 720, 1439), ()),
    ],
)
def test_the_maintenance_window_may_go_past_midnight(window: str, open_at: tuple[int, ...], closed_at: tuple[int, ...]) -> None:
    settings = checked(FleetSettings(udp_interface="eth0", window=window))
    assert [minute for minute in open_at if not settings.window_open(minute)] == []
    assert [minute for minute in closed_at if settings.window_open(minute)] == []


@pytest.mark.parametrize(
    ("lines", "message", "hint"),
    [
        ('kind = "uboot"\npartitions = { A = 2, B = 3 }', 'partitions means nothing with kind = "uboot"', 'dialect = "mender"'),
        (
            'kind = "uboot"\ndialect = "mender"\ncopy_var = "part"',
            'copy_var means nothing with kind = "uboot", dialect = "mender"',
            "swupdate",
        ),
        ('kind = "grub"\nesp = "/efi"', 'esp means nothing with kind = "grub"', "systemd-boot"),
        ('kind = "efi"\ngrubenv = "/boot/grub/grubenv"', 'grubenv means nothing with kind = "efi"', 'kind = "grub"'),
    ],
)
def test_a_key_that_the_bootloader_does_not_look_at_is_a_mistake(lines: str, message: str, hint: str) -> None:
    slots = '[slots.A]\nimages = { rootfs = "a" }\n[slots.B]\nimages = { rootfs = "b" }\n'
    text = f'compatible = "acme"\n{slots}[trust]\nkeyring = "k"\n[bootloader]\n{lines}\n'
    with pytest.raises(ConfigError) as caught:
        compose([(Path("/etc/abupdate/config.toml"), text.encode())], Path("/etc/abupdate/config.toml"))
    assert message in caught.value.message
    assert hint in caught.value.hint
