"""Lays out what goes into the device's images: the root file system, the initramfs and the boot folder."""

from __future__ import annotations

import compileall
import importlib.util
import marshal
import os
import py_compile
import shutil
import struct
import sys
from pathlib import Path

from images.arch import Arch
from images.cache import TREE, run
from images.packages import BUSYBOX, unpack

IMAGES = TREE / "images"
HOOKS = TREE / "bootloader-hooks"
INITRAMFS_PROGRAMS = ("arm-watchdog", "open-verity")
STAMP = 1767225600  # every file of an image carries this time (2026-01-01)

PRUNED = (
    "usr/share",
    "usr/lib/{triplet}/gconv",
    "usr/lib/{triplet}/audit",
    "usr/lib/{triplet}/perl5",
    "usr/include",
    "usr/lib/systemd",
    "lib/systemd",
    "lib/udev",
    "var",
    "etc/python3.11",
)
STDLIB_PRUNED = """
    config-3.11-{triplet} curses dbm distutils ensurepip idlelib lib2to3 msilib pydoc_data sqlite3
    test tkinter turtledemo unittest venv wsgiref xml xmlrpc pydoc.py turtle.py doctest.py pickletools.py
    _pydecimal.py mailbox.py smtplib.py imaplib.py nntplib.py ftplib.py telnetlib.py poplib.py cgi.py cgitb.py
    aifc.py sunau.py wave.py pdb.py __phello__ LICENSE.txt
"""
DYNLOAD_PRUNED = (
    "_test*",
    "_xx*",
    "xx*",
    "_tkinter*",
    "_curses*",
    "_dbm*",
    "_gdbm*",
    "_sqlite3*",
    "readline*",
    "_codecs_*",
    "audioop*",
    "ossaudiodev*",
)
PROGRAMS_PRUNED = ("usr/sbin/e4crypt", "usr/sbin/filefrag", "usr/sbin/mklost+found", "sbin/debugfs", "sbin/logsave", "usr/bin/chattr")

# An arm64 kernel image whose first instruction branches to itself: U-Boot starts it, and nothing follows.
LOOPING_KERNEL = struct.pack("<IIQQQQQQ4sI", 0x14000000, 0, 0, 0x10000, 0xA, 0, 0, 0, b"ARM\x64", 0).ljust(0x1000, b"\0")


def busybox_links(folder: Path, program: Path) -> None:
    """Link every applet of busybox into a folder, except where a real program is there."""
    blob = program.read_bytes()
    start = blob.index(b"\0[\0[[\0") + 1
    names = blob[start : blob.index(b"\0\0", start)].decode().split("\0")
    for name in names:
        link = folder / name
        if name not in ("busybox", "dpkg", "dpkg-deb", "rpm") and not link.exists():
            link.symlink_to("busybox")


def set_times(tree: Path) -> None:
    """One time for all files, so that the same input gives the same image."""
    for path in sorted(tree.rglob("*"), reverse=True):
        os.utime(path, (STAMP, STAMP), follow_symlinks=False)


def base_tree(arch: Arch, packages: Path, kernel: Path, wheels: Path, root: Path) -> None:
    """The root file system without this project: Debian's packages, pruned, and the wheels of the dependencies."""
    for name in (*BUSYBOX, *arch.system):
        unpack(packages, name, root)
    for part in PRUNED:
        shutil.rmtree(root / part.format(triplet=arch.triplet), ignore_errors=True)
    for part in PROGRAMS_PRUNED:
        (root / part).unlink(missing_ok=True)
    stdlib = root / "usr/lib/python3.11"
    for part in STDLIB_PRUNED.format(triplet=arch.triplet).split():
        path = stdlib / part
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for pattern in DYNLOAD_PRUNED:
        for path in (stdlib / "lib-dynload").glob(pattern):
            path.unlink()
    for place in (
        "bin",
        "sbin",
        "proc",
        "sys",
        "dev",
        "tmp",
        "run",
        "data",
        "bundles",
        "root",
        "mnt",
        "var",
        "etc",
        "usr/local/bin",
        "lib/modules",
    ):
        (root / place).mkdir(parents=True, exist_ok=True)
    for link, target in (("var/run", "/run"), ("var/lock", "/run/lock"), ("var/tmp", "/tmp"), ("usr/bin/python3", "python3.11")):
        (root / link).symlink_to(target)
    busybox_links(root / "bin", root / "bin/busybox")
    (root / "sbin/init").symlink_to("/bin/busybox")
    for name in ("reboot", "poweroff", "halt"):
        (root / "sbin" / name).symlink_to("/bin/busybox")
    (root / "etc/passwd").write_text("root::0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/ld.so.conf").write_text(f"/lib/{arch.triplet}\n/usr/lib/{arch.triplet}\n")
    for module in (kernel / "load-spare").read_text().split():
        shutil.copy(kernel / f"modules/{module}.ko", root / "lib/modules")
    site = root / "usr/local/lib/python3.11/dist-packages"
    shutil.copytree(wheels, site)
    shutil.rmtree(site / "bin", ignore_errors=True)
    shutil.rmtree(site / "pycparser", ignore_errors=True)  # only cffi's compiler side needs it
    # Symbols are two thirds of the wheels' libraries; a second backend of zstandard is never loaded.
    for library in site.rglob("*.so"):
        if library.match("zstandard/_cffi.*"):
            library.unlink()
        else:
            run([f"{arch.triplet}-strip", "--strip-unneeded", library])
    compile_python(stdlib)
    compile_python(site)
    # The library's sources are not needed on the device: their compiled form stands in their place.
    for folder in (stdlib, site):
        for path in sorted(folder.rglob("__pycache__/*.pyc")):
            source = path.parent.parent / f"{path.name.split('.')[0]}.py"
            path.rename(source.with_suffix(".pyc"))
            source.unlink(missing_ok=True)


