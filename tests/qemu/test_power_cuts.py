"""Power cuts with loss, on the real software: a whole update is recorded at the disk, cut at seeded moments, judged and booted.

Cuts are derived from the recording (every write and flush of one run, replayed), or made live: the disk of a running guest
stops answering at its k-th write. Either way a seed chooses which unflushed sectors have reached the medium.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qemu.powerloss import Cut, Flush, Replay, Write
from tests.qemu.cutting import (
    Agent,
    Ground,
    Recording,
    boot_after,
    cut_live,
    cuts_of,
    ground,
    in_environment,
    never_forced,
    record,
    record_boot_without_data,
    record_flash,
    record_with_qemu,
    seed_of_this_commit,
)
from tests.qemu.judge import Finding, Judge, Stage

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(900)]

SEED = seed_of_this_commit()
# Of one run: cuts that are judged; cuts that are booted in each part, before the trial is armed and anywhere, and made live.
OFFLINE, OFFLINE_SLOW = 500, 4000
PARTS, PARTS_SLOW = 2, 5
BOOTED, BOOTED_SLOW = (2, 1, 1), (5, 1, 1)

_WRITE, _FLUSH = "                write_all(fd, data, start, self.calls)\n", "                self.calls.fsync(fd)\n"
BOTH_COPIES = Agent(
    "both copies of the environment are written without a flush between",
    (
        ("bootloaders/envfile.py", "os.O_RDWR | os.O_DSYNC", "os.O_RDWR"),
        ("bootloaders/envfile.py", _WRITE + _FLUSH, _WRITE),
        ("bootloaders/uboot.py", "        loaded.areas[loaded.current].flush()\n", ""),
        (
            "bootloaders/uboot.py",
            "    area.write(encode(environment, area",
            "    for area in loaded.areas: area.write(encode(environment, area",
        ),
    ),
)
WRITTEN_FIRST = Agent(
    "the record says written before the slot is flushed",
    (
        (
            "machine.py",
            '        WriteSlot(slot),\n        ReadBack(slot),\n        SaveRecord(written, f"slot {slot} is written and verified"),',
            '        SaveRecord(written, f"slot {slot} is written and verified"),\n        WriteSlot(slot),\n        ReadBack(slot),',
        ),
    ),
)

Report = Callable[[str, object], None]


@pytest.fixture(scope="module")
def place(images: Path) -> Iterator[Ground]:
    with ground(images) as made:
        yield made


@pytest.fixture(scope="module")
def judge(place: Ground) -> Judge:
    return place.judge(place.folder / "judge")


@pytest.fixture(scope="module")
def story(place: Ground) -> Recording:
    return record(place)


def judged(place: Ground, judge: Judge, recording: Recording, cuts: list[Cut]) -> Iterator[tuple[Cut, Finding]]:
    """What each cut leaves, cuts ascending."""
    replay = Replay(place.image, recording.events)
    for number, cut in enumerate(cuts):
        with replay.after(cut) as medium:
            yield cut, judge.judge(medium, recording.stage(cut.done))
        if number % 200 == 199:
            judge.forget()
    replay.medium.close()


def hold(place: Ground, judge: Judge, recording: Recording, cuts: list[Cut]) -> str:
    """Every cut leaves what it must; a summary of what they left."""
    found = list(judged(place, judge, recording, cuts))
    bad = [f"{cut}: {'; '.join(finding.faults)}" for cut, finding in found if finding.faults]
    assert not bad, f"seed {SEED}: {len(bad)} of {len(found)} cuts\n" + "\n".join(bad[:20])
    states = Counter(
        f"{finding.boots}{' on trial' if finding.trial else ''}, B {finding.state.value}" for _, finding in found if finding.state
    )
    return f"{len(found)} cuts over {len(recording.events)} writes and flushes, seed {SEED}: {dict(states)}"


def test_whatever_a_cut_leaves_boots_something_whole(place: Ground, judge: Judge, story: Recording, record_property: Report) -> None:
    assert {stage for _, stage in story.stages} == set(Stage)
    assert sum(len(event.data) for event in story.events if isinstance(event, Write)) > 50 << 20
    record_property("power cuts", "derived, judged offline: " + hold(place, judge, story, cuts_of(story, OFFLINE, SEED)))


@pytest.mark.slow
def test_many_more_cuts(place: Ground, judge: Judge, story: Recording, record_property: Report) -> None:
    record_property("power cuts", "derived, judged offline: " + hold(place, judge, story, cuts_of(story, OFFLINE_SLOW, SEED)))


def test_log_of_qemu_replayed(place: Ground, judge: Judge, record_property: Report) -> None:
    """The same story under QEMU's own `blklogwrites`: to every flush, and to samples between."""
    recording = record_with_qemu(place)
    assert len(recording.flushes) > 40
    assert {stage for _, stage in recording.stages} == set(Stage)
    record_property("power cuts", "blklogwrites, judged offline: " + hold(place, judge, recording, cuts_of(recording, OFFLINE, SEED)))


