"""The fleet's log and the node's key on the modelled file system: cut at every step, any part of what was not flushed kept, started again.

What is judged after every cut: the key that was once returned is there; every record whose `append` (or `replace`) had returned is there,
in order, and behind them at most the first ones of those that were being written; no fault is reported that only power cuts have made,
and none that is real is ever forgotten. Then the daemon goes on where it is, and that run is cut in turn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from abupdate.errors import AbupdateError, Failed
from abupdate.fleet import identity
from abupdate.fleet.events import RecordKind
from abupdate.fleet.ports import Loaded
from abupdate.fleet.store import Store
from tests.sim.explore import Limits, Tally, survivors
from tests.sim.filesystem import Files, Tree
from tests.sim.judge import Violation
from tests.sim.parts import digest, quiet

FOLDER = Path("/data/abupdate/fleet")
Records = tuple[tuple[RecordKind, bytes], ...]


@dataclass(frozen=True)
class Promise:
    """What holds after a cut. key: the public key that must be there, empty: any but those of `gone`. may: what the log may hold, one of
    these; empty: anything.

    fault: a fault was reported or is there to be found, and must be reported. anew: it may also be a new key with a log that holds
    nothing, or the old one with a fault.
    """

    key: bytes = b""
    may: frozenset[Records] = frozenset({()})
    fault: bool = False
    anew: bool = False
    gone: frozenset[bytes] = frozenset()


@dataclass
class Node:
    """A process of the daemon: production code on a running tree, and what was promised so far. salt: another one for another device."""

    tree: Tree
    promise: Promise
    salt: bytes = b""
    _store: Store | None = None
    _held: Records = ()
    _draws: int = 0

    def entropy(self, count: int) -> bytes:
        """The same in every run that gets there in the same way, and other bytes each time."""
        self._draws += 1
        seen = b"".join(self.tree.live[inode] for inode in sorted(self.tree.live))
        return blake2b(seen, digest_size=count, key=self.salt, salt=self._draws.to_bytes(8, "big")).digest()

    def show_key(self) -> None:
        """What the command line does that shows a node's key to people: it must stay from then on. Raises Violation."""
        key = identity.load_or_create(FOLDER, self.tree, self.entropy).public_key
        _expect(not self.promise.key or key == self.promise.key, "the key is another one")
        self.promise = replace(self.promise, key=key)

    def start(self) -> Loaded:
        """What every start of the daemon does before anything else. Raises Violation."""
        before = self.promise
        found = identity.load(FOLDER, self.tree) or identity.load_or_create(FOLDER, self.tree, self.entropy)
        _expect(found.public_key not in before.gone, "a key that was given away is back")
        anew = bool(before.key) and found.public_key != before.key
        _expect(not anew or before.anew, "the key is another one")
        self._store = Store(FOLDER, found.public_key, self.tree, self.entropy)
        loaded = self._store.load()
        if anew:
            _expect((loaded.records, loaded.fault) == ((), ""), "a new key with an old log")
        elif not (before.anew and loaded.fault):
            fault = f"{loaded.fault}, after power cuts alone" if loaded.fault else "the fault is forgotten"
            _expect(bool(loaded.fault) == before.fault, fault)
            may = " or ".join(map(_words, sorted(before.may)))
            _expect(not before.may or loaded.records in before.may, f"{_words(loaded.records)} instead of {may}")
        self._held = loaded.records
        self.promise = Promise(found.public_key, frozenset({loaded.records}), bool(loaded.fault), gone=before.gone)
        return loaded

    @property
    def usable(self) -> bool:
        """The log can be appended to."""
        return self._store is not None and self._store.usable

    def append(self, *records: tuple[RecordKind, bytes]) -> None:
        """Append; meanwhile the first ones of them may be there or not."""
        assert self._store is not None
        whole = self._held + records
        with self._meanwhile(whole, frozenset(whole[:length] for length in range(len(self._held), len(whole) + 1))):
            self._store.append(records)

    def replace(self, *records: tuple[RecordKind, bytes]) -> None:
        """Replace; meanwhile it is all or nothing."""
        assert self._store is not None
        with self._meanwhile(records, frozenset({self._held, records})):
            self._store.replace(records)

    @contextmanager
    def _meanwhile(self, then: Records, may: frozenset[Records]) -> Iterator[None]:
        before = self.promise
        self.promise = replace(before, may=may)
        try:
            yield
        except Failed:
            if self.usable:
                # It says that it goes on as if nothing had been written.
                self.promise = before
            raise
        self._held = then
        self.promise = replace(before, may=frozenset({then}))

    def enrol_anew(self) -> None:
        """Stop, and give key and log away; the next start makes new ones."""
        if self._store is not None:
            self._store.close()
        given = self.promise.gone | ({self.promise.key} if self.promise.key else set())
        self.promise = replace(self.promise, anew=True)
        identity.start_anew(FOLDER, self.tree)
        self.promise = Promise(gone=given)


