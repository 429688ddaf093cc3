"""Settings to boot stores: as wiring.py, for the kinds of bootloaders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from abupdate.config import Settings, check_private
from abupdate.devices.thisboot import kernel_argument
from abupdate.errors import ConfigError
from abupdate.model import BootTraits
from abupdate.ports import Bootloader

if TYPE_CHECKING:
    from abupdate.bootloaders.ubootdialect import Dialect


def bootloader(settings: Settings, *, petting: bool = False) -> tuple[Bootloader, str]:
    """The configured store, and why it can be lost by a power cut (empty: it cannot). petting: a watchdog is petted between two calls.

    Raises ConfigError.
    """
    store = _KINDS[settings.bootloader.kind](settings, petting)
    return store, "" if settings.bootloader.allow_single_env else store.tears


def check_traits(settings: Settings, traits: BootTraits) -> None:
    """Refuse a configuration that asks for more than the bootloader can do. Raises ConfigError."""
    if settings.trial.tries > traits.max_tries:
        raise ConfigError(
            f"[trial] tries = {settings.trial.tries}, {settings.bootloader.kind} can count {traits.max_tries}",
            f"set tries = {traits.max_tries}",
        )
    if settings.trial.confirmed_tries and not traits.counts_confirmed:
        raise ConfigError(f"{settings.bootloader.kind} does not count boots of confirmed slots", "set confirmed_tries = 0")
    if settings.trial.confirmed_tries > traits.max_confirmed:
        raise ConfigError(
            f"[trial] confirmed_tries = {settings.trial.confirmed_tries}, the boot script can count {traits.max_confirmed}",
            f"set confirmed_tries = {traits.max_confirmed}",
        )


def _uboot(settings: Settings, petting: bool) -> Bootloader:
    from abupdate.bootloaders.envlock import WRITE_WAIT_S
    from abupdate.bootloaders.uboot import UBootStore

    # It says where to write as root.
    if settings.bootloader.fw_env_config.exists():
        check_private(settings.bootloader.fw_env_config, "configuration")
    # Ending a trial reads and writes several times in one go.
    wait_s = min(WRITE_WAIT_S, settings.watchdog.timeout_s / 10) if petting else WRITE_WAIT_S
    slots = tuple(settings.slots)
    return UBootStore(settings.bootloader.fw_env_config, slots, dialect=uboot_dialect(settings, slots), lock_wait_s=wait_s)


def uboot_dialect(settings: Settings, slots: tuple[str, ...]) -> Dialect:
    """Whose boot script U-Boot runs. Raises ConfigError for a dialect whose values are not configured."""
    from abupdate.bootloaders.ubootdialect import Native

    chosen = settings.bootloader
    if chosen.dialect == "mender":
        from abupdate.bootloaders.menderenv import Mender

        return Mender(slots, chosen.partitions)
    if chosen.dialect == "swupdate":
        from abupdate.bootloaders.swupdateenv import SWUpdate

        return SWUpdate(slots, chosen.copy_var, chosen.copy_values)
    if not chosen.dialect and kernel_argument("rauc.slot") is not None and kernel_argument("abupdate.slot") is None:
        # Our counters go beyond what that script can read: the first refill would make it pass over the good slot.
        hint = 'set [bootloader] dialect = "rauc"; a script that counts in hexadecimal throughout says so with abupdate.slot='
        raise ConfigError("this kernel was started by RAUC's boot script, not by ours", hint)
    return Native(slots, rauc=chosen.dialect == "rauc")


def _grub(settings: Settings, petting: bool) -> Bootloader:
    from abupdate.bootloaders.grub import GrubStore

    # As with U-Boot.
    waits_s = settings.watchdog.timeout_s / 10 if petting else None
    return GrubStore(settings.bootloader.grubenv, tuple(settings.slots), settings.bootloader.dialect, lock_wait_s=waits_s)


def _tryboot(settings: Settings, petting: bool) -> Bootloader:
    from abupdate.bootloaders.tryboot import TrybootStore

    return TrybootStore(settings.bootloader.autoboot, tuple(settings.slots), settings.bootloader.partitions)


def _systemd_boot(settings: Settings, petting: bool) -> Bootloader:
    from abupdate.bootloaders.systemdboot import SystemdBootStore

    images = {slot: part.images for slot, part in settings.slots.items()}
    chosen = settings.bootloader
    return SystemdBootStore(chosen.esp, tuple(settings.slots), images, chosen.cmdline, tries=settings.trial.tries)


def _efi(settings: Settings, petting: bool) -> Bootloader:
    """Firmware that boots the slots' kernels itself. Raises ConfigError for a slot without one."""
    from abupdate.bootloaders.efi import EfiStore
    from abupdate.bootloaders.efientries import SlotFiles

    slots = {}
    for slot, part in settings.slots.items():
        kernel, unified = part.images.get("kernel"), part.images.get("uki")
        if (kernel is None) == (unified is None):
            hint = f'kernel = "{settings.bootloader.esp}/abu/{slot}/vmlinuz" in [slots.{slot}], or uki = "..."'
            raise ConfigError(f"slot {slot} must have either an image `kernel` or an image `uki`: firmware loads it", hint)
        arguments = settings.bootloader.cmdline.get(slot, "")
        program = kernel or unified
        assert program is not None
        slots[slot] = SlotFiles(program, part.images.get("initrd") if kernel else None, arguments, unified is not None)
    return EfiStore(slots, esp=settings.bootloader.esp)


def _custom(settings: Settings, petting: bool) -> Bootloader:
    from abupdate.bootloaders.custom import PATIENCE_S, CustomStore

    # Ending a trial asks and tells several times in one go.
    patience_s = min(PATIENCE_S, settings.watchdog.timeout_s / 6) if petting else PATIENCE_S
    return CustomStore(settings.bootloader.programs, tuple(settings.slots), patience_s=patience_s)


_KINDS: Mapping[str, Callable[[Settings, bool], Bootloader]] = {
    "uboot": _uboot,
    "grub": _grub,
    "systemd-boot": _systemd_boot,
    "efi": _efi,
    "tryboot": _tryboot,
    "custom": _custom,
}
