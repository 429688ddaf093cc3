"""What the core wants done becomes commands, one after the other, and their ends become events that the device's own state decides."""

from __future__ import annotations

import json
import math
import select
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from abupdate.errors import Failed
from abupdate.fleet.carrier import Carrier, Commands
from abupdate.fleet.events import (
    Device,
    Disarm,
    Event,
    Leave,
    LeaveEnded,
    Observed,
    PeerLeaving,
    PeerReturned,
    Prepare,
    Prepared,
    Reboot,
    Restored,
    RollBackNow,
    Send,
)
from abupdate.formats.order import Order, OrderKind

NOTHING, V2 = bytes(32), b"\x02" * 32
SOURCES = ("/dev/null", "file:///proc/self", "http://three/x")
ORDER = Order(b"\x0a" * 32, OrderKind.UPDATE, NOTHING, 1, 1, b"", bundle=V2, version="2.0", sources=SOURCES)
IDLE = Device(NOTHING, NOTHING, NOTHING, trial=False, armed=False, lease=None, phase=None)
# Notes its arguments and its input; what it says and how it ends is in the file `answers`, a line for each call of its verb.
CHILD = """
import json, pathlib, sys, time
folder, *words = sys.argv[1:]
said = sys.stdin.read()
with open(folder + "/calls", "a") as calls:
    calls.write(json.dumps([words, said]) + "\\n")
answers = pathlib.Path(folder, words[0])
lines = answers.read_text().splitlines() if answers.exists() else []
code, pause, text = json.loads(lines[0]) if lines else (0, 0, "")
answers.write_text("\\n".join(lines[1:]))
time.sleep(pause)
print(json.dumps({"error": text, "exit_code": code} if code else {}))
raise SystemExit(code)
"""


class Bench:
    """A carrier over commands that do nothing but answer."""

    def __init__(self, folder: Path, kept: int) -> None:
        self.folder = folder
        self.device = IDLE
        self.broken = False
        self.events: list[Event] = []
        self.late_s = 0.0
        program = (sys.executable, "-c", CHILD, str(folder))
        commands = Commands(
            fetch=lambda source, bundle: (*program, "fetch", source, bundle.hex()),
            act=lambda verb, *words: (*program, verb, *words),
            hooks=lambda kind: (*program, "hooks", kind),
            has_hooks=lambda kind: (folder / f"{kind}.d").exists(),
        )
        self.carrier = Carrier(commands, self.look, lambda index: f"gw{index}", kept=kept, drain_s=10, hook_s=10)

    def look(self) -> Device:
        if self.broken:
            raise Failed("the store is gone")
        return self.device

    def answer(self, verb: str, code: int, text: str = "", pause_s: float = 0.0) -> None:
        with (self.folder / verb).open("a") as file:
            file.write(json.dumps([code, pause_s, text]) + "\n")

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line)[0] for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def said(self) -> list[dict[str, object]]:
        return [json.loads(json.loads(line)[1]) for line in (self.folder / "calls").read_text().splitlines()]

    def now_s(self) -> float:
        return time.monotonic() + self.late_s

    def want(self, effect: object) -> None:
        assert self.carrier.carry(effect, self.now_s())  # type: ignore[arg-type]

    def run(self, calls: int) -> list[Event]:
        """Until so many commands have been called and nothing runs; the events since the last time."""
        self.events.clear()
        end_s = time.monotonic() + 30
        while self.carrier.descriptors or len(self.calls) < calls:
            assert time.monotonic() < end_s, self.calls
            select.select(list(self.carrier.descriptors), [], [], 0.05)
            self.events += self.carrier.poll(self.now_s())
        return list(self.events)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with (tmp_path / "acting").open("w") as file:
        made = Bench(tmp_path, file.fileno())
        yield made
        made.carrier.close()


def test_sources_are_tried_in_turn_and_the_slot_says_whether_one_was_right(bench: Bench) -> None:
    bench.answer("fetch", 1, "no such file")
    bench.answer("fetch", 3, "this is another bundle")
    bench.want(Prepare(ORDER))
    bench.device = replace(IDLE, written=NOTHING)
    events = bench.run(3)
    assert bench.calls == [["fetch", source, V2.hex()] for source in ("/dev/null", "/proc/self", "http://three/x")]
    assert events == [Prepared(ORDER.id, "the slot does not hold the order's bundle", final=False), Observed(IDLE)]


def test_the_first_source_that_brings_the_bundle_is_enough(bench: Bench) -> None:
    bench.device = replace(IDLE, written=V2)
    bench.want(Prepare(ORDER))
    assert bench.run(1) == [Prepared(ORDER.id), Observed(bench.device)]


def test_only_refusals_of_all_sources_are_final(bench: Bench) -> None:
    for text in ("a downgrade", "damaged", "another bundle"):
        bench.answer("fetch", 3, text)
    bench.want(Prepare(ORDER))
    assert bench.run(3) == [Prepared(ORDER.id, "a downgrade", final=True), Observed(IDLE)]


def test_a_path_that_is_not_there_is_passed_over_and_no_reason_to_reject(bench: Bench) -> None:
    gone = replace(ORDER, sources=("/nowhere/one", "file:///nowhere/two%20words"))
    bench.want(Prepare(gone))
    assert bench.carrier.wake_s <= bench.now_s()
    assert bench.carrier.poll(bench.now_s()) == (Prepared(gone.id, "/nowhere/two words is not there", final=False), Observed(IDLE))
    assert bench.calls == []
    bench.answer("fetch", 3, "another bundle")
    bench.want(Prepare(replace(gone, sources=("/nowhere/one", "/dev/null"))))
    assert bench.run(1)[0] == Prepared(gone.id, "another bundle", final=False)


