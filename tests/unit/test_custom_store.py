"""A board's own programs: what they answer, how long and how much, who could have put them there; and the example's two copies."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abupdate.bootloaders.custom import CustomStore
from abupdate.errors import AbupdateError, ConfigError, Failed, StoreUnreadable
from abupdate.formats.bootanswer import encode_request
from abupdate.model import BootState, Grade, TrialPolicy
from tests.contract.custom import MEDIUM_BYTES, OFFSETS, current, install, sector

SLOTS = ("A", "B")
STATE = {"order": ["A"], "left": {"A": 10, "B": 0}, "trial": None}
TRAITS = {"max_tries": 3, "counts_confirmed": True, "falls_through": False, "armed_in_store": True}
ANSWER = {"abupdate": 1, "slots": ["A", "B"], "traits": TRAITS, "state": STATE}
CALM = BootState(("A",), {"A": 10, "B": 0}, None, TrialPolicy(), 7)
ARMED = BootState(("B", "A"), {"A": 10, "B": 3}, "B", TrialPolicy(3, 10, 90), 7, verity={"B": "5a" * 32})


class Programs:
    """A folder with get-state and set-state, shell scripts made for the case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "boot"
        self.folder.mkdir()
        self.told = folder / "told"
        self.answers(ANSWER)
        self.write("set-state", f"cat >{self.told}")

    def write(self, name: str, script: str) -> None:
        """A program of this name."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def answers(self, answer: object) -> None:
        """What get-state prints."""
        text = answer if isinstance(answer, str) else json.dumps(answer)
        (self.folder / "answer").write_text(text)
        self.write("get-state", f"cat {self.folder}/answer")

    def store(self, patience_s: float = 5.0) -> CustomStore:
        """As the wiring makes it."""
        return CustomStore(self.folder, SLOTS, patience_s=patience_s)


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def error_of(call: Callable[[], Any], kind: type[AbupdateError] = ConfigError) -> AbupdateError:
    """The one-line error with a hint that the call ends with."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.hint
    assert "\n" not in caught.value.line
    return caught.value


def test_the_answer_is_the_state_and_what_the_board_can_do(programs: Programs) -> None:
    full = {**STATE, "policy": {"tries": 2, "budget": 0, "boot_timeout_s": 60}, "floor": 5, "verity": {"A": "ab" * 32}, "fresh": True}
    programs.answers({**ANSWER, "state": full, "places": [["/dev/x", 0, 512]], "tears": "one copy", "irreplaceable": "the key"})
    store = programs.store()
    assert store.read() == BootState(("A",), {"A": 10, "B": 0}, None, TrialPolicy(2, 0, 60), 5, fresh=True, verity={"A": "ab" * 32})
    assert (store.traits.max_tries, store.traits.counts_confirmed, store.traits.keeps_verity) == (3, True, False)
    assert (store.tears, store.irreplaceable, store.places()) == ("one copy", "the key", ((Path("/dev/x"), 0, 512),))
    assert store.location == f"custom:{programs.folder}"


def test_set_state_is_told_everything_in_one_line(programs: Programs) -> None:
    store = programs.store()
    for action, call in (("check", store.check_room), ("commit", store.commit), ("rebuild", store.rebuild)):
        call(ARMED)
        told = programs.told.read_text()
        assert told.count("\n") == 1
        assert json.loads(told) == {
            "abupdate": 1,
            "action": action,
            "slots": ["A", "B"],
            "state": {
                "order": ["B", "A"],
                "left": {"A": 10, "B": 3},
                "trial": "B",
                "policy": {"tries": 3, "budget": 10, "boot_timeout_s": 90},
                "floor": 7,
                "verity": {"B": "5a" * 32},
            },
        }


def test_no_valid_state_is_an_unreadable_store_that_still_says_what_it_can_do(programs: Programs) -> None:
    programs.answers({**ANSWER, "state": None})
    store = programs.store()
    error = error_of(store.read, StoreUnreadable)
    assert error.exit_code == 2
    assert "no valid state" in error.message
    assert store.traits.max_tries == 3


def without(key: str, inside: str = "") -> dict[str, Any]:
    """The answer without a key of it, or of the object inside it."""
    answer = json.loads(json.dumps(ANSWER))
    del (answer[inside] if inside else answer)[key]
    return dict(answer)


def with_(inside: str, **values: object) -> dict[str, Any]:
    """The answer with other values in the object inside it."""
    return {**ANSWER, inside: {**ANSWER[inside], **values}}  # type: ignore[dict-item]


