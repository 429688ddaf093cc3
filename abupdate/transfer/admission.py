"""Whether a bundle may be installed on this device: signatures against the keyring, compatible, hardware revision, updater version."""

from __future__ import annotations

import re
from dataclasses import dataclass

from abupdate.errors import Refused
from abupdate.formats.bundle import Signed
from abupdate.formats.keyring import check_bundle
from abupdate.model import Approval, Keyring, Manifest

_VERSION = re.compile(r"\d{1,9}(?:\.\d{1,9}){0,5}")


@dataclass(frozen=True, slots=True)
class Identity:
    """What this device is. updater: abupdate's own version."""

    compatible: str
    hardware_revision: str
    updater: str


def admit(signed: Signed, keyring: Keyring, device: Identity) -> Approval:
    """Raise Refused unless the bundle is signed for and made for this device. Nothing beyond the manifest has been read."""
    approval = check_bundle(signed.manifest, signed.manifest_bytes, signed.signatures, keyring)
    check_device(signed.manifest, device)
    return approval


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