def compile_python(folder: Path) -> None:
    """Compile to .pyc that are never checked against their source: file times do not matter."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(folder, quiet=2, invalidation_mode=mode, stripdir=str(folder), workers=os.cpu_count() or 1)


def compiled_name(name: str) -> str:
    """Where the compiled form of a source lies: `a/b.py` -> `a/__pycache__/b.cpython-311.pyc`."""
    path = Path(name)
    return str(path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc")


def compiled(source: bytes, name: str) -> bytes:
    """The compiled form of one source, as `compile_python` leaves it."""
    digest = importlib.util.source_hash(source)
    return importlib.util.MAGIC_NUMBER + struct.pack("<I", 1) + digest + marshal.dumps(compile(source, name, "exec", dont_inherit=True))


def root_tree(arch: Arch, base: Path, project: Path, keyring: Path, version: str, root: Path, *overlays: Path) -> None:
    """The whole root file system of one version of the device, this project installed into it as a user would.

    overlays: folders whose content goes over that of images/rootfs.
    """
    run(["cp", "-a", f"{base}/.", root])
    site = root / "usr/local/lib/python3.11/dist-packages"
    shutil.copytree(project / "site", site, dirs_exist_ok=True)
    compile_python(site / "abupdate")
    shutil.copy(project / "bin/abupdate", root / "usr/local/bin/abupdate")
    for overlay in (IMAGES / "rootfs", *overlays):
        run(["cp", "-r", f"{overlay}/.", root])
    inittab = root / "etc/inittab"
    inittab.write_text(inittab.read_text().replace("@CONSOLE@", arch.console))
    for folder in ("health.d", "config.d"):
        (root / "etc/abupdate" / folder).mkdir(exist_ok=True)  # empty, so a clone does not have it
    shutil.copy(keyring, root / "etc/abupdate/keyring.abk")
    (root / "etc/abu-version").write_text(f"{version}\n")
    run(["chmod", "-R", "u=rwX,go=rX", root])
    set_times(root)


def compile_armer(arch: Arch, folder: Path) -> None:
    """Cross-compile the initramfs programs: what arms the watchdog, and what opens dm-verity."""
    for name in INITRAMFS_PROGRAMS:
        source = HOOKS / f"initramfs/{name}.c"
        run([f"{arch.triplet}-gcc", "-Wall", "-Wextra", "-Werror", "-static", "-Os", "-s", "-o", folder / name, source])


def pack_initramfs(tree: Path, target: Path) -> None:
    """Pack a folder as a gzipped cpio archive owned by root; several such files in a row are one initramfs."""
    set_times(tree)
    script = 'find . -mindepth 1 | LC_ALL=C sort | cpio --quiet --create --format=newc --owner=0:0 --reproducible | gzip -n -6 > "$0"'
    run(["sh", "-c", script, target.absolute()], cwd=tree)


def initramfs(packages: Path, kernel: Path, armer: Path, folder: Path) -> None:
    """Make `initrd.img` in a folder: busybox, drivers, /init and the very files of bootloader-hooks/initramfs."""
    tree = folder / "tree"
    unpack(packages, BUSYBOX[0], tree)
    shutil.rmtree(tree / "usr")
    busybox_links(tree / "bin", tree / "bin/busybox")
    for name in ("dev", "proc", "sys", "root", "modules"):
        (tree / name).mkdir()
    for part in ("load-watchdog", "load-disk", "load-verity", "load-readonly"):
        shutil.copy(kernel / part, tree / "modules")
        for name in (kernel / part).read_text().split():
            shutil.copy(kernel / f"modules/{name}.ko", tree / "modules")
    for name in INITRAMFS_PROGRAMS:
        shutil.copy(armer / name, tree / "bin" / name)
    shutil.copy(HOOKS / "initramfs/abupdate-trial.sh", tree / "abupdate-trial.sh")
    shutil.copy(IMAGES / "initramfs/init", tree / "init")
    pack_initramfs(tree, folder / "initrd.img")
    shutil.rmtree(tree)


def fault_initramfs(fault: str, folder: Path) -> bytes:
    """A piece of initramfs to append: it makes /init go wrong at the place that it names."""
    tree = folder / "fault-tree"
    tree.mkdir()
    (tree / "fault").write_text(f"{fault}\n")
    pack_initramfs(tree, folder / "fault.img")
    shutil.rmtree(tree)
    piece = (folder / "fault.img").read_bytes()
    (folder / "fault.img").unlink()
    return piece