def boot_some(place: Ground, judge: Judge, story: Recording, part: int, counts: tuple[int, int, int]) -> str:
    """Boot the real thing after some cuts and bring the story to its end; what was done, in words."""
    unarmed, anywhere, live = counts
    chance = random.Random(SEED * 1000 + part)
    armed = max(at for at in story.writes if at < story.reached(Stage.FLASHED) and in_environment(story.events[at]))
    cuts = [Cut(chance.randrange(armed), chance.getrandbits(32)) for _ in range(unarmed)]
    cuts += [Cut(chance.randrange(armed, len(story.events)), chance.getrandbits(32)) for _ in range(anywhere)]
    done: list[str] = []
    replay = Replay(place.image, story.events)
    for cut in sorted(cuts, key=lambda cut: cut.done):
        with replay.after(cut) as medium:
            finding = judge.judge(medium, story.stage(cut.done))
            assert not finding.faults, f"{cut}: {finding.faults}"
            took = boot_after(place, medium, finding)
        assert took == "flash" or cut.done >= armed
        done.append(f"{cut}: slot {finding.boots}, then {took}")
        print(done[-1], flush=True)
    replay.medium.close()
    for _ in range(live):
        number, seed = chance.randrange(len(story.writes) - 5), chance.getrandbits(32)
        finding, took = cut_live(place, judge, number, seed)
        assert not finding.faults, f"live cut at write {number}, seed {seed}: {finding.faults}"
        done.append(f"live at write {number}, seed {seed}: slot {finding.boots}, then {took}")
        print(done[-1], flush=True)
    return f"booted and brought to the end (seed {SEED}, part {part}): " + " | ".join(done)


@pytest.mark.parametrize("part", range(PARTS))
def test_the_device_boots_after_a_cut_and_ends_where_it_should(
    place: Ground, judge: Judge, story: Recording, part: int, record_property: Report
) -> None:
    record_property("power cuts", boot_some(place, judge, story, part, BOOTED))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS, PARTS + PARTS_SLOW))
def test_the_device_boots_after_many_cuts(place: Ground, judge: Judge, story: Recording, part: int, record_property: Report) -> None:
    record_property("power cuts", boot_some(place, judge, story, part, BOOTED_SLOW))


@pytest.mark.parametrize(
    ("agent", "fault"),
    [
        pytest.param(BOTH_COPIES, "no copy of the environment is valid", id="both copies"),
        pytest.param(WRITTEN_FIRST, "slot B is called whole and is not", id="written first"),
    ],
)
def test_an_agent_with_a_bug_is_found(place: Ground, judge: Judge, agent: Agent, fault: str, record_property: Report) -> None:
    """A real guest runs a changed agent; the same judge must object."""
    recording = record_flash(place, agent)
    found = list(judged(place, judge, recording, cuts_of(recording, OFFLINE, SEED)))
    seen = [cut for cut, finding in found if any(fault in said for said in finding.faults)]
    assert seen, f"not found: {agent.name}"
    record_property("power cuts", f"{agent.name}: found by {len(seen)} of {len(found)} cuts, seed {SEED}, first {seen[0]}")


def test_commit_waits_for_what_uboot_left_in_the_cache(place: Ground, judge: Judge, record_property: Report) -> None:
    """U-Boot has counted in one copy and flushed nothing; the agent's first commit overwrites the other one."""
    recording = never_forced(record_boot_without_data(place))
    begun = recording.events.index(Flush()) + 1
    assert sum(in_environment(event) for event in recording.events[begun:]) >= 2
    replay = Replay(place.image, recording.events)
    lost: list[Cut] = []
    cuts = [cut for cut in cuts_of(recording, OFFLINE, SEED) if cut.done >= begun]
    for cut in cuts:
        with replay.after(cut) as medium:
            if judge.environment_lost(medium):
                lost.append(cut)
    replay.medium.close()
    assert not lost, f"seed {SEED}: {len(lost)} of {len(cuts)} cuts, first {lost[0]}"
    record_property("power cuts", f"U-Boot's write in the cache: {len(cuts)} cuts over {len(recording.events)} events, seed {SEED}")
