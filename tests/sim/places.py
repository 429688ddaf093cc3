"""Every store that the crash simulator explores; the first one with the most subsets."""

from __future__ import annotations

from tests.sim import efi, grub
from tests.sim.board import BOARD
from tests.sim.bootplace import BootPlace
from tests.sim.pi import PI
from tests.sim.sdboot import SDBOOT
from tests.sim.stores import STORES
from tests.sim.ubootdialects import PLACES as UBOOT_DIALECTS

PLACES: tuple[BootPlace, ...] = (*STORES, *UBOOT_DIALECTS, *efi.PLACES, *grub.PLACES, PI, SDBOOT, BOARD)