def test_a_newer_prepare_takes_the_place_of_one_that_runs(bench: Bench) -> None:
    newer = replace(ORDER, id=b"\x0b" * 32, sources=("/dev/zero",))
    bench.answer("fetch", 0, pause_s=30)
    bench.want(Prepare(ORDER))
    while not bench.calls:
        time.sleep(0.01)
    bench.want(Prepare(newer))
    bench.device = replace(IDLE, written=V2)
    events = bench.run(2)
    assert bench.calls[-1] == ["fetch", "/dev/zero", V2.hex()]
    assert Prepared(newer.id) in events


def test_going_down_waits_for_no_download(bench: Bench) -> None:
    bench.answer("fetch", 0, pause_s=30)
    bench.answer("leave", 6, "drain: no")
    bench.want(Prepare(ORDER))
    while not bench.calls:
        time.sleep(0.01)
    bench.want(Leave(7, ORDER, V2, back=False))
    events = bench.run(2)
    assert [call[0] for call in bench.calls] == ["fetch", "leave"]
    assert events[0] == Prepared(ORDER.id, "ended by signal 15", final=False)
    assert events[-2:] == [LeaveEnded(7, "drain: no"), Observed(IDLE)]


def test_the_programs_are_told_what_comes(bench: Bench) -> None:
    bench.answer("leave", 6, "no")
    bench.want(Leave(7, replace(ORDER, rollback_version="1.0"), V2, back=True))
    bench.run(1)
    assert bench.calls == [["leave", "--lease", "7", "--bundle", V2.hex()]]
    assert bench.said == [{"event": "drain", "lease": 7, "order": ORDER.id.hex(), "bundle": V2.hex(), "version": "1.0", "back": True}]


def test_a_reboot_that_was_ordered_and_does_not_come_ends_the_leave(bench: Bench) -> None:
    bench.want(Leave(7, ORDER, V2, back=False))
    assert bench.run(1) == []
    assert bench.carrier.doing == "Leave"
    bench.want(Leave(7, ORDER, V2, back=False))
    assert bench.run(1) == [], "it is on its way"
    assert bench.carrier.wake_s < math.inf
    bench.late_s = 1000
    assert bench.carrier.poll(bench.now_s()) == (LeaveEnded(7, "the reboot did not happen"), Observed(IDLE))
    bench.want(Reboot(7))
    bench.run(2)
    assert bench.calls[-1] == ["reboot"]


@pytest.mark.parametrize(
    ("effect", "words"),
    [(Disarm(7), ["disarm", "--lease", "7"]), (RollBackNow(ORDER), ["back", "--bundle", V2.hex()]), (Reboot(7), ["reboot"])],
)
def test_whatever_else_fails_the_device_is_looked_at(bench: Bench, effect: object, words: list[str]) -> None:
    bench.answer(words[0], 4, "nothing is armed")
    bench.want(effect)
    assert bench.run(1) == [Observed(IDLE)]
    assert bench.calls == [words]
    assert bench.carrier.doing == ""


def test_an_order_that_cannot_be_carried_out_is_said_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    for calls in (1, 2, 3):
        bench.answer("back", 6, "it is on neither slot")
        bench.want(RollBackNow(ORDER))
        bench.run(calls)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["RollBackNow: it is on neither slot"]


def test_hooks_run_one_after_the_other_in_order_and_beside_what_acts_on_the_device(bench: Bench) -> None:
    for kind in ("peer-leaving", "peer-returned", "restore"):
        (bench.folder / f"{kind}.d").touch()
    bench.answer("fetch", 0, pause_s=1)
    bench.device = replace(IDLE, written=V2)
    bench.want(Prepare(ORDER))
    bench.answer("hooks", 1, "one of them failed")
    bench.want(PeerLeaving(2, 9, 600))
    bench.want(PeerReturned(2, 9))
    bench.want(Restored(11, "complete"))
    assert bench.run(4) == [Prepared(ORDER.id), Observed(bench.device)]
    assert [call[1] for call in bench.calls if call[0] == "hooks"] == ["peer-leaving", "peer-returned", "restore"]


def test_without_programs_no_process_is_started_for_a_hook(bench: Bench) -> None:
    bench.want(PeerLeaving(2, 9, 600))
    assert bench.carrier.descriptors == ()
    assert bench.calls == []


def test_hooks_are_told_who_leaves_and_for_how_long(bench: Bench) -> None:
    (bench.folder / "peer-leaving.d").touch()
    bench.want(PeerLeaving(2, 9, 600))
    bench.run(1)
    assert bench.said == [{"event": "peer-leaving", "node": "gw2", "lease": 9, "expected_s": 600}]


def test_a_device_that_cannot_be_looked_at_is_said_once_and_no_event(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.broken = True
    assert bench.carrier.observe() is None
    assert bench.carrier.observe() is None
    assert [record.message for record in caplog.records if "cannot be looked at" in record.message] == [
        "the device cannot be looked at: the store is gone"
    ]
    bench.answer("disarm", 1, "no")
    bench.want(Disarm(7))
    assert bench.run(1) == []
    bench.broken = False
    assert bench.carrier.observe() == Observed(IDLE)


def test_what_is_no_effect_on_the_device_is_left_to_others(bench: Bench) -> None:
    assert not bench.carrier.carry(Send(b"x"), 0.0)
