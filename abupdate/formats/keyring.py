"""The signed keyring (`.abk`): which keys may sign what, and how many of them must.

All numbers are little-endian. The file is

    0   8  magic 89 41 42 4B 0D 0A 1A 0A
    8   2  format version, 1
    10  2  flags, 0 (any bit that is set needs a newer abupdate)
    12  4  length of the body, at most 16384
    16  4  length of the signature block, at most 16384
    20 32  SHA-256 of the signature block (against damage; it protects nothing)
    52     body | signature block; nothing follows

The body is a TLV sequence (tlv.py):

    0001  keyring version, u32, 1 and up
    0002  role, a nested sequence; 1 to 4 of them in ascending order of their number; root and release must be there
          0001  role, u8: 1 root, 2 release, 3 security, 4 admin
          0002  threshold, u8: 1 to the number of keys
          0003  key, 33 bytes: mark u8 (0, or 1 for a test key) | raw Ed25519 public key; 1 to 64 in strictly ascending
                order of the raw key. A key may be in several roles, with the same mark in each.

The signature block is that of signature.py; signed is the body, in the domain `keyring`. Root keys sign it: enough of its
own root role always, and for version N+1 enough of version N's root role too (rotation.py; signatures by keys that are not in
the keyring are passed over, so that both sets fit into one block).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from abupdate.errors import Refused
from abupdate.formats import signature, tlv
from abupdate.formats.signature import Domain
from abupdate.model import Approval, Keyring, Manifest, PublicKey, Role, RoleName, Signature

MAGIC = b"\x89ABK\r\n\x1a\n"
FORMAT_VERSION = 1
HEADER = struct.Struct("<8sHHII32s")
MAX_BODY_BYTES = 16 * 1024
MAX_FILE_BYTES = HEADER.size + MAX_BODY_BYTES + signature.MAX_BLOCK_BYTES
MAX_KEYS = 64
SECURITY_FIX = "security-fix"

_NUMBERS = {RoleName.ROOT: 1, RoleName.RELEASE: 2, RoleName.SECURITY: 3, RoleName.ADMIN: 4}
_NAMES = {number: name for name, number in _NUMBERS.items()}
_VERSION, _ROLE = 0x0001, 0x0002
_ROLE_NAME, _ROLE_THRESHOLD, _ROLE_KEY = 0x0001, 0x0002, 0x0003
_PEEK = struct.Struct("<HHI")


def encode_body(version: int, roles: Mapping[RoleName, Role]) -> bytes:
    """The bytes that root keys sign. The order of roles and keys does not matter. Raises ValueError or Refused when they break a rule."""
    records = [(_VERSION, struct.pack("<I", version))]
    for name, number in _NUMBERS.items():
        role = roles.get(name)
        if role is None:
            continue
        keys = sorted(role.keys, key=lambda key: key.raw)
        body = [(_ROLE_NAME, bytes([number])), (_ROLE_THRESHOLD, bytes([role.threshold]))]
        body += [(_ROLE_KEY, bytes([key.test]) + key.raw) for key in keys]
        records.append((_ROLE, tlv.pack(body)))
    encoded = tlv.pack(records)
    _decode_body(encoded)
    return encoded


def build(body: bytes, signatures: Iterable[Signature]) -> bytes:
    """A whole keyring file from a body (see `encode_body`) and signatures over it."""
    block = signature.pack_block(signatures)
    return HEADER.pack(MAGIC, FORMAT_VERSION, 0, len(body), len(block), hashlib.sha256(block).digest()) + body + block


@dataclass(frozen=True, slots=True)
class Frame:
    """A keyring file that is taken apart and not decoded: what its root keys signed, and their signatures. data: all its bytes."""

    body: bytes
    signatures: tuple[Signature, ...]
    data: bytes

    @property
    def version(self) -> int:
        """What the body's first record says it is, before anything is believed. Raises Refused where that is no version."""
        if len(self.body) < _PEEK.size:
            raise Refused("the keyring's body is cut off")
        tag, length, version = _PEEK.unpack_from(self.body)
        if (tag, length) != (_VERSION, 4) or not version:
            raise Refused("the keyring's body does not start with its version")
        return int(version)


def format_version(data: bytes) -> int | None:
    """The format version of what starts like a keyring file, None for anything else."""
    return int(HEADER.unpack_from(data)[1]) if len(data) >= HEADER.size and data.startswith(MAGIC) else None