BAD: dict[str, tuple[object, str]] = {
    "nothing": ("", "no JSON"),
    "no JSON": ("order=A", "no JSON"),
    "a list": ([1], "no JSON object"),
    "twice": ('{"abupdate": 1, "abupdate": 1}', "stands there twice"),
    "not a number": ('{"abupdate": NaN}', "NaN is no JSON"),
    "deep": ("[" * 60000, "no JSON"),
    "a long number": ('{"abupdate": ' + "1" * 5000 + "}", "no JSON"),
    "another version": ({**ANSWER, "abupdate": 2}, "version 2"),
    "no version": (without("abupdate"), "version null"),
    "true as version": ({**ANSWER, "abupdate": True}, "version true"),
    "no traits": (without("traits"), "has no `traits`"),
    "no state": (without("state"), "has no `state`"),
    "an unknown key": ({**ANSWER, "sate": 1}, "`sate`, which nothing here knows"),
    "other slots": ({**ANSWER, "slots": ["A", "C"]}, "configured are A, B"),
    "slots that are none": ({**ANSWER, "slots": [1, {}]}, "configured are A, B"),
    "no trial": (without("trial", "state"), "has no `trial`"),
    "a misspelt trial": (with_("state", trail="B"), "`trail`"),
    "an unknown trial": (with_("state", trial="C"), "`trial` is C"),
    "a trial that is a list": (with_("state", trial=["B"]), "`trial` is"),
    "an unknown slot in the order": (with_("state", order=["A", "C"]), "`order` is"),
    "a slot twice in the order": (with_("state", order=["A", "A"]), "each once at most"),
    "an order of objects": (with_("state", order=[{}]), "`order` is"),
    "an order that is a word": (with_("state", order="A"), "`order` is A"),
    "left of one slot only": (with_("state", left={"A": 1}), "`left` has no `B`"),
    "left that is negative": (with_("state", left={"A": 1, "B": -1}), "`left` is -1"),
    "left that is true": (with_("state", left={"A": True, "B": 0}), "`left` is true"),
    "left in words": (with_("state", left={"A": "1", "B": 0}), "not a number"),
    "left in fractions": (with_("state", left={"A": 1.5, "B": 0}), "1.5"),
    "a floor beyond all counters": (with_("state", floor=2**63), "`floor` is"),
    "a policy without a number": (with_("state", policy={"tries": 1, "budget": 1}), "`boot_timeout_s`"),
    "a root hash in words": (with_("state", verity={"A": "none"}), "root hash"),
    "a fresh that is a number": (with_("state", fresh=1), "neither true nor false"),
    "no tries at all": (with_("traits", max_tries=0), "a trial needs one boot"),
    "a trait that is a word": (with_("traits", falls_through="no"), "`falls_through` is no, neither"),
    "a place without an end": ({**ANSWER, "places": [["/dev/x", 0]]}, "no [PATH, BEGIN, END]"),
    "a place that is nowhere": ({**ANSWER, "places": [["x", 0, 1]]}, "no [PATH, BEGIN, END]"),
    "a place that is empty": ({**ANSWER, "places": [["/x", 5, 5]]}, "ends before it begins"),
    "places without end": ({**ANSWER, "places": [["/x", 0, 1]] * 17}, "no list of places"),
    "a tears with lines": ({**ANSWER, "tears": "a\nb"}, "printable"),
}


@pytest.mark.parametrize("name", BAD)
def test_every_bad_answer_is_one_line_and_exit_2(programs: Programs, name: str) -> None:
    answer, text = BAD[name]
    programs.answers(answer)
    error = error_of(programs.store().read)
    assert error.exit_code == 2
    assert not isinstance(error, StoreUnreadable)
    assert text in error.message
    assert str(programs.folder / "get-state") in error.message
    assert len(error.message) < 250


def test_a_flood_is_cut_off(programs: Programs) -> None:
    programs.write("get-state", "exec cat /dev/zero")
    assert "more than 65536 bytes" in error_of(programs.store().read).message