@dataclass(frozen=True)
class Scenario:
    """An operation to be cut. prepare: the data partition and what holds before; run: what the daemon does, again after every cut."""

    name: str
    prepare: Callable[[], tuple[Files, Promise]]
    run: Callable[[Node], None]


BOOT = (RecordKind.BOOT, b"\0\0\0\1")
VOTE = (RecordKind.VOTE, b"vote " * 24)
LOCK = (RecordKind.LOCK, b"")
OBJECT = (RecordKind.OBJECT, b"object" * 150)
FACT = (RecordKind.FACT, b"fact")
SNAPSHOT = (RecordKind.SNAPSHOT, b"state" * 40)


def _nothing() -> tuple[Files, Promise]:
    return Files.with_files({}, ("/", "/data")), Promise()


def _used() -> tuple[Files, Promise]:
    """A node with a few records."""
    found, promise = _nothing()
    tree = found.thaw()
    node = Node(tree, promise)
    node.start()
    node.append(BOOT)
    node.append(VOTE, FACT)
    return tree.freeze(), node.promise


def _spoiled(spoil: Callable[[dict[str, bytes]], None]) -> tuple[Files, Promise]:
    """The same, with something wrong that no power cut does."""
    found, promise = _used()
    content = dict(found.content)
    spoil(content)
    return Files.with_files(content, found.folders), replace(promise, may=frozenset(), fault=True)


def _lose(content: dict[str, bytes]) -> None:
    del content[str(FOLDER / "log")]


def _damage(content: dict[str, bytes]) -> None:
    data = content[str(FOLDER / "log")]
    content[str(FOLDER / "log")] = data[:100] + b"?" + data[101:]


def _swap(content: dict[str, bytes]) -> None:
    """The log of another node."""
    tree = Files.with_files({}, ("/", "/data")).thaw()
    Node(tree, Promise(), b"another").start()
    content[str(FOLDER / "log")] = tree.freeze().content[str(FOLDER / "log")]


def _work(node: Node) -> None:
    node.start()
    node.append(BOOT)
    node.append(VOTE, LOCK, FACT)


def _large(node: Node) -> None:
    node.start()
    node.append(OBJECT, VOTE)
    node.append(FACT)


def _compact(node: Node) -> None:
    node.start()
    node.append(BOOT)
    node.replace(SNAPSHOT, BOOT)
    node.append(VOTE)


def _compact_twice(node: Node) -> None:
    node.start()
    node.replace(SNAPSHOT, VOTE, LOCK)
    node.replace()
    node.append(FACT)


def _show(node: Node) -> None:
    node.show_key()
    node.start()


def _enrol(node: Node) -> None:
    node.start()
    node.enrol_anew()
    node.start()
    node.append(BOOT)


SCENARIOS = (
    Scenario("fleet log, first start", _nothing, _work),
    Scenario("fleet key, shown", _nothing, _show),
    Scenario("fleet log, append", _used, _work),
    Scenario("fleet log, append much", _used, _large),
    Scenario("fleet log, replace", _used, _compact),
    Scenario("fleet log, replace twice", _used, _compact_twice),
    Scenario("fleet log, lost", lambda: _spoiled(_lose), _compact),
    Scenario("fleet log, damaged", lambda: _spoiled(_damage), _compact),
    Scenario("fleet log, of another node", lambda: _spoiled(_swap), _work),
    Scenario("fleet log, enrolled anew", _used, _enrol),
    Scenario("fleet log, lost and enrolled anew", lambda: _spoiled(_lose), _enrol),
)


@dataclass(frozen=True)
class _State:
    files: Files
    promise: Promise
    story: str