def no_keyring() -> Refused:
    """What to say of bytes that do not even start like a keyring file."""
    return Refused("this is not a keyring", "`abupdate keys keyring` makes one")


def parse(data: bytes) -> Keyring:
    """Decode a whole keyring file. Verifies no signature: see `check_self_signed`. Raises Refused."""
    if len(data) > MAX_FILE_BYTES:
        raise Refused(f"the keyring has {len(data)} bytes, more than {MAX_FILE_BYTES}")
    frame = read_frame(data)
    if len(data) != len(frame.data):
        raise Refused(f"the keyring has {len(data)} bytes instead of {len(frame.data)}")
    return decode(frame)


def read_frame(data: bytes) -> Frame:
    """Take the keyring file apart that `data` starts with; what follows it is not looked at. Raises Refused."""
    if data[: len(MAGIC)] != MAGIC:
        raise no_keyring()
    if len(data) < HEADER.size:
        raise Refused("the keyring is cut off")
    _magic, version, flags, body_bytes, block_bytes, digest = HEADER.unpack_from(data)
    if version != FORMAT_VERSION:
        raise tlv.newer(f"keyring format {version}")
    if flags:
        raise tlv.newer(f"the keyring (flags {flags:#06x})")
    if body_bytes > MAX_BODY_BYTES or block_bytes > signature.MAX_BLOCK_BYTES:
        raise Refused("the keyring's lengths are out of bounds")
    end = HEADER.size + body_bytes + block_bytes
    if len(data) < end:
        raise Refused(f"the keyring has {len(data)} bytes instead of {end}")
    body = data[HEADER.size : HEADER.size + body_bytes]
    block = data[HEADER.size + body_bytes : end]
    if hashlib.sha256(block).digest() != digest:
        raise Refused("the keyring's signatures are damaged")
    return Frame(body, signature.unpack_block(block), data[:end])


def decode(frame: Frame) -> Keyring:
    """Decode a keyring's body. Verifies no signature. Raises Refused."""
    number, roles = _decode_body(frame.body)
    return Keyring(number, roles, frame.signatures, frame.body)


def _decode_body(body: bytes) -> tuple[int, dict[RoleName, Role]]:
    if len(body) > MAX_BODY_BYTES:
        raise Refused(f"the keyring's body has {len(body)} bytes, more than {MAX_BODY_BYTES}")
    found = tlv.unpack(body, {_VERSION: False, _ROLE: True}, "the keyring")
    version = tlv.unsigned(tlv.one(found, _VERSION, "the keyring"), 4, 2**32 - 1, "the keyring's version")
    if version < 1:
        raise Refused("the keyring's version is 0")
    roles: dict[RoleName, Role] = {}
    last = 0
    for value in found[_ROLE]:
        number, role = _decode_role(value)
        if number <= last:
            raise Refused("the keyring's roles are not in strictly ascending order")
        last = number
        roles[role.name] = role
    for name in (RoleName.ROOT, RoleName.RELEASE):
        if name not in roles:
            raise Refused(f"the keyring has no {name.value} role")
    marks: dict[bytes, bool] = {}
    for key in (key for role in roles.values() for key in role.keys):
        if marks.setdefault(key.raw, key.test) != key.test:
            raise Refused(f"key {signature.key_id(key.raw)} is marked as a test key in one role only")
    return version, roles


def _decode_role(value: bytes) -> tuple[int, Role]:
    found = tlv.unpack(value, {_ROLE_NAME: False, _ROLE_THRESHOLD: False, _ROLE_KEY: True}, "a role")
    number = tlv.unsigned(tlv.one(found, _ROLE_NAME, "a role"), 1, 255, "a role's number")
    if number not in _NAMES:
        raise tlv.newer(f"the keyring (role {number})")
    name = _NAMES[number]
    threshold = tlv.unsigned(tlv.one(found, _ROLE_THRESHOLD, "a role"), 1, 255, "a threshold")
    values = found[_ROLE_KEY]
    if len(values) > MAX_KEYS:
        raise Refused(f"the {name.value} role has {len(values)} keys, more than {MAX_KEYS}")
    for key in values:
        if len(key) != 1 + signature.KEY_BYTES:
            raise Refused(f"a key of the {name.value} role has {len(key)} bytes instead of {1 + signature.KEY_BYTES}")
        if key[0] > 1:
            raise tlv.newer(f"the keyring (key mark {key[0]})")
        signature.check_public_key(key[1:])
    tlv.ascending([key[1:] for key in values], f"the {name.value} role's keys")
    if not 1 <= threshold <= len(values):
        raise Refused(f"the {name.value} role has {len(values)} keys and a threshold of {threshold}")
    return number, Role(name, threshold, tuple(PublicKey(key[1:], bool(key[0])) for key in values))