def ends(group: int) -> bool:
    """Nothing of the process group runs, a moment after it was killed at the latest."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_a_program_that_does_not_end_is_ended(programs: Programs, tmp_path: Path) -> None:
    programs.write("get-state", f"echo $$ >{tmp_path}/pid; trap '' TERM; sleep 100 & wait; sleep 100")
    started = time.monotonic()
    assert "no answer within 0.5 s" in error_of(programs.store(0.5).read, Failed).message
    assert time.monotonic() - started < 5
    assert ends(int((tmp_path / "pid").read_text()))


def test_what_it_leaves_behind_is_neither_waited_for_nor_left_running(programs: Programs, tmp_path: Path) -> None:
    programs.write("get-state", f"echo $$ >{tmp_path}/pid; sleep 100 & cat {programs.folder}/answer")
    assert programs.store(20.0).read().order == ("A",)
    assert ends(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo first >&2; echo the chip does not answer >&2; exit 1", "the chip does not answer (exit code 1)"),
        ("exit 9", "exit code 9"),
        ("kill -9 $$", "ended by signal 9"),
        (r"printf 'red \033[31m\nalarm\033[0m' >&2; exit 1", "alarm [0m (exit code 1)"),
        ("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1", "x" * 200),
    ],
)
def test_a_program_that_fails_is_quoted_and_may_be_asked_again(programs: Programs, script: str, text: str) -> None:
    for name, call in (("get-state", programs.store().read), ("set-state", lambda: programs.store().commit(CALM))):
        programs.write(name, script)
        error = error_of(call, Failed)
        assert (error.exit_code, str(programs.folder / name) in error.message) == (1, True)
        assert text in error.message


def test_a_state_that_is_refused_for_good_is_exit_2(programs: Programs) -> None:
    programs.write("set-state", "echo no room >&2; exit 2")
    for call in (programs.store().check_room, programs.store().commit, programs.store().rebuild):
        error = error_of(lambda call=call: call(ARMED))  # type: ignore[misc]
        assert (error.exit_code, "refuses the state: no room" in error.message) == (2, True)


def test_a_program_that_does_not_listen_is_no_trouble(programs: Programs) -> None:
    programs.write("set-state", "exec <&-; exit 0")
    programs.store().commit(ARMED)


@pytest.mark.parametrize(
    "state",
    [
        BootState((), {}),
        BootState(("A", "C"), {}),
        BootState(("A",), {"C": 1}),
        BootState(("A",), {}, "C"),
        BootState(("A",), {}, verity={"C": ""}),
    ],
)
def test_states_that_make_no_sense_are_not_even_told(programs: Programs, state: BootState) -> None:
    for call in (programs.store().check_room, programs.store().commit, programs.store().rebuild):
        error_of(lambda call=call: call(state))  # type: ignore[misc]
    assert not programs.told.exists()


def test_programs_that_others_could_have_put_there_are_not_run(programs: Programs) -> None:
    ran = programs.folder.parent / "ran"
    programs.write("get-state", f"touch {ran}")
    path = programs.folder / "get-state"
    for spoiled, mode in ((path, 0o775), (path, 0o757), (programs.folder, 0o775)):
        spoiled.chmod(mode)
        error = error_of(programs.store().read)
        assert "others can write it" in error.message
        assert error.hint == f"chmod go-w {spoiled}"
        spoiled.chmod(0o755)
    os.chown(path, 12345, 0)
    assert "belongs to user 12345" in error_of(programs.store().read).message
    assert not ran.exists()


def test_programs_that_are_none(programs: Programs, tmp_path: Path) -> None:
    path = programs.folder / "get-state"
    path.chmod(0o644)
    assert "is no program" in error_of(programs.store().read).message
    path.chmod(0o755)
    path.write_text("#!/no/such/interpreter\n")
    assert "cannot be run" in error_of(programs.store().read).message
    path.unlink()
    path.mkdir()
    assert "is no program" in error_of(programs.store().read).message
    path.rmdir()
    assert "No such file" in error_of(programs.store().read).message
    assert "No such file" in error_of(CustomStore(tmp_path / "nowhere", SLOTS).read).message


def test_a_program_gets_no_shell_no_environment_and_no_open_files(programs: Programs) -> None:
    script = f"pwd >{programs.told}; env | sort | grep -v '^_=' >>{programs.told}; ls /proc/self/fd | wc -l >>{programs.told}"
    programs.write("set-state", script)
    os.environ["SECRET"] = "x"
    try:
        programs.store().commit(CALM)
    finally:
        del os.environ["SECRET"]
    said = programs.told.read_text()
    assert said.startswith("/\n")
    assert "SECRET" not in said
    assert "PATH=/usr/local/sbin:" in said
    # 0, 1, 2 and the folder that ls reads.
    assert said.split()[-1] == "4"


def test_doctor_says_that_it_answers_and_what_is_missing(programs: Programs) -> None:
    grades = [finding.grade for finding in programs.store().inspect()]
    assert grades == [Grade.OK, Grade.WARN], "it does not say where the state lies"
    programs.answers({**ANSWER, "places": [["/dev/x", 0, 512]]})
    assert [finding.grade for finding in programs.store().inspect()] == [Grade.OK]
    (programs.folder / "set-state").unlink()
    assert "set-state" in error_of(lambda: list(programs.store().inspect())).message


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense", "exec sleep 100"])
def test_a_program_that_fails_keeps_the_service_from_nothing_but_the_state(programs: Programs, script: str, tmp_path: Path) -> None:
    programs.write("get-state", f"echo >>{tmp_path}/asked; {script}")
    store = programs.store(0.5)
    assert store.traits.max_tries >= 3
    assert store.tears == store.irreplaceable == ""
    assert (tmp_path / "asked").read_text() == "\n", "asked once"
    for call in (store.read, store.places):
        error_of(call, AbupdateError)
    programs.answers({**ANSWER, "tears": "one copy"})
    assert store.read().order == ("A",)
    assert store.tears == "one copy"


# -- the example


class Example:
    """The example over a file."""

    def __init__(self, folder: Path, medium: bytes) -> None:
        self.medium = folder / "medium"
        self.store = CustomStore(install(folder, medium), SLOTS)


FACTORY = sector(7, b"\x00\xff", (10, 0), 255, ours=0).ljust(MEDIUM_BYTES, b"\0")


def test_the_example_goes_over_the_other_copy_each_time(tmp_path: Path) -> None:
    example = Example(tmp_path, FACTORY)
    assert example.store.read().fresh
    for number, state in enumerate((CALM, ARMED, CALM), 1):
        before = example.medium.read_bytes()
        example.store.commit(state)
        assert example.store.read() == state
        found = current(example.medium.read_bytes())
        assert found is not None
        assert found[0] == number % 2
        kept = OFFSETS[1 - found[0]]
        assert example.medium.read_bytes()[kept : kept + 512] == before[kept : kept + 512]
    example.store.commit(CALM)
    assert current(example.medium.read_bytes()) == found, "the same again writes nothing"


def test_a_cut_at_any_byte_of_the_examples_write_leaves_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    example = Example(tmp_path, FACTORY)
    example.store.commit(CALM)
    old = example.medium.read_bytes()
    example.store.commit(ARMED)
    new = example.medium.read_bytes()
    was, now = current(old), current(new)
    assert was is not None
    assert now is not None
    for cut in range(MEDIUM_BYTES + 1):
        found = current(new[:cut] + old[cut:])
        assert found in (was, now)
    for cut in (0, 1, 8, 300, 508, 511, 512):
        example.medium.write_bytes(new[: OFFSETS[now[0]] + cut] + old[OFFSETS[now[0]] + cut :])
        assert example.store.read() == (ARMED if cut == 512 else CALM)


def test_the_example_knows_damage_refuses_to_commit_over_it_and_rebuilds(tmp_path: Path) -> None:
    example = Example(tmp_path, bytes(MEDIUM_BYTES))
    error_of(example.store.read, StoreUnreadable)
    assert "no copy is valid" in error_of(lambda: example.store.commit(CALM), Failed).message
    example.store.check_room(CALM)
    assert example.medium.read_bytes() == bytes(MEDIUM_BYTES)
    example.store.rebuild(CALM)
    assert example.store.read() == CALM


def test_the_example_wraps_its_sequence(tmp_path: Path) -> None:
    last = sector(2**32 - 1, b"\x00\xff", (10, 0), 255)
    example = Example(tmp_path, last.ljust(MEDIUM_BYTES, b"\0"))
    example.store.commit(ARMED)
    assert example.store.read() == ARMED


def test_the_example_says_what_is_wrong_with_its_medium(tmp_path: Path) -> None:
    example = Example(tmp_path, bytes(100))
    assert "too few" in error_of(example.store.read, Failed).message
    example.medium.unlink()
    assert "No such file" in error_of(example.store.read, Failed).message


def test_the_example_refuses_what_has_no_room(tmp_path: Path) -> None:
    example = Example(tmp_path, FACTORY)
    big = BootState(("A",), {"A": 1, "B": 0}, verity={"A": "5a" * 64})
    assert "more than 32 bytes" in error_of(lambda: example.store.check_room(big)).message
    many = BootState(("A",), {"A": 1, "B": 0}, policy=TrialPolicy(3, 10, 70000))
    assert "has no room" in error_of(lambda: example.store.commit(many)).message
    assert example.medium.read_bytes() == FACTORY


def test_the_example_refuses_an_action_that_it_does_not_know(tmp_path: Path) -> None:
    example = Example(tmp_path, FACTORY)
    told = json.loads(encode_request("commit", CALM, ("A", "B")))
    told["action"] = "probe"
    done = subprocess.run([tmp_path / "boot/set-state"], input=json.dumps(told), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "action probe is not known here\n")
    assert example.medium.read_bytes() == FACTORY
