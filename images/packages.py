"""Fetches the Debian packages and wheels of the device, from wherever this machine's own apt and pip get theirs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from images.arch import Arch
from images.cache import TREE, Cache, run, say

BUSYBOX = ("busybox-static",)
# Drivers of watchdogs are loaded by the initramfs before all others, so that a trial is guarded early.
WATCHDOG_MODULES = ("i6300esb",)
# Loaded where the kernel's arguments or the root file system ask for them.
VERITY_MODULES = ("sha2-ce", "dm-mod", "dm-verity")
READONLY_MODULES = ("squashfs", "erofs")
OVERLAY_MODULES = ("overlay",)
# What the device with systemd has besides.
SYSTEMD = tuple(
    """
    systemd libsystemd-shared libsystemd0 udev libudev1 util-linux mount libmount1 libsmartcols1 kmod libkmod2 libfdisk1 libaudit1
    libcap-ng0 libapparmor1 libcap2 libcryptsetup12 libdevmapper1.02.1 libargon2-1 libjson-c5 libgcrypt20 libgpg-error0 liblz4-1 libzstd1
    libp11-kit0 libseccomp2 libselinux1 libpcre2-8-0 libacl1 libip4tc2 libpam0g dmsetup systemd-boot
""".split()  # noqa: SIM905
)
# Whose program the firmware starts.
BOOT_MANAGER = "systemd-boot-efi"


def _apt_config(arch: Arch, folder: Path) -> Path:
    """An apt of its own for one architecture: the machine's sources, but nothing of the machine's package state is touched."""
    for part in ("lists/partial", "archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    config = folder / "apt.conf"
    config.write_text(
        f'Dir::State "{folder}";\nDir::State::lists "{folder}/lists";\nDir::State::status "{folder}/status";\n'
        f'Dir::Cache "{folder}";\nDir::Cache::archives "{folder}/archives";\n'
        f'APT::Architecture "{arch.debian}";\nAPT::Architectures "{arch.debian}";\nAcquire::Languages "none";\nAcquire::Retries "3";\n'
        'APT::Sandbox::User "root";\n'
    )
    return config


def _apt(arch: Arch, cache: Cache) -> dict[str, str]:
    """Lists of packages brought up to date, and the environment in which apt looks at them."""
    say(f"fetching Debian packages for {arch.debian}")
    apt = _apt_config(arch, cache.folder / f"{arch.prefix}apt")
    environment = {"APT_CONFIG": str(apt), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    run(["apt-get", "update"], env=environment)
    return environment


def fetch_packages(cache: Cache, arch: Arch) -> Path:
    """Folder with `debs/*.deb` and `kernel-version`; the network is used only where it is not cached."""

    def make(folder: Path) -> None:
        environment = _apt(arch, cache)
        depends = run(["apt-cache", "depends", arch.kernel], env=environment)
        found = re.search(rf"Depends: (linux-image-(\S+-{arch.debian}))$", depends, re.MULTILINE)
        if found is None:
            raise SystemExit(f"images: {arch.kernel} names no kernel package; run apt-get update and look at apt-cache depends")
        debs = folder / "debs"
        debs.mkdir()
        run(["apt-get", "download", found[1], *BUSYBOX, *arch.system], env=environment, cwd=debs)
        (folder / "kernel-version").write_text(found[2])

    return cache.step(f"{arch.prefix}packages", [arch.kernel, *BUSYBOX, *arch.system], make)


def fetch_systemd(cache: Cache, arch: Arch) -> Path:
    """Folder with `debs/*.deb` of SYSTEMD and BOOT_MANAGER."""

    def make(folder: Path) -> None:
        environment = _apt(arch, cache)
        (folder / "debs").mkdir()
        run(["apt-get", "download", *SYSTEMD, BOOT_MANAGER], env=environment, cwd=folder / "debs")

    return cache.step(f"{arch.prefix}systemd-packages", [*SYSTEMD, BOOT_MANAGER], make)


def unpack(packages: Path, name: str, target: Path) -> None:
    """Extract one downloaded package into a folder."""
    deb = next((packages / "debs").glob(f"{name}_*.deb"))
    run(["dpkg-deb", "-x", deb, target])


def _depends(module: Path) -> list[str]:
    found = re.search(rb"\0depends=([^\0]*)", module.read_bytes())
    return [name for name in found[1].decode().split(",") if name] if found else []


def unpack_kernel(cache: Cache, arch: Arch, packages: Path) -> Path:
    """Folder with `vmlinuz`, `modules/*.ko` (only what the device needs), and a list `load-*` in load order of each group of them."""
    version = (packages / "kernel-version").read_text()
    groups = {
        "load-watchdog": WATCHDOG_MODULES,
        "load-disk": arch.disk_modules,
        "load-verity": VERITY_MODULES,
        "load-readonly": READONLY_MODULES,
        "load-spare": (*arch.spare_modules, *OVERLAY_MODULES),
    }

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

        # All of them before the first one is moved: groups may need the same ones.
        lists = {file: order(wanted, []) for file, wanted in groups.items()}
        for file, names in lists.items():
            (folder / file).write_text("".join(f"{name}\n" for name in names))
            for name in names:
                if every[name].exists():
                    every[name].rename(folder / f"modules/{name}.ko")
        for name in ("modules.builtin", "modules.order"):
            (folder / f"all/lib/modules/{version}/{name}").rename(folder / name)
        (folder / "version").write_text(version)
        run(["rm", "-rf", folder / "all"])

    return cache.step(f"{arch.prefix}kernel", [packages.name, repr(groups), "2"], make)


def _requirements() -> list[str]:
    """The core's, and what a member of a site on a serial line needs."""
    import tomllib

    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["fleet"]]


def install_dependencies(cache: Cache, arch: Arch) -> Path:
    """Folder with what pip would put into the device's dist-packages for this project's dependencies."""

    def make(folder: Path) -> None:
        say(f"fetching wheels for {arch.debian}")
        platforms = [f"--platform={name}" for name in arch.wheel_platforms]
        options = [
            "--quiet",
            "--disable-pip-version-check",
            "--no-compile",
            "--only-binary=:all:",
            "--implementation=cp",
            "--python-version=3.11",
        ]
        run([sys.executable, "-m", "pip", "install", *options, *platforms, "--target", folder, *_requirements()])

    return cache.step(f"{arch.prefix}wheels", [*_requirements(), *arch.wheel_platforms], make)


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
