"""The bundles that tests and the demo flash: good ones, ones to be refused, and ones that go wrong at every stage of a boot."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from abupdate.formats import bundle as bundle_format
from images import disk, trees
from images.cache import TREE, Cache, Input, run, say

KEYS = TREE / "images/keys"
OLD_RELEASE = TREE / "tests/releases/abupdate-0.1.0-py3-none-any.whl"
COMPATIBLE = "abu-qemu"
LEVEL = 3


@dataclass(frozen=True)
class Variant:
    """One bundle: how it differs from version 1.0.0 of the device.

    counter: its security counter (1.0.0 has 10). key: who signs; signed: whether the signature is left in. compatible: for which device.
    initramfs_fault: where /init goes wrong. kernel: bytes instead of vmlinuz. files: put into the root file system (None: removed),
    those under health.d executable. agent: the wheel of this project that is installed instead of this tree's.
    """

    name: str
    version: str
    counter: int
    about: str
    key: str = "abu-test-release"
    signed: bool = True
    compatible: str = COMPATIBLE
    initramfs_fault: str = ""
    kernel: bytes | None = None
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    agent: Path | None = None


@dataclass(frozen=True)
class Originals:
    """The images of version 1.0.0 that bundles are made from: name -> image; `boot` (ext4) or `kernel` and `initrd` (files).

    prefix: of the names of the build steps. variants: which bundles there are.
    """

    images: Mapping[str, Path]
    prefix: str
    variants: tuple[Variant, ...]

    def read(self, name: str) -> bytes:
        """Bytes of `vmlinuz` or `initrd.img`, wherever they lie."""
        if "boot" in self.images:
            return disk.read_from_ext4(self.images["boot"], f"/{name}")
        return self.images[FILE_IMAGES[name]].read_bytes()


# Where kernel and initramfs are images of their own: file of a boot partition -> name of the image.
FILE_IMAGES = {"vmlinuz": "kernel", "initrd.img": "initrd"}


def _fault(name: str) -> dict[str, bytes | None]:
    return {"/etc/abu-fault": f"{name}\n".encode()}


def _health(exit_code: int) -> dict[str, bytes | None]:
    return {"/etc/abupdate/health.d/50-test": f"#!/bin/sh\necho 'test says {exit_code}'\nexit {exit_code}\n".encode()}


def _patient() -> dict[str, bytes | None]:
    """The earlier release leaves its next process no more than the time between two pets; 10 s are few on a loaded host."""
    config = (TREE / "images/rootfs/etc/abupdate/config.toml").read_bytes()
    patient = config.replace(b"\ntimeout_s = 10\n", b"\ntimeout_s = 30\n")
    assert patient != config
    return {"/etc/abupdate/config.toml": patient}


VARIANTS = (
    Variant("v1", "1.0.0", 10, "what slot A holds from the factory"),
    Variant("v2", "2.0.0", 20, "a good update"),
    Variant("v2-1", "2.1.0", 20, "a good update that can be taken back to 2.0.0"),
    Variant("v3", "3.0.0", 30, "one more good update"),
    Variant("old-release", "2.0.0", 20, "a good update with the agent of an earlier release", files=_patient(), agent=OLD_RELEASE),
    Variant("petter", "3.0.0", 30, "good, with a watchdog that the initramfs must keep petting", initramfs_fault="petter"),
    Variant("old", "0.9.0", 5, "a lower security counter than 1.0.0"),
    Variant("other-device", "2.0.0", 20, "for another kind of device", compatible="abu-other"),
    Variant("unsigned", "2.0.0", 20, "without any signature", signed=False),
    Variant("wrong-key", "2.0.0", 20, "signed by a key outside the keyring", key="abu-test-stranger"),
    Variant("bad-kernel-garbage", "3.0.0", 30, "the bootloader cannot start its kernel", kernel=b"no kernel\n" * 1000),
    Variant("bad-kernel-hang", "3.0.0", 30, "its kernel loops at its first instruction", kernel=trees.LOOPING_KERNEL),
    Variant(
        "bad-hang-before-arming",
        "3.0.0",
        30,
        "hangs in the initramfs before the watchdog is armed there",
        initramfs_fault="hang-before-arming",
    ),
    Variant("bad-hang-after-arming", "3.0.0", 30, "hangs in the initramfs with the watchdog armed", initramfs_fault="hang-after-arming"),
    Variant("bad-panic", "3.0.0", 30, "the kernel panics", initramfs_fault="panic"),
    Variant("bad-hang-before-service", "3.0.0", 30, "hangs between initramfs and service", files=_fault("hang-before-service")),
    Variant("bad-no-service", "3.0.0", 30, "boots to a shell, but nothing starts the service", files=_fault("no-service")),
    Variant("bad-crash-service", "3.0.0", 30, "its service ends at once, every time", files=_fault("crash-service")),
    Variant("bad-health-critical", "3.0.0", 30, "a health program says critical", files=_health(2)),
    Variant("bad-health-degraded", "3.0.0", 30, "a health program says degraded, for ever", files=_health(1)),
)


def keyring(cache: Cache) -> Path:
    """The factory keyring: the test keys, signed by the test root. The keys are copied to be readable by nobody else."""

    def make(folder: Path) -> None:
        shutil.copytree(KEYS, folder / "keys")
        for key in (folder / "keys").glob("*.pem"):
            key.chmod(0o600)
        keys = folder / "keys"
        command: list[str | Path] = [abupdate(), "keys", "keyring", "-o", folder / "keyring.abk", "--version", "1"]
        command += ["--root", keys / "abu-test-root.pub", "--root-threshold", "1"]
        command += ["--release", keys / "abu-test-release.pub", "--release-threshold", "1"]
        run([*command, "--sign", keys / "abu-test-root.pem"])

    return cache.step("keyring", [KEYS, TREE / "abupdate/formats/keyring.py"], make)


def abupdate() -> Path:
    """The command as it is installed beside the Python that runs this."""
    return Path(sys.executable).parent / "abupdate"


def agent_files(wheel: Path) -> dict[str, bytes | None]:
    """What turns this tree's package on the device into the wheel's: sources and their compiled forms, and what came later removed."""
    site = "/usr/local/lib/python3.11/dist-packages"
    names = [path.relative_to(TREE).as_posix() for path in (TREE / "abupdate").rglob("*.py")]
    files: dict[str, bytes | None] = {f"{site}/{form}": None for name in names for form in (name, trees.compiled_name(name))}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("abupdate/") and name.endswith(".py"):
                files[f"{site}/{name}"] = source = archive.read(name)
                files[f"{site}/{trees.compiled_name(name)}"] = trees.compiled(source, name)
    return files


def _make(variant: Variant, originals: Originals, ring: Path, folder: Path) -> None:
    images = dict(originals.images)
    rootfs_files = {"/etc/abu-version": f"{variant.version}\n".encode(), **variant.files}
    if variant.agent is not None:
        rootfs_files |= agent_files(variant.agent)
    boot_files: dict[str, bytes | None] = {}
    if variant.kernel is not None:
        boot_files["/vmlinuz"] = variant.kernel
    if variant.initramfs_fault:
        boot_files["/initrd.img"] = originals.read("initrd.img") + trees.fault_initramfs(variant.initramfs_fault, folder)
    if "boot" not in images:
        for name, content in boot_files.items():
            piece = FILE_IMAGES[name.removeprefix("/")]
            images[piece] = folder / f"{piece}.img"
            images[piece].write_bytes(content or b"")
    for name, files in (("boot", boot_files), ("rootfs", rootfs_files)):
        if name in images and files and not (name == "rootfs" and variant.name == "v1"):
            changed = folder / f"{name}.img"
            disk.copy_image(images[name], changed)
            modes = {path: 0o100755 if "/health.d/" in path else 0o100644 for path in files}
            disk.change_ext4(changed, files, modes, folder)
            images[name] = changed
    lines = [f'compatible = "{variant.compatible}"', f'version = "{variant.version}"', f"security_counter = {variant.counter}"]
    lines.append(f'description = "{variant.about}"')
    for name, path in images.items():
        kind = "file" if name in FILE_IMAGES.values() else "raw"
        lines.append(f'[images.{name}]\nfile = "{path}"\nkind = "{kind}"')
    spec = folder / "spec.toml"
    spec.write_text("\n".join(lines) + "\n")
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(trees.STAMP)}
    bundle = folder / f"{variant.name}.abu"
    command: list[str | Path] = [
        abupdate(),
        "bundle",
        "create",
        spec,
        "-o",
        bundle,
        "--level",
        str(LEVEL),
        "--key",
        ring / f"keys/{variant.key}.pem",
    ]
    run(command, env=environment)
    if not variant.signed:
        strip_signatures(bundle)
    for path in folder.iterdir():
        if path != bundle:
            path.unlink()


def strip_signatures(path: Path) -> None:
    """Make a well-formed bundle without signatures out of a signed one."""
    with path.open("rb") as file:
        signed = bundle_format.read_signed(file.read, path.stat().st_size)
        rest = file.read()
    header = signed.header
    path.write_bytes(bundle_format.build_head(signed.manifest_bytes, b"", header.tables_bytes, header.payload_bytes) + rest)


def bundles_disk(cache: Cache, originals: Originals, ring: Path) -> Path:
    """Folder with `bundles.img`, the ext4 disk that the guest mounts on /bundles, and the bundles themselves in `bundles/`."""
    code: list[Input] = [TREE / "images/bundles.py", TREE / "images/disk.py", TREE / "images/trees.py", ring.name]
    code += [image.parent.name for image in originals.images.values()]
    code += [TREE / "abupdate/host", TREE / "abupdate/formats", OLD_RELEASE]

    def make_one(variant: Variant) -> Path:
        name = f"{originals.prefix}bundle-{variant.name}"
        return cache.step(name, code, lambda folder: _make(variant, originals, ring, folder), variant.about)

    def make(folder: Path) -> None:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            made = list(pool.map(make_one, originals.variants))
        (folder / "bundles").mkdir()
        for variant, result in zip(originals.variants, made, strict=True):
            (result / f"{variant.name}.abu").rename(folder / f"bundles/{variant.name}.abu")
            result.rmdir()
        trees.set_times(folder)
        total = sum(path.stat().st_size for path in (folder / "bundles").iterdir())
        say(f"{len(originals.variants)} bundles, {total // disk.MIB} MiB")
        disk.ext4(folder / "bundles", folder / "bundles.img", (total // disk.MIB * 21 // 20 + 16) * disk.MIB, "bundles")

    return cache.step(f"{originals.prefix}bundles", code, make)
