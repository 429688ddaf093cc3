"""A fast seal for simulated nodes: nobody can sign for a key whose secret it does not have, and nothing here costs an Ed25519 operation.

A signature is a keyed BLAKE2b of the content. The vault holds the secret of every key, so it can verify; a node gets a `SimSeal` that
signs with its own secret only. The signatures of orders and memberships stay real: there are few of them.
"""

from __future__ import annotations

import hashlib


class Vault:
    """The secrets of all nodes, by public key."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._secrets: dict[bytes, bytes] = {}

    def make_key(self, name: str) -> bytes:
        """A new public key (32 bytes); the same name gives the same one."""
        secret = hashlib.blake2b(name.encode(), key=self._seed, digest_size=32).digest()
        public = hashlib.sha256(secret).digest()
        self._secrets[public] = secret
        return public

    def sign(self, public: bytes, content: bytes) -> bytes:
        """64 bytes, as an Ed25519 signature has."""
        return hashlib.blake2b(content, key=self._secrets[public], digest_size=64).digest()

    def verify(self, public: bytes, signature: bytes, content: bytes) -> bool:
        """Whether the holder of the key signed the content."""
        secret = self._secrets.get(public)
        return secret is not None and hashlib.blake2b(content, key=secret, digest_size=64).digest() == signature


class SimSeal:
    """What one node signs with and verifies with (the core's `Seal`)."""

    def __init__(self, vault: Vault, public: bytes) -> None:
        self._vault = vault
        self.public = public

    def sign(self, content: bytes) -> bytes:
        """This node's signature."""
        return self._vault.sign(self.public, content)

    def verify(self, public_key: bytes, signature: bytes, content: bytes) -> bool:
        """Whether the holder of the key signed the content."""
        return self._vault.verify(public_key, signature, content)
