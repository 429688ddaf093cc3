"""Which device file a USB serial adapter has now: found by its numbers, wherever it is plugged in; and word when one is plugged in.

From udev where that runs and pyudev is installed; else from sysfs, and then a caller that waits for an adapter has to look again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abupdate.log import log

PREFIX = "usb:"
_UDEV_DATA = Path("/run/udev/data")
_CLASS_TTY = Path("/sys/class/tty")
_DEV = Path("/dev")


@dataclass(frozen=True, slots=True)
class Adapter:
    """vendor, product: four hexadecimal digits. serial: empty: any; of an adapter that was found: empty where it has none."""

    vendor: str
    product: str
    serial: str = ""
    node: Path = Path()

    def is_a(self, wanted: Adapter) -> bool:
        """This adapter is one that is wanted."""
        return (self.vendor, self.product) == (wanted.vendor, wanted.product) and wanted.serial in ("", self.serial)


def parse(text: str) -> Adapter:
    """`usb:VENDOR:PRODUCT[:SERIAL]`, checked before."""
    vendor, product, *serial = text.removeprefix(PREFIX).split(":", 2)
    return Adapter(vendor.lower(), product.lower(), "".join(serial))


def find(device: str, *, folder: Path = _CLASS_TTY) -> Path | None:
    """The device file for `serial_device`: the path that it is, or that of the adapter that it names; None where that is not plugged in.

    Of several the first by name, and a line in the log.
    """
    if not device.startswith(PREFIX):
        path = Path(device)
        return path if path.exists() else None
    wanted = parse(device)
    found = sorted({one.node: one for one in _adapters(folder) if one.is_a(wanted)}.items())
    if len(found) > 1:
        names = ", ".join(f"{node} ({one.serial or 'no serial number'})" for node, one in found)
        log.warning("%s is more than one adapter: %s; taking the first", device, names)
    return found[0][0] if found else None


def _adapters(folder: Path) -> Iterator[Adapter]:
    pyudev = _pyudev() if folder == _CLASS_TTY else None
    if pyudev is None:
        yield from _from_sysfs(folder)
        return
    for device in pyudev.Context().list_devices(subsystem="tty"):
        # Together, for udev would take several conditions as alternatives.
        said: Mapping[str, str] = device.properties
        if device.device_node and said.get("ID_BUS") == "usb":
            vendor, product = said.get("ID_VENDOR_ID", ""), said.get("ID_MODEL_ID", "")
            yield Adapter(vendor.lower(), product.lower(), said.get("ID_SERIAL_SHORT", ""), Path(device.device_node))


def _from_sysfs(folder: Path) -> Iterator[Adapter]:
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            with contextlib.suppress(OSError):
                yield from _usb_parent(entry)


def _usb_parent(entry: Path) -> Iterator[Adapter]:
    for parent in (entry / "device").resolve(strict=True).parents:
        if (parent / "idVendor").exists():
            vendor, product = ((parent / name).read_text().strip().lower() for name in ("idVendor", "idProduct"))
            # Whatever an adapter calls itself: one must not keep the daemon from looking at the others.
            serial = (parent / "serial").read_text(errors="replace").strip() if (parent / "serial").exists() else ""
            yield Adapter(vendor, product, serial, _DEV / entry.name)
            return


class PlugWatch:
    """Readable as soon as a serial device comes. Without udev it never is: descriptor -1."""

    def __init__(self) -> None:
        self._monitor: Any = None
        pyudev = _pyudev()
        if pyudev is None:
            return
        try:
            monitor = pyudev.Monitor.from_netlink(pyudev.Context())
            monitor.filter_by("tty")
            monitor.start()
        except (OSError, ValueError) as error:
            log.info("no word from udev about adapters: %s", error)
            return
        self._monitor = monitor

    @property
    def descriptor(self) -> int:
        """To wait on for reading, or -1."""
        return self._monitor.fileno() if self._monitor is not None else -1

    def came(self) -> bool:
        """A serial device has come since the last call."""
        came = False
        while self._monitor is not None and (device := self._monitor.poll(timeout=0)) is not None:
            came = came or device.action in ("add", "change", "bind")
        return came

    def close(self) -> None:
        """Hear no more of it."""
        # pyudev closes the socket when nothing refers to it any more.
        self._monitor = None


def _pyudev() -> Any:
    """The library; None where it is not installed or udev does not run."""
    if not _UDEV_DATA.is_dir():
        return None
    try:
        import pyudev
    except ImportError:
        return None
    return pyudev
