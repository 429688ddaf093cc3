"""Whether a bundle may be installed on this device: signatures against the keyring, compatible, hardware revision, updater version."""

from __future__ import annotations

import re
from dataclasses import dataclass

from abupdate.errors import Refused
from abupdate.formats.bundle import Envelope, Signed
from abupdate.formats.trusted import open_with
from abupdate.model import Keyring, Manifest

_VERSION = re.compile(r"\d{1,9}(?:\.\d{1,9}){0,5}")


@dataclass(frozen=True, slots=True)
class Identity:
    """What this device is. updater: abupdate's own version."""

    compatible: str
    hardware_revision: str
    updater: str


def admit(envelope: Envelope, keyring: Keyring, device: Identity) -> Signed:
    """The bundle's manifest, if it is signed for and made for this device. Nothing beyond the envelope has been read. Raises Refused."""
    signed = open_with(envelope, keyring)
    check_device(signed.manifest, device)
    return signed


def check_device(manifest: Manifest, device: Identity) -> None:
    """Compare the manifest's claims with the device, byte for byte: no prefix, no folding of case. Raises Refused."""
    if manifest.compatible != device.compatible:
        raise Refused(f"the bundle is for {manifest.compatible!r}, this device is {device.compatible!r}", "get the bundle for this device")
    revisions = manifest.hardware_revisions
    if revisions and device.hardware_revision not in revisions:
        mine = repr(device.hardware_revision) if device.hardware_revision else "not configured"
        raise Refused(
            f"the bundle is for hardware {', '.join(map(repr, revisions))}, this one is {mine}", "get the bundle for this revision"
        )
    if manifest.min_updater and _parts(device.updater) < _parts(manifest.min_updater):
        raise Refused(f"the bundle needs abupdate {manifest.min_updater}, this is {device.updater}", "update through an older bundle first")


def _parts(version: str) -> tuple[int, ...]:
    match = _VERSION.match(version)
    if match is None:
        raise Refused(f"updater version {version!r} is not numbers and dots", "the bundle's min_updater is wrong")
    numbers = [int(part) for part in match.group().split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
