"""Fetches the arm64 Debian packages and wheels of the device, from wherever this machine's own apt and pip get theirs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from images.cache import TREE, Cache, run, say

BUSYBOX = ("busybox-static",)
KERNEL = "linux-image-arm64"
SYSTEM = (
    "libc6",
    "libcrypt1",
    "libgcc-s1",
    "zlib1g",
    "libexpat1",
    "libffi8",
    "libbz2-1.0",
    "liblzma5",
    "libssl3",
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libubootenv-tool",
    "libubootenv0.1",
    "libyaml-0-2",
    "e2fsprogs",
    "libext2fs2",
    "libss2",
    "libcom-err2",
    "libblkid1",
    "libuuid1",
)
# Loaded by the initramfs in this order, with what they depend on; drivers of watchdogs first, so that a trial is guarded early.
WATCHDOG_MODULES = ("i6300esb",)
DISK_MODULES = ("virtio_mmio", "virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
# Only carried along, for tests and later use.
SPARE_MODULES = ("softdog", "virtio_net", "virtio_console")
WHEEL_PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_28_aarch64", "manylinux_2_34_aarch64")


def _apt_config(folder: Path) -> Path:
    """An apt of its own for arm64: the machine's sources, but nothing of the machine's package state is touched."""
    for part in ("lists/partial", "archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    config = folder / "apt.conf"
    config.write_text(
        f'Dir::State "{folder}";\nDir::State::lists "{folder}/lists";\nDir::State::status "{folder}/status";\n'
        f'Dir::Cache "{folder}";\nDir::Cache::archives "{folder}/archives";\n'
        'APT::Architecture "arm64";\nAPT::Architectures "arm64";\nAcquire::Languages "none";\nAcquire::Retries "3";\n'
        'APT::Sandbox::User "root";\n'
    )
    return config


def fetch_packages(cache: Cache) -> Path:
    """Folder with `debs/*.deb` and `kernel-version`; the network is used only where it is not cached."""

    def make(folder: Path) -> None:
        say("fetching Debian packages for arm64")
        apt = cache.folder / "apt"
        environment = {"APT_CONFIG": str(_apt_config(apt)), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
        run(["apt-get", "update"], env=environment)
        depends = run(["apt-cache", "depends", KERNEL], env=environment)
        found = re.search(r"Depends: (linux-image-(\S+-arm64))$", depends, re.MULTILINE)
        if found is None:
            raise SystemExit(f"images: {KERNEL} names no kernel package; run apt-get update and look at apt-cache depends")
        debs = folder / "debs"
        debs.mkdir()
        run(["apt-get", "download", found[1], *BUSYBOX, *SYSTEM], env=environment, cwd=debs)
        (folder / "kernel-version").write_text(found[2])

    return cache.step("packages", [KERNEL, *BUSYBOX, *SYSTEM], make)


def unpack(packages: Path, name: str, target: Path) -> None:
    """Extract one downloaded package into a folder."""
    deb = next((packages / "debs").glob(f"{name}_*.deb"))
    run(["dpkg-deb", "-x", deb, target])


def _depends(module: Path) -> list[str]:
    found = re.search(rb"\0depends=([^\0]*)", module.read_bytes())
    return [name for name in found[1].decode().split(",") if name] if found else []


def unpack_kernel(cache: Cache, packages: Path) -> Path:
    """Folder with `vmlinuz`, `modules/*.ko` (only what the device needs), `load-watchdog` and `load-disk` (load order)."""
    version = (packages / "kernel-version").read_text()

    def make(folder: Path) -> None:
        unpack(packages, f"linux-image-{version}", folder / "all")
        (folder / f"all/boot/vmlinuz-{version}").rename(folder / "vmlinuz")
        every = {path.stem: path for path in (folder / "all/lib/modules").rglob("*.ko")}
        (folder / "modules").mkdir()

        def order(names: tuple[str, ...], known: list[str]) -> list[str]:
            for name in names:
                if name not in every:
                    continue  # built into the kernel
                order(tuple(_depends(every[name])), known)
                if name not in known:
                    known.append(name)
            return known

        lists = {"load-watchdog": order(WATCHDOG_MODULES, []), "load-disk": order(DISK_MODULES, []), "load-spare": order(SPARE_MODULES, [])}
        for file, names in lists.items():
            (folder / file).write_text("".join(f"{name}\n" for name in names))
            for name in names:
                if every[name].exists():
                    every[name].rename(folder / f"modules/{name}.ko")
        run(["rm", "-rf", folder / "all"])

    return cache.step("kernel", [packages.name, *WATCHDOG_MODULES, *DISK_MODULES, *SPARE_MODULES, "1"], make)


def _requirements() -> list[str]:
    """The core's, and what a member of a site on a serial line needs."""
    import tomllib

    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["fleet"]]


def install_dependencies(cache: Cache) -> Path:
    """Folder with what pip would put into the device's dist-packages for this project's dependencies."""

    def make(folder: Path) -> None:
        say("fetching wheels for arm64")
        platforms = [f"--platform={name}" for name in WHEEL_PLATFORMS]
        options = [
            "--quiet",
            "--disable-pip-version-check",
            "--no-compile",
            "--only-binary=:all:",
            "--implementation=cp",
            "--python-version=3.11",
        ]
        run([sys.executable, "-m", "pip", "install", *options, *platforms, "--target", folder, *_requirements()])

    return cache.step("wheels", [*_requirements(), *WHEEL_PLATFORMS], make)


def install_project(cache: Cache) -> Path:
    """Folder with this project as its own wheel installs it, and `bin/abupdate` as pip writes it on the device."""

    def make(folder: Path) -> None:
        source = folder / "source"
        source.mkdir()
        run(["cp", "-r", TREE / "abupdate", TREE / "pyproject.toml", source])
        for extra in ("README.md", "LICENSE"):
            if (TREE / extra).exists():
                run(["cp", TREE / extra, source])
            else:
                (source / extra).write_text("")
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        run([*pip, "wheel", "--no-deps", "-w", folder / "wheel", source])
        wheel = next((folder / "wheel").glob("*.whl"))
        run([*pip, "install", "--no-deps", "--no-compile", "--target", folder / "site", wheel])
        run(["rm", "-rf", source, folder / "site/bin"])
        (folder / "bin").mkdir()
        program = folder / "bin/abupdate"
        program.write_text("#!/usr/bin/python3\nimport sys\nfrom abupdate.__main__ import main\nsys.exit(main())\n")
        program.chmod(0o755)

    return cache.step("project", [TREE / "abupdate", TREE / "pyproject.toml"], make)
