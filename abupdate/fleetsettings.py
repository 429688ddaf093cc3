"""The section [fleet] of the configuration: how this device reaches its peers, and what it does on its own account.

Whoever has the section is a member of a site. The site's own rules (who belongs to it, budgets, thresholds) are in the membership, which
its root keys sign, and never here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from abupdate.errors import ConfigError

APPROVALS = ("auto", "manual")
# Type and bounds of every key, in the terms of config.py.
SPEC: Mapping[str, tuple[type, object]] = {
    "udp_interface": (str, (0, 15)),
    "udp_group": (str, (0, 64)),
    "udp_port": (int, (1, 65535)),
    "udp_peers": (tuple, (0, 64)),
    "serial_device": (str, (0, 256)),
    "serial_baud": (int, (9600, 4_000_000)),
    "serial_turnaround_ms": (int, (0, 100)),
    "serial_rs485": (bool, None),
    "approve": (str, APPROVALS),
    "window": (str, (0, 11)),
    "drain_timeout_s": (int, (1, 3600)),
    "hook_timeout_s": (int, (1, 600)),
    "hooks": (Path, None),
    "control": (Path, None),
    "tpm_nv": (int, (0x1000000, 0x1BFFFFF)),
}
_INTERFACE = re.compile(r"[^\s/\x00-\x1f]{1,15}")
_WINDOW = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")
_USB = re.compile(r"usb:[0-9a-f]{4}:[0-9a-f]{4}(:[^:\s]{1,64})?")
_DAY_MIN = 24 * 60


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """udp_interface: network interface to the peers, empty: no UDP. udp_group: multicast address (IPv4 or IPv6), empty: unicast alone.

    udp_peers: "address:port" of peers that multicast does not reach, IPv6 in brackets.
    serial_device: a path, or "usb:VENDOR:PRODUCT[:SERIAL]" of an adapter wherever it is plugged in; empty: no serial line.
    serial_turnaround_ms: how long a node needs to go from listening to sending. serial_rs485: the kernel switches the direction.
    approve: "auto" or "manual" (`fleet approve` on this node). window: "HH:MM-HH:MM" in local time when this node lets updates begin,
    empty: always. drain_timeout_s, hook_timeout_s: of each program in `hooks`, the folder of peer-leaving, peer-returned, drain and
    restore. control: socket of the daemon. tpm_nv: handle of the TPM's NV index that keeps the number of this node's last start, 0: none.
    """

    udp_interface: str = ""
    udp_group: str = "239.255.77.71"
    udp_port: int = 7717
    udp_peers: tuple[str, ...] = ()
    serial_device: str = ""
    serial_baud: int = 115200
    serial_turnaround_ms: int = 3
    serial_rs485: bool = False
    approve: str = "auto"
    window: str = ""
    drain_timeout_s: int = 120
    hook_timeout_s: int = 30
    hooks: Path = Path("/etc/abupdate")
    control: Path = Path("/run/abupdate/fleet.sock")
    tpm_nv: int = 0

    @property
    def peers(self) -> tuple[tuple[str, int], ...]:
        """`udp_peers` taken apart: address (no brackets) and port."""
        return tuple(map(_peer, self.udp_peers))

    def window_open(self, minute: int) -> bool:
        """Whether the maintenance window is open at this minute of the day (0-1439, local time); one may go past midnight."""
        match = _WINDOW.fullmatch(self.window)
        if match is None:
            return True
        first, last = (60 * int(match[part]) + int(match[part + 1]) for part in (1, 3))
        return (minute - first) % _DAY_MIN < (last - first) % _DAY_MIN


def checked(settings: FleetSettings) -> FleetSettings:
    """The settings, when they make sense together. Raises ConfigError."""
    if not settings.udp_interface and not settings.serial_device:
        raise ConfigError("[fleet] says not how the peers are reached", "add udp_interface or serial_device")
    if settings.udp_interface and not _INTERFACE.fullmatch(settings.udp_interface):
        raise ConfigError(f"fleet.udp_interface {settings.udp_interface!r} is not the name of an interface", 'as in "eth0"')
    if settings.udp_group:
        _check_group(settings.udp_group)
    elif settings.udp_interface and not settings.udp_peers:
        raise ConfigError("[fleet] has neither udp_group nor udp_peers", "name one of them")
    peers = settings.peers
    if len(set(peers)) != len(peers):
        raise ConfigError("fleet.udp_peers names a peer twice", "name each once")
    device = settings.serial_device
    if device and not device.startswith("/") and not _USB.fullmatch(device):
        raise ConfigError(f"fleet.serial_device {device[:60]!r} is neither a path nor a USB adapter", '"/dev/ttyS1" or "usb:0403:6001"')
    if settings.window:
        match = _WINDOW.fullmatch(settings.window)
        if match is None or match[1] + match[2] == match[3] + match[4]:
            raise ConfigError(f"fleet.window {settings.window!r} is not a time of day", 'as in "02:00-04:00"')
    return settings


def _check_group(text: str) -> None:
    # Late: few devices have this section, and every verb reads the configuration.
    from ipaddress import ip_address

    try:
        group = ip_address(text)
    except ValueError:
        group = None
    if group is None or not group.is_multicast or "%" in text:
        raise ConfigError(f"fleet.udp_group {text[:60]!r} is not a multicast address", 'as in "239.255.77.71" or "ff02::4d47"')


def _peer(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    wrong = ConfigError(f"fleet.udp_peers: {text[:60]!r} is not an address with a port", 'as in "192.0.2.7:7717" or "[fe80::7]:7717"')
    if not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port[:6]) <= 65535:
        raise wrong
    from ipaddress import IPv4Address, IPv6Address

    # No names: asking for one would hold the daemon up for as long as no server answers. The link is udp_interface.
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        (IPv6Address if bracketed and "%" not in host else IPv4Address)(host[1:-1] if bracketed else host)
    except ValueError:
        raise wrong from None
    return host[1:-1] if bracketed else host, int(port)
