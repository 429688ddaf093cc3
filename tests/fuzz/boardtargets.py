"""Fuzz targets of boards in the field: variables of other updaters' boot scripts, and their configurations."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from abupdate import config
from abupdate.bootloaders.menderenv import Mender
from abupdate.bootloaders.swupdateenv import SWUpdate
from abupdate.bootloaders.ubootdialect import Dialect, Native
from abupdate.errors import ConfigError
from abupdate.formats.foreignconfig import KINDS, to_toml
from abupdate.formats.ubootenv import Environment
from abupdate.model import BootState, TrialPolicy

SLOTS = ("A", "B")
DIALECTS: tuple[Dialect, ...] = (
    Mender(SLOTS, {"A": 9, "B": 10}),
    SWUpdate(SLOTS, "rootfs", {"A": "first", "B": "second"}),
    Native(SLOTS, rauc=True),
)
# What each dialect's commits change; everything else is somebody else's.
_OURS = re.compile(rb"BOOT_.*|mender_boot_part(_hex)?|upgrade_available|bootcount|bootlimit|rootfs|ustate", re.DOTALL)

VARIABLES = (
    "mender_boot_part=9\0mender_boot_part_hex=9\0upgrade_available=1\0bootcount=1\0bootlimit=3\0BOOT_ORDER=A B\0BOOT_B_LEFT=0\0x=1",
    "mender_check_saveenv_canary=1\0mender_boot_part=10\0bootlimit=0\0BOOT_FLOOR=7",
    "rootfs=second\0ustate=3\0upgrade_available=0\0bootcount=0\0bootlimit=2\0BOOT_ORDER=A B\0BOOT_TRIES=2\0BOOT_TIMEOUT=5a",
    "rootfs=first\0ustate=1\0bootcount=12\0bootlimit=11",
)
CONFIGURATIONS = (
    "[system]\ncompatible=x\nbootloader=uboot\nboot-attempts=4\n[slot.rootfs.0]\ndevice=/dev/a\nbootname=A\n[slot.app.0]\ndevice=/dev/c\n"
    "parent=rootfs.0\n[slot.rootfs.1]\ndevice=/dev/b\nbootname=B\n[slot.app.1]\ndevice=/dev/d\nparent=rootfs.1\n",
    '{\n"RootfsPartA": "/dev/mmcblk0p2",\n"RootfsPartB": "/dev/mmcblk0p3",\n"ServerURL": "x"\n}\n',
    'software =\n{\nversion = "1"; // of it\nstable : {\ncopy-1 : {\nimages: ( { filename = "r.img";\ndevice = "/dev/a"; } );\n'
    'bootenv: ( { name = "part"; value = "2"; }, { name = "ustate"; value = "1"; } );\n};\ncopy-2 : {\n'
    'images: ( { filename = "r" ".img"; device = "/dev/b"; size = 0x1FL; } );\n/* and */\n'
    'bootenv: ( { name = "part"; value = "3"; } );\n};\n};\n}\n',
)


def run_dialects(data: bytes) -> bool:
    """Variables, with zero bytes between them: read or refused in one line; what is committed is read back, nothing else touched."""
    environment = Environment(tuple(entry for entry in data.split(b"\0") if entry))
    good = BootState(("B", "A"), {"A": 1, "B": 1}, policy=TrialPolicy(1, 0, 90), floor=5)
    armed = BootState(("B", "A"), {"A": 1, "B": 1}, "B", TrialPolicy(1, 0, 90))
    accepted = False
    for dialect in DIALECTS:
        complaint = ""
        try:
            state = dialect.state_of(environment)
            assert set(state.left) == set(SLOTS)
            assert set(state.order) <= set(SLOTS)
            changed = dialect.changed(environment, good)
        except ConfigError as error:
            complaint = error.line
        assert complaint.isprintable()
        assert len(complaint) < 400
        if complaint:
            continue
        assert all(finding.hint and finding.text.isprintable() for finding in dialect.inspect(environment))
        seen = dialect.state_of(changed)
        assert (seen.order, seen.left, seen.trial, seen.floor) == (good.order, good.left, None, 5)
        assert _foreign(changed) == _foreign(environment)
        with suppress(ConfigError):
            seen = dialect.state_of(dialect.changed(environment, armed))
            assert (seen.order, seen.left, seen.trial) == (armed.order, armed.left, "B")
            accepted = True
    return accepted


def _foreign(environment: Environment) -> list[bytes]:
    return [entry for entry in environment.entries if not _OURS.fullmatch(entry.partition(b"=")[0])]


def run_foreign(data: bytes) -> bool:
    """The configuration of another updater: one that ours reads, or one line."""
    accepted = False
    for kind in KINDS:
        complaint = text = ""
        try:
            text = to_toml(kind, data, "file")
        except ConfigError as error:
            complaint = error.line
        assert complaint.isprintable()
        assert len(complaint) < 500
        if text:
            config.compose([(Path("/c"), text.encode())], Path("/c"))
            accepted = True
    return accepted
