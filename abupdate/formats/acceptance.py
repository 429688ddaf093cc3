"""Whether a bundle, whose signatures were accepted already, is meant for this device. Pure comparisons, each Refused alone.

Names are compared as exact bytes: no case folding, no normal forms, no prefixes.
"""

from __future__ import annotations

from abupdate.errors import Refused
from abupdate.formats.tlv import newer
from abupdate.model import Manifest


def check_compatible(manifest: Manifest, compatible: str) -> None:
    """Refuse a bundle that was made for other devices."""
    if manifest.compatible.encode() != compatible.encode():
        raise Refused(f"the bundle is for {manifest.compatible!r}, this device is {compatible!r}")


def check_hardware(manifest: Manifest, revision: str) -> None:
    """Refuse a bundle that names hardware revisions and not this one; an empty `revision` is a device that does not know its own."""
    if manifest.hardware_revisions and revision.encode() not in {item.encode() for item in manifest.hardware_revisions}:
        known = ", ".join(manifest.hardware_revisions)
        mine = repr(revision) if revision else "not configured"
        raise Refused(f"the bundle is for hardware revision {known}, this device's is {mine}", "" if revision else "set hardware_revision")


def check_updater(manifest: Manifest, version: str) -> None:
    """Refuse a bundle that asks for a newer abupdate than `version` (numbers joined by dots; what follows them does not count)."""
    if manifest.min_updater and _numbers(version) < _numbers(manifest.min_updater):
        raise newer(f"the bundle (at least {manifest.min_updater}, this is {version})")


def check_counter(manifest: Manifest, floor: int) -> None:
    """Refuse a bundle whose security counter is below the floor that this device has confirmed."""
    if manifest.security_counter < floor:
        raise Refused(
            f"the bundle's security counter {manifest.security_counter} is below {floor}, which this device has confirmed",
            "a downgrade would bring back closed holes; build the old content with a new counter",
        )


def _numbers(version: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
