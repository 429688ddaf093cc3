"""The verbs `keyring show` and `keyring update`: which keys this device trusts."""

from __future__ import annotations

from argparse import Namespace

from abupdate import wiring
from abupdate.cli.output import say
from abupdate.cli.trust import describe_roles, read_chain, role_lines
from abupdate.config import load
from abupdate.errors import Refused
from abupdate.log import log
from abupdate.model import EffectiveKeyring, KeyringSource
from abupdate.operations import keyring as operation

_PLACES = {KeyringSource.FACTORY: "of the running slot", KeyringSource.STATE_DIR: "in state_dir, newer than the running slot's"}


def show(options: Namespace) -> int:
    """`abupdate keyring show`."""
    settings = load(options.config)
    found = operation.observe(wiring.state_store(settings), wiring.trust(settings))
    if found.note:
        log.warning("%s", found.note)
    say(options, _document(found) | {"note": found.note}, _text(found))
    return 0


def update(options: Namespace) -> int:
    """`abupdate keyring update FILE`: exit 4 where the file holds nothing newer, 3 where it is not to be trusted."""
    settings = load(options.config)
    wiring.check_devices(settings, present=False)
    chain = read_chain(options.file)
    if not chain:
        # A download that was cut off before its first byte tells nothing about what is newest.
        raise Refused(f"{options.file} is empty", "copy or download it again")
    before, after = operation.update(wiring.state_store(settings), wiring.trust(settings), chain)
    say(options, _document(after) | {"before": before.ring.version}, _text(after))
    return 0


def _document(found: EffectiveKeyring) -> dict[str, object]:
    return {"version": found.ring.version, "source": found.source.value, "roles": describe_roles(found.ring)}


def _text(found: EffectiveKeyring) -> str:
    return "\n".join([f"keyring version {found.ring.version}, {_PLACES[found.source]}", *role_lines(found.ring)])
