"""The device with systemd: a squashfs or erofs with dm-verity in each slot, the units of images/debian, /var on the data partition."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from images import bundles, disk, packages, trees
from images.arch import Arch
from images.cache import TREE, Cache, Input, run
from images.trees import STAMP

CODE = TREE / "images"
UNITS = ("abupdate-trial.service", "abupdate.service", "abupdate-confirmed.service")
ROOTFS_BYTES = 96 * disk.MIB
BLOCK_BYTES = 4096
# Minutes where the first device has seconds: two emulated machines on a busy host take a minute for one start of systemd.
BOOT_TIMEOUT_S = 180
NUMBERS = {"boot_timeout_s = 20": f"boot_timeout_s = {BOOT_TIMEOUT_S}", "window_s = 60": "window_s = 150"}
# The interval is also how long a health program may take.
NUMBERS |= {
    "interval_s = 2": "interval_s = 10",
    "degraded_row_s = 10": "degraded_row_s = 60",
    "degraded_total_s = 20": "degraded_total_s = 90",
    "timeout_s = 10": "timeout_s = 30",
}
# Same for every build: a tree is compared, not kept secret.
SALT = "ab" * 32
IDENTITY = "0b0d1500-0000-4000-8000-0000000000ff"
PRUNED = (
    "usr/share",
    "usr/lib/aarch64-linux-gnu/security",
    "etc/init.d",
    "etc/inittab",
    "lib/udev/hwdb.d",
    "etc/pam.d",
    "etc/default",
    "etc/cron.daily",
)
PRUNED_FILES = ("sbin/supervise-abupdate", "sbin/supervise-fleet", "usr/lib/tmpfiles.d/systemd-network.conf", "usr/lib/tmpfiles.d/x11.conf")
# Udev's rules that a device without a desktop needs.
RULES = ("50-udev-default", "60-block", "60-persistent-storage", "80-drivers", "99-systemd")
# Nothing reads it in a boot, and it does not compress: a test flips one of its bits.
BULK_BYTES = 128 << 10
# Not of use here, or they write what is read-only.
MASKED = """
    systemd-firstboot.service systemd-hwdb-update.service systemd-machine-id-commit.service systemd-sysusers.service systemd-repart.service
    systemd-random-seed.service systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-logind.service
    systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount dev-hugepages.mount
    dev-mqueue.mount getty.target systemd-ask-password-wall.path systemd-ask-password-console.path systemd-tmpfiles-clean.timer
    systemd-initctl.socket systemd-pstore.service hwclock.service kmod-static-nodes.service systemd-journald-audit.socket
"""
GROUPS = """
    tty:5 disk:6 lp:7 dialout:20 cdrom:24 floppy:25 tape:26 audio:29 video:44 kmem:15 utmp:43 adm:4 input:101 kvm:102 render:103 sgx:104
    systemd-journal:105
