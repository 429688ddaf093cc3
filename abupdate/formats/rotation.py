"""Rotation of the keyring: chains of keyring files, and the walk from one version to the next.

A chain is keyring files (keyring.py) one after the other, nothing between or behind them, at most 256 KiB; each one's version
is one more than that of the file before. Version N+1 counts when enough root keys of N AND enough root keys of N+1 signed it,
so that neither the old holders nor the new ones can make it alone, and revoking a key is leaving it out.

What a device keeps (`state_dir/keyring`) is such a chain too, and not the newest version alone: whoever can write the data partition
could make one that only its own keys signed. It counts as far as it follows from the running slot's own keyring.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from abupdate.errors import Refused
from abupdate.formats import keyring
from abupdate.formats.keyring import Frame
from abupdate.model import Keyring, RecalledKeyrings, RoleName, SaveKeyring

MAX_CHAIN_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Link:
    """A version of a chain, verified by the one before it. data: its file."""

    ring: Keyring
    data: bytes


def split(chain: bytes) -> tuple[Frame, ...]:
    """The keyring files of a chain, not decoded, in order; an empty chain has none. Raises Refused."""
    frames, fault = _split(chain)
    if fault is not None:
        raise fault
    return frames


def _split(chain: bytes) -> tuple[tuple[Frame, ...], Refused | None]:
    """The files of a chain up to the first fault in their order or framing, and that fault."""
    if len(chain) > MAX_CHAIN_BYTES:
        if keyring.format_version(chain[: keyring.HEADER.size]) is None:
            return (), keyring.no_keyring()
        return (), Refused(f"the chain of keyrings has {len(chain)} bytes, more than {MAX_CHAIN_BYTES}")
    frames: list[Frame] = []
    position = 0
    while position < len(chain):
        try:
            frame = keyring.read_frame(chain[position : position + keyring.MAX_FILE_BYTES])
        except Refused as fault:
            return tuple(frames), fault
        if frames and frame.version != frames[-1].version + 1:
            return tuple(frames), _out_of_order(frames[-1].version, frame.version)
        frames.append(frame)
        position += len(frame.data)
    return tuple(frames), None


def unknown_format(chain: bytes) -> int | None:
    """The format version of the first file of a chain that this version of abupdate cannot read, None where there is no such file."""
    position = 0
    while (number := keyring.format_version(chain[position : position + keyring.HEADER.size])) == keyring.FORMAT_VERSION:
        try:
            position += len(keyring.read_frame(chain[position : position + keyring.MAX_FILE_BYTES]).data)
        except Refused:
            return None
    return number


def follow(current: Keyring, frame: Frame) -> Keyring:
    """Verify and decode the keyring that comes after `current`. Nothing of its body is decoded before enough of the current root
    keys have signed it. Raises Refused.
    """
    if frame.version != current.version + 1:
        raise _gap(current.version, frame.version)
    what = f"version {frame.version} of the keyring"
    needed = current.roles[RoleName.ROOT].threshold
    try:
        count = len(keyring.root_signers(current, frame.body, frame.signatures))
        if count < needed:
            hint = "both versions' root keys must sign it: `abupdate keys sign`"
            raise Refused(f"it is signed by {count} of version {current.version}'s root keys and needs {needed}", hint)
        ring = keyring.decode(frame)
        keyring.check_self_signed(ring)
    except Refused as error:
        raise Refused(f"{what}: {error.message}", error.hint) from error
    return ring


def walk(current: Keyring, chain: bytes, *, allow_test_keys: bool) -> tuple[Link, ...]:
    """The versions of a chain that are newer than `current`, each verified by the one before it, in order.

    Versions up to the current one are passed over; the current one's must be the very same. Nothing newer: no links. All of the
    chain is good, or nothing of it counts. Raises Refused.
    """
    frames = split(chain)
    for frame in frames:
        if frame.version == current.version and frame.body != current.body:
            raise Refused(
                f"version {current.version} of the keyring is not the one that this device has",
                "the chain is another product's, or somebody made two keyrings of one version",
            )
    links = _follow_all(current, (frame for frame in frames if frame.version > current.version))
    for link in links:
        keyring.check_test_keys(link.ring, allow_test_keys)
    return links


def recall(factory: Keyring, kept: bytes) -> RecalledKeyrings:
    """The versions of a kept chain that are newer than the slot's own keyring, verified one by one from that one on, in order.

    Older ones are for slots with an older keyring, and not looked at. They count up to the first that is damaged, does not follow, or
    needs a newer abupdate: what was revoked before it stays revoked. Raises Refused where nothing newer counts and there is a fault.
    """
    frames, fault = _split(kept)
    if not frames:
        raise fault or Refused("it is empty")
    if frames[-1].version == factory.version and frames[-1].body != factory.body:
        raise Refused(f"it is another version {factory.version} than the factory keyring")
    rings: list[Keyring] = []
    used = [frame.data for frame in frames if frame.version <= factory.version]
    for frame in frames[len(used) :]:
        try:
            rings.append(follow(rings[-1] if rings else factory, frame))
        except Refused as error:
            fault = error
            break
        used.append(frame.data)
    if fault is not None and not rings:
        raise fault
    return RecalledKeyrings(tuple(rings), b"".join(used), fault.message if fault is not None else "")


def advance(factory: Keyring, current: Keyring, kept: bytes, chain: bytes, *, allow_test_keys: bool) -> tuple[SaveKeyring, ...]:
    """`walk` as durable steps: what is kept after each, from as old a version as is known to lead to the slot's own keyring.

    current: the last version of `recall`, or the factory keyring. kept: what `recall` used, empty where that is nothing. Raises Refused.
    """
    links = walk(current, chain, allow_test_keys=allow_test_keys)
    line = list(_line(factory, split(kept), split(chain))) if links else []
    steps: list[SaveKeyring] = []
    for link in links:
        line.append(link.data)
        steps.append(SaveKeyring(link.ring, _bounded(line, link.ring.version - factory.version + 1)))
    return tuple(steps)


def _follow_all(current: Keyring, frames: Iterable[Frame]) -> tuple[Link, ...]:
    links: list[Link] = []
    for frame in frames:
        current = follow(current, frame)
        links.append(Link(current, frame.data))
    return tuple(links)


def _line(factory: Keyring, kept: Sequence[Frame], chain: Sequence[Frame]) -> Iterable[bytes]:
    """The files of the versions up to the one that counts. Nothing is taken into them that was not verified from a slot's own keyring:
    a prefix that a stranger chose could keep the other slot, with an older keyring, from following.
    """
    own = keyring.read_frame(keyring.build(factory.body, factory.signatures))
    last = kept[-1].version if kept else 0
    if last > factory.version:
        return [*([own.data] if kept[0].version > factory.version else []), *(frame.data for frame in kept)]
    if last == factory.version:
        return [frame.data for frame in kept]
    between = [frame for frame in chain if last < frame.version < factory.version]
    try:
        # The slot came with a newer keyring than was kept.
        return [*(frame.data for frame in kept), *(link.data for link in _follow_all(keyring.decode(kept[-1]), (*between, own)))]
    except (Refused, IndexError):
        return [own.data]


def _bounded(line: Sequence[bytes], needed: int) -> bytes:
    """The newest of these files that fit; `needed` of them must."""
    first = 0
    while sum(map(len, line[first:])) > MAX_CHAIN_BYTES:
        first += 1
    if len(line) - first < needed:
        what = f"the keyrings since the running slot's own have more than {MAX_CHAIN_BYTES} bytes"
        raise Refused(what, "install an image with a newer keyring first")
    return b"".join(line[first:])


def _out_of_order(before: int, after: int) -> Refused:
    if after > before:
        return _gap(before, after)
    return Refused(f"the chain of keyrings has version {after} after version {before}", "put them in order")


def _gap(before: int, after: int) -> Refused:
    missing = f"version {before + 1}" if after == before + 2 else f"versions {before + 1} to {after - 1}"
    return Refused(
        f"the keyrings go from version {before} to version {after}",
        f"{missing} must come between: give a chain of all versions, one file after the other",
    )