def all_keys(keyring: Keyring) -> tuple[PublicKey, ...]:
    """Every key of the keyring once, in ascending order."""
    return tuple(sorted({key for role in keyring.roles.values() for key in role.keys}, key=lambda key: key.raw))


def root_signers(keyring: Keyring, body: bytes, signatures: Iterable[Signature]) -> tuple[PublicKey, ...]:
    """The root keys of `keyring` that signed this body of a keyring (its own, or the next version's), each once.

    Raises Refused for a signature by one of its keys, of whatever role, that is wrong.
    """
    signed = signature.message(Domain.KEYRING, body)
    good = signature.signers(signatures, (key.raw for key in all_keys(keyring)), signed)
    return tuple(key for key in keyring.roles[RoleName.ROOT].keys if key.raw in good)


def check_self_signed(keyring: Keyring) -> None:
    """Refuse a keyring that not enough of its own root keys signed, or that holds a wrong signature by one of its keys."""
    count, needed = len(root_signers(keyring, keyring.body, keyring.signatures)), keyring.roles[RoleName.ROOT].threshold
    if count < needed:
        raise Refused(f"the keyring is signed by {count} of its root keys and needs {needed}", "sign it with the root keys")


def check_test_keys(keyring: Keyring, allowed: bool) -> None:
    """Refuse a keyring that holds a key marked as a test key, unless test keys are allowed (`trust.allow_test_keys`)."""
    for key in all_keys(keyring):
        if key.test and not allowed:
            raise Refused(f"the keyring holds the test key {signature.key_id(key.raw)}", "set trust.allow_test_keys = true")


def approvals(manifest_bytes: bytes, signatures: Iterable[Signature], keyring: Keyring) -> tuple[Approval, ...]:
    """The roles that may sign bundles and whose threshold is met, release first; the manifest's bytes are not decoded for that.

    Raises Refused where there is none, or a signature by a key of the keyring is wrong.
    """
    signed = signature.message(Domain.BUNDLE, manifest_bytes)
    listed = tuple(signatures)
    if not listed:
        raise Refused("the bundle is not signed", "sign it with `abupdate bundle sign`")
    good = signature.signers(listed, (key.raw for key in all_keys(keyring)), signed)
    met: list[Approval] = []
    for name in (RoleName.RELEASE, RoleName.SECURITY):
        role = keyring.roles.get(name)
        if role is None:
            continue
        keys = tuple(key for key in role.keys if key.raw in good)
        if len(keys) >= role.threshold:
            met.append(Approval(name, keys))
    if not met:
        release = keyring.roles[RoleName.RELEASE]
        count = sum(key.raw in good for key in release.keys)
        hint = "`abupdate info BUNDLE` shows who signed it"
        raise Refused(f"the bundle is signed by {count} of the keyring's release keys and needs {release.threshold}", hint)
    return tuple(met)


def approve(manifest: Manifest, met: Iterable[Approval]) -> Approval:
    """Which of the roles that signed may sign this manifest: release any, security one with the flag `security-fix`. Raises Refused."""
    for approval in met:
        if approval.role is RoleName.RELEASE or SECURITY_FIX in manifest.flags:
            return approval
    # The security role signed something else than a security fix, and the release role too little.
    raise Refused(
        "the bundle is signed as a security fix and does not say that it is one",
        f"the release role must sign it, or the SPEC needs flags = ['{SECURITY_FIX}']",
    )


def check_bundle(manifest: Manifest, manifest_bytes: bytes, signatures: Iterable[Signature], keyring: Keyring) -> Approval:
    """Decide whether a bundle's signatures are enough: the release role's threshold, or, where the manifest carries the flag
    `security-fix`, the security role's instead. Returns who approved; raises Refused.
    """
    return approve(manifest, approvals(manifest_bytes, signatures, keyring))
