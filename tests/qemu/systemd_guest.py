"""What the tests of devices with systemd ask the guest, whatever the bootloader: units, the journal, the root file system."""

from __future__ import annotations

import json

from qemu.machine import Machine

TRIAL, SERVICE = "abupdate-trial.service", "abupdate.service"


def shown(device: Machine, unit: str, *names: str) -> list[str]:
    """Properties of a unit."""
    lines = device.check(f"systemctl show {unit} -p {','.join(names)}").splitlines()
    found = dict(line.split("=", 1) for line in lines)
    return [found[name] for name in names]


def active(device: Machine, unit: str) -> str:
    return device.run(f"systemctl is-active {unit}").output


def root_hash(device: Machine, bundle: str) -> str:
    """The root hash that a bundle's manifest signs."""
    images = json.loads(device.check(f"abupdate --json info /bundles/{bundle}.abu"))["images"]
    return next(str(image["verity_root"]) for image in images if image["name"] == "rootfs")


def root_mount(device: Machine) -> list[str]:
    """Device, file system and options of /."""
    return device.check("awk '$2 == \"/\" { print $1, $3, $4 }' /proc/mounts | tail -n 1").split()


def pets(device: Machine, unit: str) -> bool:
    """Whether the main process of a unit holds the watchdog."""
    return "/dev/watchdog0" in device.run(f"ls -l /proc/$(systemctl show -P MainPID {unit})/fd").output


def journal(device: Machine, unit: str) -> list[dict[str, str]]:
    """Entries of this boot that a unit's processes wrote themselves."""
    lines = device.check(f"journalctl -b -o json _SYSTEMD_UNIT={unit}").splitlines()
    return [{name: str(value) for name, value in json.loads(line).items()} for line in lines]