"""


def system_tree(
    arch: Arch, base: Path, debs: Path, kernel: Path, project: Path, keyring: Path, configs: Mapping[str, str], root: Path
) -> None:
    """The root file system: the first device's, with systemd and udev in place of busybox' init.

    configs: those that a kernel argument guest.board=NAME puts in place of /etc/abupdate/config.toml.
    """
    trees.root_tree(arch, base, project, keyring, "1.0.0", root)
    for part in PRUNED[2:]:
        remove(root / part)
    for part in PRUNED_FILES:
        remove(root / part)
    for name in (
        "init",
        "reboot",
        "poweroff",
        "halt",
        "shutdown",
        "mount",
        "umount",
        "fsck",
        "modprobe",
        "insmod",
        "lsmod",
        "rmmod",
        "depmod",
    ):
        for folder in ("bin", "sbin"):
            remove(root / folder / name)
    for name in packages.SYSTEMD:
        packages.unpack(debs, name, root)
    for part in (*PRUNED, *PRUNED_FILES):
        remove(root / part)
    for rule in (root / "lib/udev/rules.d").iterdir():
        if rule.stem not in RULES:
            rule.unlink()
    for place in ("home", "srv", "var/log", "var/cache", "var/spool", "var/lib"):
        (root / place).mkdir(exist_ok=True)
    (root / "etc/mtab").symlink_to("../proc/self/mounts")
    (root / "sbin/init").symlink_to("/lib/systemd/systemd")
    for name in ("reboot", "poweroff", "halt", "shutdown"):
        (root / "sbin" / name).symlink_to("/bin/systemctl")
    (root / "usr/bin/abupdate").symlink_to("/usr/local/bin/abupdate")
    run(["cp", "-r", f"{CODE / 'systemd'}/.", root])
    config = root / "etc/abupdate/config.toml"
    (root / "etc/abupdate/boards").mkdir()
    (root / "efi").mkdir()
    for path, text in {
        config: config.read_text(),
        **{config.parent / f"boards/{name}.toml": text for name, text in configs.items()},
    }.items():
        path.write_text("".join(f"{NUMBERS.get(line, line)}\n" for line in text.splitlines()))
    (root / "etc/machine-id").write_text("")
    (root / "etc/abu-bulk").write_bytes(bulk())
    (root / "etc/hostname").write_text("abu-qemu\n")
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    groups = [entry.split(":") for entry in GROUPS.split()]
    (root / "etc/group").write_text("".join(f"{name}:x:{number}:\n" for name, number in [("root", "0"), *groups]))
    _units(root)
    _modules(kernel, root)
    health = root / "etc/abupdate/health.d"
    health.mkdir(exist_ok=True)
    shutil.copy(CODE / "debian/health.d/10-systemd", health)
    run(["chmod", "-R", "u=rwX,go=rX", root])
    trees.set_times(root)


def bulk() -> bytes:
    """Content of /etc/abu-bulk."""
    return random.Random(0).randbytes(BULK_BYTES)


def remove(path: Path) -> None:
    """Remove a file, link or folder, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _units(root: Path) -> None:
    """Install this project's units, enable them and the image's own as their [Install] says, and mask what is not needed."""
    system = root / "etc/systemd/system"
    for name in UNITS:
        if (CODE / "debian" / name).exists():
            shutil.copy(CODE / "debian" / name, root / "lib/systemd/system")
    ours = [*(root / "lib/systemd/system" / name for name in UNITS), *sorted(system.glob("guest-*.service"))]
    for unit in ours:
        if not unit.exists():
            continue
        for kind, targets in re.findall(r"^(Wanted|Required)By=(.*)$", unit.read_text(), re.MULTILINE):
            for target in targets.split():
                folder = system / f"{target}.{'wants' if kind == 'Wanted' else 'requires'}"
                folder.mkdir(exist_ok=True)
                (folder / unit.name).symlink_to(f"/{unit.relative_to(root)}")
    for name in MASKED.split():
        (system / name).symlink_to("/dev/null")
    (system / "default.target").symlink_to("/lib/systemd/system/multi-user.target")


def _modules(kernel: Path, root: Path) -> None:
    """The modules that userspace loads by itself (overlay), where modprobe looks for them."""
    version = (kernel / "version").read_text()
    folder = root / "lib/modules" / version / "kernel"
    folder.mkdir(parents=True)
    for module in (root / "lib/modules").glob("*.ko"):
        module.rename(folder / module.name)
    for name in ("modules.builtin", "modules.order"):
        shutil.copy(kernel / name, folder.parent)
    run(["/sbin/depmod", "-b", root, version])


