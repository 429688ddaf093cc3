"""Protocols between the operations and what they act on, in terms of model types. The simulator implements the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from abupdate.model import BootState, BootTraits, Decision, Finding, Manifest, Record, Repair


class Bootloader(Protocol):
    """The store in which a bootloader keeps what boots next. Where a method has a body, that is what most adapters inherit."""

    @property
    def traits(self) -> BootTraits:
        """What this bootloader can do."""

    @property
    def location(self) -> str:
        """Where the store lies, in words that are the same at every start."""

    @property
    def irreplaceable(self) -> str:
        """Empty, or why rebuilding this store would lose what the bootloader itself needs to boot; as the last `read` saw it."""

    @property
    def tears(self) -> str:
        """Empty, or why a power cut in `commit` can lose the store."""
        return ""

    def places(self) -> tuple[tuple[Path, int, int], ...]:
        """Where the store lies: device or file, begin and end there, bytes. No slot's image may lie over it. Raises ConfigError."""

    def inspect(self) -> Iterable[Finding]:
        """What `doctor` says of the boot side beyond the boot state: what was found, what is missing, the line to put where."""
        return ()

    def repairs(self) -> tuple[Repair, ...]:
        """What `doctor --fix` does before it looks at the boot state."""
        return ()

    def rearm(self) -> None:
        """Repeat what arming a trial left where a power cut or a plain boot loses it."""
        return

    def depart(self) -> None:
        """The device goes down for an ordered reboot: note that an armed trial is tried now, where nothing else would tell."""
        return

    def tried(self) -> bool | None:
        """The boot side's word that this boot was the try of an armed slot, whatever runs now; None where it says nothing."""
        return None

    def read(self) -> BootState:
        """Read the state. Raises StoreUnreadable where no valid copy exists."""

    def commit(self, state: BootState) -> None:
        """Write the whole state durably; return only when it is on the medium, also where `read` shows it already.

        One step where the store can do that; where it cannot, the adapter's docstring gives the order, and every cut in it leaves a
        device that boots a good slot. Foreign content stays. A floor that the store has no room for is left out. Raises ConfigError
        where the rest has no room either.
        """

    def check_room(self, state: BootState) -> None:
        """Raise what `commit` would where the store has no room for the state."""

    def rebuild(self, state: BootState) -> None:
        """Write a store anew where `read` raised StoreUnreadable (doctor --fix, the service)."""


@runtime_checkable
class Target(Protocol):
    """An image's place on a slot: a block device or a regular file, opened exclusively for writing.

    Offsets and lengths are bytes; writes start at multiples of 4096 (only the last may be shorter than that).
    """

    @property
    def size_bytes(self) -> int:
        """Room on the target."""

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """Fill the buffer from the medium (past the page cache); return the count, short only at the end of the target."""

    def pwrite(self, buffer: memoryview, offset: int) -> None:
        """Write the whole buffer; raises Failed on an I/O error."""

    def flush(self) -> None:
        """Return when everything written is on the medium."""

    def close(self) -> None:
        """Release the device."""


@runtime_checkable
class SparseTarget(Target, Protocol):
    """A target that knows of zeros: devices that can be told to zero a range, files with holes."""

    def zero_range(self, offset: int, length: int) -> bool:
        """Make a range read as zeros without sending zeros; False where that is not offered (then nothing has changed)."""

    def next_data(self, offset: int, end: int) -> int:
        """First multiple of 4096 in [offset, end) at which there may be data; `end` where the rest is a hole."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a file has on its file system. filesystem: a number that files of the same one share. free_bytes: of that file system.

    held_bytes: the file takes up already. block_bytes: space is handed out in these.
    """

    filesystem: int
    free_bytes: int
    held_bytes: int
    block_bytes: int


@runtime_checkable
class FileTarget(Target, Protocol):
    """A target that is a regular file of a mounted file system, there or not yet: an image of kind `file` gives it its size."""

    @property
    def exists(self) -> bool:
        """False until `resize` has made it."""

    def room(self) -> Room:
        """What it has, and could have. Raises ConfigError."""

    def resize(self, size_bytes: int) -> None:
        """Make it exactly as long, and make it where it is missing. Raises Failed."""


class Source(Protocol):
    """Where a bundle's bytes come from."""

    @property
    def size_bytes(self) -> int | None:
        """Size of a file, None for a stream."""

    @property
    def seekable(self) -> bool:
        """True for a file: bytes that are not needed are never read."""

    def read_into(self, buffer: memoryview) -> int:
        """Fill the buffer from the current position; a short count means the end."""

    def skip(self, count: int) -> int:
        """Move forward without looking at the bytes; return how many could be skipped (short: the stream ended)."""

    def close(self) -> None:
        """Release the source."""


@runtime_checkable
class RandomSource(Source, Protocol):
    """A seekable source that several threads may read at once."""

    @property
    def position(self) -> int:
        """Where the next `read_into` reads, bytes from the start."""

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """Fill the buffer from an offset, whatever the position; a short count means the end."""


@runtime_checkable
class WaitingSource(Source, Protocol):
    """A source whose reads may wait for long: a pipe, a network."""

    def cancel(self) -> None:
        """End a read that waits in another thread, now or later, with Failed."""

    def silent(self, wait_s: float) -> bool:
        """True when neither a byte nor the end comes within that time."""


