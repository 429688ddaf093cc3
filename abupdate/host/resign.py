"""Adds signatures to a bundle, or changes its keyring chain: a new file that takes the old one's place."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from abupdate.errors import ConfigError, NothingToDo
from abupdate.formats import bundle, rotation, signature
from abupdate.host.atomic import copy_range, output, pwrite_all
from abupdate.host.signing import Signer, sign_all


def add_signatures(path: Path, signers: Sequence[Signer], chain: bytes | None = None) -> bundle.Signed:
    """Sign a bundle with keys that have not signed it yet; nothing else in it changes but the chain, where another one is given.

    Returns the new head's signed part. Raises Refused where the bundle or a signature in it is damaged, NothingToDo where all of the
    keys have signed and the chain is the one that it has.
    """
    # A link stays one: what it points to is signed.
    path = Path(os.path.realpath(path))
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    with file:
        status = os.fstat(file.fileno())
        old = bundle.read_signed(file.read, status.st_size)
        # So that a signer never adds a name to tables that are not what the manifest says.
        bundle.read_tables(file.read, old)
        signed = signature.message(signature.Domain.BUNDLE, old.manifest_bytes)
        present = signature.signers(old.signatures, (item.public_key for item in old.signatures), signed)
        missing = [signer for signer in signers if signer.public.raw not in present]
        carried = old.chain if chain is None else chain
        rotation.split(carried)
        if not missing and carried == old.chain:
            raise NothingToDo(f"{path} is signed by that key already" if signers else f"{path} carries this chain already")
        try:
            block = signature.pack_block((*old.signatures, *sign_all(missing, signed)))
        except ValueError as error:
            raise ConfigError(f"cannot add the signature: {error}") from error
        header = old.header
        head = bundle.build_head(old.manifest_bytes, block, header.tables_bytes, header.payload_bytes, carried)
        with output(path, mode=stat.S_IMODE(status.st_mode)) as fd:
            pwrite_all(fd, head, 0)
            copy_range(file.fileno(), len(old.raw), status.st_size, fd, len(head))
    with path.open("rb") as file:
        return bundle.read_signed(file.read, len(head) + status.st_size - len(old.raw))