def sealed_image(tree: Path, kind: str, image: Path) -> str:
    """Make a squashfs or erofs of the tree with its dm-verity tree behind it; returns the root hash in hex."""
    environment = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SOURCE_DATE_EPOCH": str(STAMP)}
    if kind == "squashfs":
        options = ["-quiet", "-noappend", "-no-progress", "-all-root", "-comp", "zstd", "-Xcompression-level", "6"]
        run(["mksquashfs", tree, image, *options], env=environment)
    else:
        run(["mkfs.erofs", "-zlz4", "--all-root", f"-T{STAMP}", f"-U{IDENTITY}", image, tree], env=environment)
    size = -(-image.stat().st_size // BLOCK_BYTES) * BLOCK_BYTES
    os.truncate(image, size)
    hashes = [f"--data-blocks={size // BLOCK_BYTES}", f"--hash-offset={size}", f"--salt={SALT}", f"--uuid={IDENTITY}"]
    said = run(["veritysetup", "format", *hashes, image, image], env=environment)
    found = re.search(r"^Root hash:\s+([0-9a-f]{64})$", said, re.MULTILINE)
    if found is None:
        raise SystemExit(f"images: veritysetup names no root hash\n{said}")
    return found[1]


@dataclass(frozen=True)
class Version:
    """One version of the device: file system of its root, and its security counter."""

    name: str
    version: str
    kind: str
    counter: int


VERSIONS = (
    Version("v1", "1.0.0", "squashfs", 10),
    Version("v2", "2.0.0", "squashfs", 20),
    Version("v3", "3.0.0", "erofs", 30),
)


def slots(cache: Cache, arch: Arch, base: Path, kernel: Path, project: Path, keyring: Path, configs: Mapping[str, str]) -> Path:
    """Folder with `NAME.img` and `NAME.root` (root hash in hex) of each version. configs: as `system_tree` has them."""
    debs = packages.fetch_systemd(cache, arch)

    def make(folder: Path) -> None:
        tree = folder / "tree"
        system_tree(arch, base / "root", debs, kernel, project, keyring, configs, tree)
        for one in VERSIONS:
            (tree / "etc/abu-version").write_text(f"{one.version}\n")
            trees.set_times(tree / "etc")
            (folder / f"{one.name}.root").write_text(sealed_image(tree, one.kind, folder / f"{one.name}.img"))
        shutil.rmtree(tree)

    code: list[Input] = [CODE / "systemd", CODE / "debian", CODE / "rootfs", CODE / "systemd.py", CODE / "trees.py", keyring]
    return cache.step("systemd-slots", [base.name, kernel.name, project.name, debs.name, repr(configs), *code], make)


def bundles_disk(cache: Cache, images: Mapping[str, Path], made: Path, ring: Path, prefix: str = "") -> Path:
    """Folder with `bundles.img` and `bundles/NAME.abu`, as images.bundles makes them. images: beside the root file system."""
    code: list[Input] = [CODE / "systemd.py", made.name, ring.name, TREE / "abupdate/host", TREE / "abupdate/formats"]
    code += [f"{name} {image.parent.name}" for name, image in images.items()]

    def make(folder: Path) -> None:
        (folder / "bundles").mkdir()
        for one in VERSIONS[1:]:
            spec = folder / "spec.toml"
            lines = [f'compatible = "{bundles.COMPATIBLE}"', f'version = "{one.version}"', f"security_counter = {one.counter}"]
            for name, image in images.items():
                kind = "file" if name in bundles.FILE_IMAGES.values() else "raw"
                lines.append(f'[images.{name}]\nfile = "{image}"\nkind = "{kind}"')
            lines.append(f'[images.rootfs]\nfile = "{made / one.name}.img"\nverity = true')
            spec.write_text("\n".join(lines) + "\n")
            environment = {**os.environ, "SOURCE_DATE_EPOCH": str(STAMP)}
            command: list[str | Path] = [bundles.abupdate(), "bundle", "create", spec, "-o", folder / f"bundles/{one.name}.abu"]
            run([*command, "--level", "1", "--key", ring / "keys/abu-test-release.pem"], env=environment)
            spec.unlink()
        trees.set_times(folder)
        total = sum(path.stat().st_size for path in (folder / "bundles").iterdir())
        disk.ext4(folder / "bundles", folder / "bundles.img", (total // disk.MIB * 21 // 20 + 16) * disk.MIB, "bundles")

    return cache.step(f"systemd-{prefix}bundles", code, make)


def data_image(folder: Path, size_bytes: int) -> None:
    """Make `data.img`, where /var keeps what is written to it."""
    tree = folder / "tree"
    (tree / "overlay/upper").mkdir(parents=True)
    (tree / "overlay/work").mkdir()
    disk.ext4(tree, folder / "data.img", size_bytes, "data", journal=True)


def device_disk(cache: Cache, boot: Path, made: Path, environment: Mapping[str, str], boot_bytes: int, data_bytes: int) -> Path:
    """Folder with `disk.img` (the first version in A, B empty) and `flash.img`."""
    values = {**environment, "BOOT_TIMEOUT": f"{BOOT_TIMEOUT_S:x}", "BOOT_A_VERITY": (made / "v1.root").read_text()}

    def make(folder: Path) -> None:
        data_image(folder, data_bytes)
        disk.boot_disk(folder, values, {"boot_a": boot, "rootfs_a": made / "v1.img"}, disk.layout(boot_bytes, ROOTFS_BYTES, data_bytes))

    inputs: list[Input] = [boot.parent.name, made.name, TREE / "bootloader-hooks/uboot/boot.cmd", CODE / "disk.py", CODE / "systemd.py"]
    return cache.step("systemd-disk", [*inputs, repr((values, boot_bytes, data_bytes))], make)
