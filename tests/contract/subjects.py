"""Every adapter that the contract holds, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.contract.custom import Custom
from tests.contract.efi import Efi
from tests.contract.grub import Grub, GrubRauc
from tests.contract.sdboot import SdBoot
from tests.contract.subject import Subject
from tests.contract.tryboot import Tryboot
from tests.contract.uboot import UBoot
from tests.contract.ubootdialects import OnMender, OnSWUpdate, Rauc

SUBJECTS: Mapping[str, Callable[[Path], Subject]] = {
    "uboot": UBoot,
    "uboot-rauc": Rauc,
    "uboot-mender": OnMender,
    "uboot-swupdate": OnSWUpdate,
    "efi": Efi,
    "grub": Grub,
    "grub-rauc": GrubRauc,
    "tryboot": Tryboot,
    "custom": Custom,
    "systemd-boot": SdBoot,
}