@dataclass
class Explorer:
    """The exploration of one scenario."""

    scenario: Scenario
    limits: Limits
    lies: bool = False
    tally: Tally = field(default_factory=Tally)
    _moments: set[tuple[Files, Promise]] = field(default_factory=set)
    _found: list[_State] = field(default_factory=list)

    def run(self) -> Tally:
        """Cut the uncut run, then cut by cut what is left of it. Raises Violation at the first broken promise."""
        files, promise = self._start()
        journal = self._attempt(_State(files, promise, "uncut"))
        self.tally.steps = len(journal) - 1
        self._cut(journal, "", 1)
        for step, seen, promised in journal:
            # Only the process dies: what it left is seen by all, and may still be lost.
            killed = _State(seen, promised, f"killed before {step}")
            self._cut(self._attempt(killed), f"{killed.story}, again: ", 1)
        for depth in range(1, self.limits.depth + 1):
            frontier, self._found = self._found, []
            random.Random(self.limits.seed).shuffle(frontier)
            most = len(self.tally.states) + self.limits.again
            for state in frontier:
                journal = self._attempt(state)
                if depth < self.limits.depth and len(self.tally.states) < most:
                    self._cut(journal, f"{state.story}, ", depth + 1)
        return self.tally

    def fail(self, fault: BaseException, *, lasting: bool) -> int:
        """Let every step of the uncut run fail in turn, this one or all from there on. The daemon goes on while the log says that it can;
        a cut follows, and a start. Returns the number of steps."""
        files, promise = self._start()
        steps: list[str] = []
        self.scenario.run(Node(files.thaw(lambda step, inside: steps.append(step)), promise))
        for number, step in enumerate(steps):
            tree = files.thaw()
            node = Node(tree, promise)
            tree.listen(_Fault(fault, number, lasting))
            with suppress(Failed, KeyboardInterrupt):
                self.scenario.run(node)
            if not lasting and node.usable:
                tree.listen(quiet)
                node.append(FACT)
            story = f"{fault!r} at {step} (step {number})"
            for left in survivors((tree.freeze(),), self.limits.seed, self.limits.most, self.limits.samples):
                assert isinstance(left[0], Files)
                self._attempt(_State(left[0], node.promise, story))
        return len(steps)

    def _start(self) -> tuple[Files, Promise]:
        files, promise = self.scenario.prepare()
        return Files.with_files(files.content, files.folders, lies=self.lies), promise

    def _attempt(self, state: _State) -> list[tuple[str, Files, Promise]]:
        """Run the scenario; every moment of it and its end."""
        tree = state.files.thaw()
        node = Node(tree, state.promise)
        journal: list[tuple[str, Files, Promise]] = []
        tree.listen(lambda step, inside: journal.append((step, tree.freeze(), node.promise)))
        try:
            self.scenario.run(node)
        except (Violation, AbupdateError) as broken:
            raise Violation(f"{self.scenario.name}: {state.story}: {broken}") from None
        self.tally.runs += 1
        return [*journal, ("its end", tree.freeze(), node.promise)]

    def _cut(self, journal: list[tuple[str, Files, Promise]], before: str, depth: int) -> None:
        limits = self.limits
        most, samples = (limits.most, limits.samples) if depth == 1 else (limits.again_most, limits.again_samples)
        for step, files, promise in journal:
            if (files, promise) in self._moments:
                continue
            self._moments.add((files, promise))
            for left in survivors((files,), limits.seed, most, samples):
                assert isinstance(left[0], Files)
                self._add(_State(left[0], promise, f"{before}cut before {step}"))

    def _add(self, state: _State) -> None:
        key = _key(state)
        if key not in self.tally.states:
            self.tally.states.add(key)
            self._found.append(state)


@dataclass
class _Fault:
    """Raises at the n-th step; lasting: at every later one, too."""

    fault: BaseException
    number: int
    lasting: bool
    count: int = 0

    def __call__(self, step: str, inside: bool) -> None:
        self.count += 1
        if self.count == self.number + 1 or (self.lasting and self.count > self.number):
            raise self.fault


def _key(state: _State) -> bytes:
    pieces = [
        f"{state.promise.fault} {state.promise.anew}".encode(),
        state.promise.key,
        *sorted(state.promise.gone),
        *map(str.encode, state.files.folders),
    ]
    for name, data in sorted(state.files.content.items()):
        pieces += [name.encode(), data]
    return digest(*pieces, *(repr(one).encode() for one in sorted(state.promise.may)))


def _words(records: Records) -> str:
    return "[" + " ".join(kind.name for kind, _ in records) + "]"


def _expect(holds: bool, problem: str) -> None:
    if not holds:
        raise Violation(problem)