class StateStore(Protocol):
    """`state_dir`: lock, record, keyring and the heads of the bundles that the slots hold. Nothing in it is needed to boot."""

    def lock(self, wait_s: float = 0.0) -> AbstractContextManager[None]:
        """Hold the one lock of all mutating verbs. Raises Busy when another process has it after `wait_s`."""

    def load(self) -> tuple[Record | None, int]:
        """The record (None: lost) and the highest security counter that any copy shows, readable or not by this version."""

    def save(self, record: Record) -> None:
        """Replace the record durably. Raises Failed."""

    def load_head(self, slot: str) -> bytes | None:
        """The stored head of the bundle that was last written to the slot, None where there is none."""

    def save_head(self, slot: str, head: bytes) -> None:
        """Replace a slot's stored head durably. Raises Failed."""

    def load_keyring(self) -> bytes | None:
        """The stored chain of keyrings, None where there is none. Nothing in it is verified. Raises Failed where the medium fails."""

    def save_keyring(self, data: bytes) -> None:
        """Replace the stored chain of keyrings durably; the caller holds the lock. Raises Failed."""


class FloorCopy(Protocol):
    """A copy of the security counter's floor outside state_dir and boot store (a TPM). It may be missing, and is never needed to boot."""

    @property
    def name(self) -> str:
        """What people call it."""

    def value(self) -> int:
        """The counter that it keeps, 0 where nothing was ever written. Raises Failed where it does not answer or holds something else."""

    def raise_to(self, counter: int) -> None:
        """Make it durable that it keeps at least this counter; never lowers it. Raises Failed."""


class ThisBoot(Protocol):
    """Facts of the running boot."""

    @property
    def boot_id(self) -> str:
        """The kernel's random id of this boot."""

    @property
    def settled(self) -> bool:
        """The service has already dealt with this boot's outcome."""

    def mark_settled(self) -> None:
        """Remember, until the next boot, that the outcome is dealt with."""

    def booted(self) -> str:
        """The slot that runs. Raises ConfigError when nothing tells."""

    def reset_reason(self) -> str:
        """How the boot before ended: "watchdog", "panic" or "" when the platform does not tell."""

    def unsaved(self) -> bool:
        """The boot side says that it could not write its counter, so that it started nothing on trial."""

    def boottime_s(self) -> float:
        """Seconds since the kernel started, suspend included."""


Progress = Callable[[str, int, int], None]
"""Called with phase ("write", "verify"), bytes done and bytes in all."""


class OpenBundle(Protocol):
    """A bundle whose manifest was read and found acceptable to this device; its payload has not been looked at."""

    @property
    def manifest(self) -> Manifest:
        """What was signed."""

    def head(self) -> bytes:
        """Header, manifest, signatures and verified chunk tables, as they are kept in `state_dir`: without the keyring's chain."""


class SlotContents(Protocol):
    """The images of the slots, as far as they are written and verified."""

    def claim(self, slot: str) -> AbstractContextManager[None]:
        """Open all images of a slot for writing, exclusively. Raises Busy (mounted, in use) or ConfigError (absent)."""

    def fits(self, slot: str, manifest: Manifest) -> None:
        """Raises Refused for images that the slot does not have or lacks, ConfigError for one that is larger than its place."""

    def write(self, slot: str, bundle: OpenBundle, progress: Progress) -> None:
        """Write the payload to the claimed slot and flush it. Raises Refused for a damaged payload, Failed for I/O errors."""

    def verify(self, slot: str, head: bytes, progress: Progress) -> None:
        """Read the slot from the medium and compare. Raises Failed at a difference, Refused for a damaged head."""


class Watchdog(Protocol):
    """A running hardware watchdog that this process holds. Seconds are the hardware's own."""

    @property
    def stops_on_close(self) -> bool:
        """True when the driver stops with every close, so that it cannot be handed over."""

    def set_timeout(self, asked_s: int) -> int:
        """Ask for a timeout; return what was granted (0: the driver does not say)."""

    def pet(self) -> None:
        """Start the countdown anew; raises Failed when the device is gone."""

    def time_left_s(self) -> int | None:
        """Seconds to the reset, None where the driver does not say."""

    def disarm(self) -> str:
        """Stop the hardware; return "", or why it still runs and must be petted on."""

    def hand_over(self) -> None:
        """Close without stopping it."""


class TrialWatch(Protocol):
    """Health during a trial: programs run beside the caller's loop, and what their words mean for the slot."""

    def tick(self, now_s: float) -> Decision:
        """Look after the programs without waiting and judge; `now_s` is seconds since boot, suspend included."""

    def stop(self) -> None:
        """End whatever still runs."""


class Announcer(Protocol):
    """Whoever supervises the service (systemd's sd_notify)."""

    @property
    def watchdog_s(self) -> float | None:
        """Longest time between two `alive`, None where nobody waits for it."""

    def ready(self, status: str = "") -> bool:
        """The service is up."""

    def alive(self) -> bool:
        """The loop runs."""

    def status(self, status: str) -> bool:
        """One line for people."""

    def stopping(self, status: str = "") -> bool:
        """The service ends on purpose."""
