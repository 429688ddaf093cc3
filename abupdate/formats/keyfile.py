"""Key files: PEM with a line of text in front of it where the key was made for tests. PEM readers pass over such text."""

from __future__ import annotations

TEST_MARK = b"abupdate-test-key: made for tests, never trust it on a real device"
MAX_BYTES = 64 * 1024
_TEST_PREFIX = b"abupdate-test-key:"
_BEGIN = b"-----BEGIN "


def split(data: bytes) -> tuple[bool, bytes]:
    """Whether a key file carries the mark of test keys, and its PEM part (empty: there is none)."""
    start = data.find(_BEGIN)
    if start < 0:
        return False, b""
    return any(line.startswith(_TEST_PREFIX) for line in data[:start].splitlines()), data[start:]


def is_public(pem: bytes) -> bool:
    """True for a public key."""
    return pem.startswith(b"-----BEGIN PUBLIC KEY-----")


def is_encrypted(pem: bytes) -> bool:
    """True for a private key that a passphrase opens."""
    return pem.startswith(b"-----BEGIN ENCRYPTED")
