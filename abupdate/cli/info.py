"""The verb `info`: what a bundle holds and who signed it. Runs on devices too, so it needs formats only."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from abupdate.cli.trust import Held, find_keyring
from abupdate.errors import ConfigError, Refused
from abupdate.formats import bundle, rotation, signature
from abupdate.formats import keyring as keyring_format
from abupdate.formats.signature import Domain
from abupdate.log import plain
from abupdate.model import Keyring, Manifest, Signature


def show(args: argparse.Namespace) -> int:
    """Show a bundle, and whether the keyring (`--keyring`, else the device's) accepts it.

    The bundle's chain is walked from there in memory. Ends with 3 where `--keyring` was given and does not accept it; the document
    is printed all the same.

    Raises Refused for a damaged bundle, Failed for a stream that ended early.
    """
    refusal: Refused | None = None
    held: Held | None = None
    try:
        held = find_keyring(args)
    except Refused as error:
        # The device's own keyring: the bundle can be shown all the same, and would not be accepted.
        if args.keyring is not None:
            raise
        refusal = error
    head, size_bytes = _read(args.bundle)
    signed = head.signed
    document = _describe(head, size_bytes)
    role: str | None = None
    ring = held.ring if held is not None else None
    if held is not None:
        try:
            ring = held.after(signed.chain)
            role = keyring_format.check_bundle(signed.manifest, signed.manifest_bytes, signed.signatures, ring).role.value
        except Refused as error:
            refusal = error
    if ring is not None or refusal is not None:
        document |= {"accepted": refusal is None, "reason": refusal.message if refusal else None, "role": role}
        document["keyring_version"] = ring.version if ring is not None else None
    document["signatures"] = [_describe_signature(item, signed.manifest_bytes, ring) for item in signed.signatures]
    if args.json:
        print(json.dumps(document))
    else:
        _print(document, signed.manifest)
    return Refused.exit_code if refusal and args.keyring is not None else 0


def _read(source: str) -> tuple[bundle.Head, int]:
    with ExitStack() as stack:
        if source == "-":
            head = bundle.read_head(sys.stdin.buffer.read, None)
            return head, head.signed.header.total_bytes
        try:
            file = stack.enter_context(Path(source).open("rb"))
        except OSError as error:
            raise ConfigError(f"cannot read {source}: {error.strerror}") from error
        status = os.fstat(file.fileno())
        size_bytes = status.st_size if stat.S_ISREG(status.st_mode) else None
        head = bundle.read_head(file.read, size_bytes)
        return head, head.signed.header.total_bytes


def _describe(head: bundle.Head, size_bytes: int) -> dict[str, Any]:
    manifest = head.signed.manifest
    images = []
    for image in manifest.images:
        chunks = zero = 0
        for chunk in head.tables.chunks(image.name):
            chunks += 1
            zero += chunk.zero
        images.append(
            {
                "name": image.name,
                "kind": image.kind.value,
                "size_bytes": image.size_bytes,
                "stored_bytes": image.payload_bytes,
                "codec": image.codec.value,
                "chunks": chunks,
                "zero_chunks": zero,
                "verity_root": image.verity_root.hex() if image.verity_root else None,
            }
        )
    return {
        "bundle": manifest.bundle_id.hex(),
        "compatible": manifest.compatible,
        "hardware_revisions": list(manifest.hardware_revisions),
        "version": manifest.version,
        "security_counter": manifest.security_counter,
        "min_updater": manifest.min_updater or None,
        "build_time": manifest.build_time,
        "description": manifest.description,
        "flags": sorted(manifest.flags),
        "sealed_for": [recipient.key_id.hex() for recipient in manifest.sealing.recipients] if manifest.sealing else None,
        "size_bytes": size_bytes,
        "images": images,
        "chain": [frame.version for frame in rotation.split(head.signed.chain)],
    }


def _describe_signature(item: Signature, manifest_bytes: bytes, ring: Keyring | None) -> dict[str, Any]:
    """Whether the signature is by the key that it names, and what the keyring, if there is one, knows of that key."""
    roles = []
    if ring is not None:
        roles = [role.name.value for role in ring.roles.values() if any(key.raw == item.public_key for key in role.keys)]
    valid = signature.verify(item.public_key, item.value, signature.message(Domain.BUNDLE, manifest_bytes))
    return {"key_id": signature.key_id(item.public_key), "valid": valid, "roles": roles if ring is not None else None}


def _print(document: dict[str, Any], manifest: Manifest) -> None:
    built = datetime.fromtimestamp(manifest.build_time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if manifest.build_time < 2**37 else "-"
    _line(f"{manifest.compatible} {manifest.version}")
    _line(f"  bundle            {document['bundle']}")
    _line(f"  size              {document['size_bytes']} bytes")
    _line(f"  built             {built}")
    _line(f"  security counter  {manifest.security_counter}")
    _line(f"  hardware          {', '.join(manifest.hardware_revisions) or 'every revision'}")
    if manifest.min_updater:
        _line(f"  needs abupdate    {manifest.min_updater}")
    if manifest.flags:
        _line(f"  flags             {', '.join(sorted(manifest.flags))}")
    if manifest.sealing:
        count = len(manifest.sealing.recipients)
        _line(f"  sealed for        {count} recipient{'s' if count > 1 else ''}: {', '.join(document['sealed_for'])}")
    for line in manifest.description.splitlines():
        _line(f"  | {line}")
    for image in document["images"]:
        _line(
            f"  image {image['name']}: {image['kind']}, {image['size_bytes']} bytes in {image['chunks']} chunks "
            f"({image['zero_chunks']} zero), stored {image['codec']} in {image['stored_bytes']} bytes"
        )
    if document["chain"]:
        _line(f"  keyring chain     versions {document['chain'][0]} to {document['chain'][-1]}")
    for item in document["signatures"]:
        known = "" if item["roles"] is None else f", {' and '.join(item['roles']) or 'not in the keyring'}"
        _line(f"  signed by {item['key_id']}{known}{'' if item['valid'] else ': WRONG'}")
    if not document["signatures"]:
        _line("  not signed")
    if "accepted" in document:
        verdict = f"yes, as {document['role']}" if document["accepted"] else f"no: {document['reason']}"
        version = f" (keyring version {document['keyring_version']})" if document["keyring_version"] is not None else ""
        _line(f"  accepted by the keyring: {verdict}{version}")


def _line(text: str) -> None:
    print(plain(text))
