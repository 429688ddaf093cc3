"""The verbs of a site's admins: an order is made, signed, and handed to this device's daemon or written to a file."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from abupdate.cli.fleet import ask_daemon, check_reason, find_order
from abupdate.cli.fleet_describe import describe
from abupdate.cli.output import say
from abupdate.config import Settings, load
from abupdate.errors import AbupdateError, ConfigError
from abupdate.fleet.control import AskStatus, Submit
from abupdate.formats import membership as memberships
from abupdate.formats import order as order_format
from abupdate.formats import signature
from abupdate.formats.bundle import parse_stored_head, read_head
from abupdate.formats.messages import NOTHING
from abupdate.formats.order import OnHalt, Order, OrderKind
from abupdate.host import fleetsign, orders
from abupdate.host.atomic import check_spares
from abupdate.host.orders import Place, Rollout, Target
from abupdate.host.signing import load_signers
from abupdate.log import log

_MAX_SEQ = (1 << 32) - 1
_MAX_S = 30 * 86400


def propose(options: Namespace) -> int:
    """`abupdate fleet propose FILE`: a bundle to install, or a signed order or membership to hand in."""
    remote = "://" in options.file and not Path(options.file).exists()
    if not remote and _starts_like(Path(options.file), memberships.MAGIC, order_format.MAGIC):
        return _hand_in(options)
    target = _target_at(options.file) if remote else orders.target_of(Path(options.file))
    back = _target(options, options.rollback_to) if options.rollback_to is not None else None
    on_halt = OnHalt[options.on_halt.upper()]
    if back is not None and on_halt is OnHalt.HOLD:
        raise ConfigError("--rollback-to goes with --on-halt rollback")
    sources = tuple(options.sources) or ((options.file,) if remote else ())
    if not sources:
        raise ConfigError("no --source is given", "name a URL or path where the devices find the bundle")
    rollout = _rollout(options)
    return _give(options, lambda place: orders.update(place, target, sources, options.share, rollout, on_halt, back))


def pause(options: Namespace) -> int:
    """`abupdate fleet pause [ORDER]`."""
    return _about_order(options, OrderKind.PAUSE)


def resume(options: Namespace) -> int:
    """`abupdate fleet resume [ORDER]`."""
    return _about_order(options, OrderKind.RESUME, options.halt_at)


def cancel(options: Namespace) -> int:
    """`abupdate fleet cancel ORDER`."""
    return _about_order(options, OrderKind.CANCEL)


def rollback(options: Namespace) -> int:
    """`abupdate fleet rollback --to BUNDLE`."""
    target, rollout = _target(options, options.to), _rollout(options)
    if options.membership is None:
        _warn_of_floor(load(options.config), target)

    def make(place: Place) -> Order:
        nodes = frozenset(map(place.node, options.nodes))
        return orders.rollback(place, target, nodes, rollout, now=options.now)

    return _give(options, make)


def _warn_of_floor(settings: Settings, target: Target) -> None:
    """Say that this device would not go back there; what the others have confirmed is not known here, but they run what it runs."""
    from abupdate import machine, wiring
    from abupdate.operations.board import observe

    try:
        floor = machine.floor(observe(wiring.tolerant(settings), heads=False))
    except AbupdateError:
        # The order is for the site, and needs nothing of this device.
        return
    if target.counter < floor:
        log.warning(
            "version %s has the security counter %d, and this device has confirmed %d: it will refuse to go back",
            target.version,
            target.counter,
            floor,
        )


def lost(options: Namespace) -> int:
    """`abupdate fleet lost NODE`."""
    return _about_node(options, OrderKind.LOST)


def evict(options: Namespace) -> int:
    """`abupdate fleet evict NODE`."""
    return _about_node(options, OrderKind.EVICT)


def _about_order(options: Namespace, kind: OrderKind, halt_at: int = 0) -> int:
    check_reason(options.reason)
    status = _status(options)
    target = NOTHING if options.order is None else find_order(status, options.order)
    return _give(options, lambda place: orders.about_order(place, kind, target, options.reason, halt_at), status)


def _about_node(options: Namespace, kind: OrderKind) -> int:
    check_reason(options.reason)
    return _give(options, lambda place: orders.about_node(place, kind, place.node(options.node), options.reason))


def _give(options: Namespace, make: Callable[[Place], Order], status: Mapping[str, Any] | None = None) -> int:
    """Make the order, sign it, and write it or hand it in."""
    signers = load_signers(options.keys, passphrase_file=options.passphrase_file, sign_with=options.sign_with)
    if options.output is None and not signers:
        raise ConfigError("nobody signs the order", "give --key KEY.pem, or -o FILE.abo to have it signed elsewhere")
    place = _place(options, status or _status(options))
    done = fleetsign.sign(make(place), signers, place.judge)
    assert isinstance(done.thing, Order)
    if options.output is not None:
        check_spares(options.output, [*options.keys, *filter(None, [options.passphrase_file, options.membership])])
        fleetsign.write(options.output, done.data)
    else:
        ask_daemon(options, Submit(done.data))
    return _report(options, done.thing)


def _report(options: Namespace, order: Order) -> int:
    document, lines = describe(order)
    document |= {
        "file": str(options.output) if options.output else None,
        "submitted": options.output is None,
        "signed_by": [signature.key_id(item.public_key) for item in order.signatures],
    }
    after = f"written to {options.output}: `abupdate fleet sign` signs it, `abupdate fleet propose` hands it in on any node"
    say(options, document, "\n".join([*lines, after if options.output else "handed in"]))
    return 0


def _hand_in(options: Namespace) -> int:
    data = fleetsign.read(Path(options.file))
    thing = fleetsign.parse(data)
    if options.keys or options.output:
        raise ConfigError(f"{options.file} is handed in as it is", "`abupdate fleet sign` adds signatures")
    ask_daemon(options, Submit(data))
    if isinstance(thing, Order):
        return _report(options, thing)
    document = {"membership": thing.digest.hex(), "site": thing.site, "epoch": thing.epoch, "submitted": True}
    say(options, document, f"membership {thing.digest.hex()} of {thing.site}, epoch {thing.epoch}, is handed in")
    return 0


def _starts_like(path: Path, *magics: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(8) in magics
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _status(options: Namespace) -> Mapping[str, Any] | None:
    """What the daemon says; None where the site is told by a file."""
    return None if options.membership is not None else ask_daemon(options, AskStatus())


def _place(options: Namespace, status: Mapping[str, Any] | None) -> Place:
    if options.seq is not None and not 1 <= options.seq <= _MAX_SEQ:
        raise ConfigError(f"--seq {options.seq} is not between 1 and {_MAX_SEQ}")
    if options.membership is not None:
        if options.seq is None:
            raise ConfigError("--membership needs --seq", "one more than `newest_admin_seq` in `abupdate --json fleet status`")
        return orders.place_of(fleetsign.load_membership(options.membership), options.seq)
    assert status is not None
    members = {str(member["name"]): int(member["index"]) for member in status["members"]}
    # Behind the orders that are on their way too, or one of the two would be void.
    newest = status["newest_admin_seq"]
    seq = int(newest) + 1 if options.seq is None else options.seq
    return Place(bytes.fromhex(status["genesis"]), int(status["epoch"]), seq, members)


def _rollout(options: Namespace) -> Rollout:
    for name, value, high in (("--width", options.width, 254), ("--halt-at", options.halt_at, 255), ("--overdue", options.overdue, _MAX_S)):
        if not 1 <= value <= high:
            raise ConfigError(f"{name} {value} is not between 1 and {high}")
    return Rollout(options.width, options.halt_at, options.overdue)


def _target(options: Namespace, text: str) -> Target:
    """A bundle file, or a version or id among what this device's slots hold. Raises ConfigError."""
    if Path(text).exists():
        return orders.target_of(Path(text))
    held = _held(options)
    found = [target for target in held if text in (target.version, target.bundle.hex())]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{target.version} ({target.bundle.hex()[:12]})" for target in held) or "nothing that is known"
    raise ConfigError(f"{text[:80]!r} is no bundle file, and names {len(found)} of this device's slots", f"they hold {known}")


def _target_at(url: str) -> Target:
    """What a bundle at a URL is: its head alone is fetched."""
    from abupdate.transfer.httpsource import HttpSource

    with HttpSource(url) as source:
        return orders.target_in(read_head(source.read, None))


def _held(options: Namespace) -> tuple[Target, ...]:
    from abupdate import wiring

    settings = load(options.config)
    state = wiring.state_store(settings)
    found: dict[bytes, Target] = {}
    for slot in settings.slots:
        head = state.load_head(slot)
        if head is None:
            continue
        try:
            target = orders.target_in(parse_stored_head(head))
        except AbupdateError:
            continue
        found[target.bundle] = target
    return tuple(found.values())
