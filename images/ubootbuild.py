"""Builds, from Debian's source package, a U-Boot for QEMU's arm64 machine that keeps its own redundant environment on an SD card.

Debian's own u-boot-qemu has its environment in flash, single, and `saveenv` fails there. This one is what many boards ship with: two
copies on MMC, a boot counter in it, `altbootcmd` beyond the limit. Built once (about a minute) and kept under .cache/images.
Run alone: `python -m images.ubootbuild`.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path

from images.cache import TREE, Cache, run, say

PACKAGE = "u-boot"
BOARD = "qemu_arm64_defconfig"
# Where the two copies lie on the SD card, and how long each is: the partition `env` of bootloader-hooks/README.md.
ENV_OFFSETS = (0x900000, 0x980000)
ENV_BYTES = 0x4000
CONFIG = f"""
# CONFIG_ENV_IS_IN_FLASH is not set
CONFIG_MMC=y
CONFIG_DM_MMC=y
CONFIG_CMD_MMC=y
CONFIG_MMC_SDHCI=y
CONFIG_MMC_PCI=y
CONFIG_ENV_IS_IN_MMC=y
CONFIG_SYS_MMC_ENV_DEV=0
CONFIG_SYS_REDUNDAND_ENVIRONMENT=y
CONFIG_ENV_OFFSET={ENV_OFFSETS[0]:#x}
CONFIG_ENV_OFFSET_REDUND={ENV_OFFSETS[1]:#x}
CONFIG_ENV_SIZE={ENV_BYTES:#x}
CONFIG_BOOTCOUNT_LIMIT=y
CONFIG_BOOTCOUNT_ENV=y
CONFIG_BOOTDELAY=0
CONFIG_USE_BOOTCOMMAND=y
CONFIG_BOOTCOMMAND="load mmc 0:1 ${{scriptaddr}} boot.scr && source ${{scriptaddr}}; poweroff"
"""
# PCI is probed before the environment is loaded; without it the card does not exist yet and U-Boot runs with its defaults.
FLAGS = "-DCONFIG_SYS_EARLY_PCI_INIT=1"
CROSS = "aarch64-linux-gnu-"
NEEDED = {
    f"{CROSS}gcc": "gcc-aarch64-linux-gnu",
    "bison": "bison",
    "flex": "flex",
    "bc": "bc",
    "make": "make",
    "dpkg-source": "dpkg-dev",
    "/usr/include/openssl/evp.h": "libssl-dev",
}


class CannotBuild(SystemExit):
    """U-Boot cannot be had on this machine (packages or network missing): what needs it is to be left out, and to say so."""


_DEB_LINE = re.compile(r"^(\s*)deb(\s)", re.MULTILINE)
_DEB_TYPES = re.compile(r"^Types:.*$", re.MULTILINE | re.IGNORECASE)


def missing_packages() -> tuple[str, ...]:
    """Debian packages without which it cannot be built here; nothing is needed where the result is cached."""
    found = {name: Path(name).exists() if name.startswith("/") else shutil.which(name) is not None for name in NEEDED}
    return tuple(package for name, package in NEEDED.items() if not found[name])


def source_lists(machine: Path, folder: Path) -> int:
    """Write into `folder` what fetches sources from wherever the machine's apt gets its packages; returns how many lists there were.

    machine: /etc/apt. Both of apt's forms are known; what is switched off stays off.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lists = [machine / "sources.list", *sorted((machine / "sources.list.d").glob("*"))]
    lists = [path for path in lists if path.is_file() and path.suffix in (".list", ".sources")]
    for path in lists:
        text = path.read_text()
        pattern, line = (_DEB_LINE, r"\1deb-src\2") if path.suffix == ".list" else (_DEB_TYPES, "Types: deb-src")
        (folder / path.name).write_text(pattern.sub(line, text))
    return len(lists)


def _fetch(state: Path, folder: Path) -> None:
    """The unpacked, patched source in `folder`/source. Signatures are checked by apt; the machine's package state stays as it is."""
    for part in ("lists/partial", "archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    shutil.rmtree(state / "sources", ignore_errors=True)
    source_lists(Path("/etc/apt"), state / "sources")
    (state / "status").touch()
    config = state / "apt.conf"
    config.write_text(
        f'Dir::State "{state}";\nDir::State::lists "{state}/lists";\nDir::State::status "{state}/status";\n'
        f'Dir::Cache "{state}";\nDir::Cache::archives "{state}/archives";\n'
        f'Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "{state}/sources";\n'
        'Acquire::Languages "none";\nAcquire::Retries "3";\nAPT::Sandbox::User "root";\n'
    )
    environment = {"APT_CONFIG": str(config), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    try:
        run(["apt-get", "update"], env=environment)
        run(["apt-get", "source", "--download-only", "--only-source", PACKAGE], env=environment, cwd=folder)
    except SystemExit as error:
        raise CannotBuild(f"images: U-Boot's source cannot be fetched: {str(error).splitlines()[-1]}") from None
    run(["dpkg-source", "--no-check", "-x", next(folder.glob("*.dsc")), folder / "source"])


def build_uboot(cache: Cache) -> Path:
    """Folder with `u-boot.bin`, `u-boot-initial-env`, `config`, `version`.

    Raises CannotBuild (one line) where this machine cannot, SystemExit where the build fails.
    """

    def make(folder: Path) -> None:
        missing = missing_packages()
        if missing:
            raise CannotBuild(f"images: U-Boot cannot be built here: apt-get install --no-install-recommends {' '.join(missing)}")
        say("fetching U-Boot's source, and building it")
        work = folder / "work"
        work.mkdir()
        _fetch(cache.folder / "apt-source", work)
        source = work / "source"
        make_uboot: list[str | Path] = [
            "make",
            "-s",
            "-C",
            source,
            f"CROSS_COMPILE={CROSS}",
            f"KCPPFLAGS={FLAGS}",
            f"-j{os.cpu_count() or 1}",
        ]
        run([*make_uboot, BOARD])
        with (source / ".config").open("a") as file:
            file.write(CONFIG)
        run([*make_uboot, "olddefconfig"])
        made = (source / ".config").read_text()
        for line in CONFIG.split("\n"):
            if line and line not in made.split("\n"):
                raise SystemExit(f"images: this version of U-Boot does not take {line}")
        run([*make_uboot, "u-boot.bin", "u-boot-initial-env"])
        for name in ("u-boot.bin", "u-boot-initial-env"):
            shutil.copy(source / name, folder / name)
        shutil.copy(source / ".config", folder / "config")
        (folder / "version").write_text(next(work.glob("*.dsc")).stem + "\n")
        shutil.rmtree(work)

    return cache.step("uboot", [PACKAGE, BOARD, CONFIG, FLAGS, "1"], make)


def uboot() -> Path:
    """`build_uboot` in this checkout's cache, once even where several ask for it at the same time."""
    folder = TREE / ".cache/images"
    cache = Cache(folder)
    with (folder / "uboot.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = build_uboot(cache)
        cache.drop_unused()
    return made


if __name__ == "__main__":
    print(uboot())
