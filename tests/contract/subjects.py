"""Every adapter that the contract holds, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.contract.efi import Efi
from tests.contract.subject import Subject
from tests.contract.uboot import UBoot

SUBJECTS: Mapping[str, Callable[[Path], Subject]] = {"uboot": UBoot, "efi": Efi}
