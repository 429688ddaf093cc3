"""Boards with Mender's, SWUpdate's or RAUC's boot script: each variable as fw_printenv and fw_setenv see it, bad input, doctor's words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abupdate import bootwiring, machine
from abupdate.bootloaders.bootcounting import limit
from abupdate.bootloaders.menderenv import Mender
from abupdate.bootloaders.swupdateenv import SWUpdate
from abupdate.bootloaders.uboot import UBootStore
from abupdate.bootloaders.ubootdialect import Dialect, Native
from abupdate.bootwiring import check_traits, uboot_dialect
from abupdate.config import compose
from abupdate.errors import AbupdateError, ConfigError
from abupdate.formats.ubootenv import Environment
from abupdate.model import (
    Attempt,
    BootState,
    CommitBoot,
    Facts,
    Grade,
    Phase,
    Record,
    SaveRecord,
    Situation,
    SlotRecord,
    SlotState,
    TrialPolicy,
)
from tests.contract.ubootdialects import OnMender, OnSWUpdate, Rauc

SLOTS = ("A", "B")
POLICY = TrialPolicy(3, 0, 120)
MENDER = Mender(SLOTS, {"A": 9, "B": 10})
SWUPDATE = SWUpdate(SLOTS, "rootfs", {"A": "first", "B": "second"})
RAUC = Native(SLOTS, rauc=True)
ARMED = BootState(("B", "A"), {"A": 1, "B": 3}, "B", POLICY)


def env(**values: str) -> Environment:
    return Environment(tuple(f"{name}={value}".encode() for name, value in values.items()))


def store_of(subject: OnMender | OnSWUpdate | Rauc) -> UBootStore:
    made = subject.store()
    assert isinstance(made, UBootStore)
    return made


def refused(error: pytest.ExceptionInfo[ConfigError]) -> str:
    assert error.value.exit_code == 2
    assert error.value.hint
    assert "\n" not in error.value.line
    return error.value.message


# ---- Mender


def test_arming_sets_part_in_both_notations_counter_and_flag_in_one_commit(tmp_path: Path) -> None:
    subject = OnMender(tmp_path)
    before = [(tmp_path / f"env{index}").read_bytes() for index in (0, 1)]
    store_of(subject).commit(ARMED)
    after = [(tmp_path / f"env{index}").read_bytes() for index in (0, 1)]
    assert [old == new for old, new in zip(before, after, strict=True)].count(False) == 1
    values = subject.values()
    assert (values["mender_boot_part"], values["mender_boot_part_hex"]) == ("10", "a")
    assert (values["upgrade_available"], values["bootcount"], values["bootlimit"]) == ("1", "0", "3")
    assert (values["BOOT_ORDER"], values["BOOT_TRIES"], values["BOOT_TIMEOUT"]) == ("B A", "3", "78")
    assert store_of(subject).read() == ARMED


def test_fewer_tries_than_bootlimit_begin_further_up(tmp_path: Path) -> None:
    subject = OnMender(tmp_path)
    store_of(subject).commit(replace(ARMED, left={"A": 1, "B": 1}, policy=TrialPolicy(1, 0, 120)))
    assert (subject.values()["bootcount"], subject.values()["bootlimit"]) == ("2", "3")
    assert store_of(subject).read().left == {"A": 1, "B": 1}


def test_what_altbootcmd_leaves_is_one_good_slot_and_no_trial(tmp_path: Path) -> None:
    subject = OnMender(tmp_path)
    store_of(subject).commit(ARMED)
    subject.set(bootcount="4")
    assert store_of(subject).read().left["B"] == 0
    subject.set(mender_boot_part="9", mender_boot_part_hex="9", upgrade_available="0")
    found = store_of(subject).read()
    assert (found.order, found.trial, found.left, found.fresh) == (("A",), None, {"A": 1, "B": 0}, False)


def fallback(boot: BootState, reset: str) -> Facts:
    attempt = Attempt("B", Phase.ARMED, "boot-1", "22", "2", 2, previous="A")
    slots = {"A": SlotRecord(SlotState.CONFIRMED), "B": SlotRecord(SlotState.TRIAL, "2", "22", 2)}
    return Facts(SLOTS, "A", "boot-2", boot, "env", Record(0, slots, attempt), POLICY, reset=reset)


@pytest.mark.parametrize(
    ("reset", "reason"),
    [("", "unknown: the bootloader went back, or a cut came before the reason"), ("watchdog", "watchdog: the bootloader went back")],
)
def test_a_fallback_that_the_store_does_not_show_is_in_the_record_with_no_more_than_is_known(reset: str, reason: str) -> None:
    stored = MENDER.changed(env(mender_boot_part="9", bootlimit="3"), ARMED)
    gone_back = stored.changed({"mender_boot_part": b"9", "mender_boot_part_hex": b"9", "upgrade_available": b"0"})
    facts = fallback(MENDER.state_of(gone_back), reset)
    assert machine.situation(facts) is Situation.STEADY
    (step,) = machine.settle(facts)
    assert isinstance(step, SaveRecord)
    record = step.record
    assert record.attempt is not None
    assert (record.attempt.phase, record.attempt.reason) == (Phase.REVERTED, reason)
    assert record.slots["B"].state is SlotState.BAD


def test_a_mender_board_that_abupdate_never_wrote_to_is_fresh_and_one_in_the_middle_of_menders_own_update_is_on_trial() -> None:
    assert MENDER.state_of(env(mender_boot_part="10", upgrade_available="0")) == BootState(
        ("B",), {"A": 0, "B": 1}, policy=TrialPolicy(1, 0, 120), fresh=True
    )
    found = MENDER.state_of(env(mender_boot_part="10", upgrade_available="1", bootcount="0", bootlimit="1"))
    assert (found.order, found.left, found.trial, found.fresh) == (("B", "A"), {"A": 1, "B": 1}, "B", False)


def test_note_of_good_slots_is_believed_only_where_the_script_boots_its_first() -> None:
    both = {"BOOT_ORDER": "B A", "upgrade_available": "0"}
    assert MENDER.state_of(env(mender_boot_part="10", **both)).order == ("B", "A")
    assert MENDER.state_of(env(mender_boot_part="9", **both)).order == ("A",)


@pytest.mark.parametrize("canary", [{}, {"mender_saveenv_canary": "0"}])
def test_missing_canary_refuses_every_write_and_changes_nothing(tmp_path: Path, canary: dict[str, str]) -> None:
    subject = OnMender(tmp_path)
    subject.set(**{"mender_saveenv_canary": "", **canary})
    before = [(tmp_path / f"env{index}").read_bytes() for index in (0, 1)]
    for call in (store_of(subject).commit, store_of(subject).check_room):
        with pytest.raises(ConfigError, match="mender_saveenv_canary") as error:
            call(ARMED)
        refused(error)
    assert [(tmp_path / f"env{index}").read_bytes() for index in (0, 1)] == before
    assert any(found.grade is Grade.FAIL and "canary" in found.text for found in store_of(subject).inspect())


def test_without_the_question_there_is_no_canary_to_miss(tmp_path: Path) -> None:
    subject = OnMender(tmp_path)
    subject.set(mender_check_saveenv_canary="", mender_saveenv_canary="")
    store_of(subject).commit(ARMED)
    assert store_of(subject).read() == ARMED


@pytest.mark.parametrize("part", ["7", "x", "0x9", "09", "-9", "99999999999999999999", "9 ", "A"])
def test_part_that_is_no_slots_is_refused(tmp_path: Path, part: str) -> None:
    subject = OnMender(tmp_path)
    subject.set(mender_boot_part=part)
    for call in (store_of(subject).read, lambda: store_of(subject).commit(ARMED), lambda: store_of(subject).check_room(ARMED)):
        with pytest.raises(ConfigError) as error:
            call()
        assert "mender_boot_part" in refused(error)
    assert subject.values()["mender_boot_part"] == part.strip() or subject.values()["mender_boot_part"] == part


def test_environment_of_another_sort_of_board_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for subject, name in ((OnMender(tmp_path / "m"), "mender_boot_part"), (OnSWUpdate(tmp_path / "s"), "rootfs")):
        subject.set(**{name: ""})
        assert store_of(subject).read().fresh
        with pytest.raises(ConfigError, match=name) as error:
            store_of(subject).check_room(ARMED)
        refused(error)
        assert next(found.grade for found in store_of(subject).inspect()) is Grade.FAIL


def test_parts_that_disagree_are_named_and_mended_by_the_next_commit(tmp_path: Path) -> None:
    subject = OnMender(tmp_path)
    subject.set(mender_boot_part="10", mender_boot_part_hex="10")
    assert any("of two slots may meet" in found.text for found in store_of(subject).inspect())
    store_of(subject).commit(BootState(("B",), {"A": 0, "B": 1}))
    assert subject.values()["mender_boot_part_hex"] == "a"
    assert not any("of two slots may meet" in found.text for found in store_of(subject).inspect())


# ---- the counter of both


def test_trial_has_as_many_boots_as_bootlimit_and_a_missing_one_is_written(tmp_path: Path) -> None:
    for subject in (OnMender(tmp_path / "m"), OnSWUpdate(tmp_path / "s")):
        assert store_of(subject).traits.max_tries == 3
        with pytest.raises(ConfigError, match="4 boots does not fit") as error:
            store_of(subject).check_room(replace(ARMED, left={"A": 1, "B": 4}))
        assert "bootlimit 4" in error.value.hint
        subject.set(bootlimit="")
        assert store_of(subject).traits.max_tries == 1
        store_of(subject).commit(replace(ARMED, left={"A": 1, "B": 1}))
        assert (subject.values()["bootlimit"], subject.values()["bootcount"]) == ("1", "0")


def test_u_boots_counter_is_decimal_and_a_confirmation_sets_it_back(tmp_path: Path) -> None:
    for subject in (OnMender(tmp_path / "m"), OnSWUpdate(tmp_path / "s")):
        subject.set(bootlimit="12")
        assert store_of(subject).traits.max_tries == 12
        store_of(subject).commit(replace(ARMED, left={"A": 1, "B": 12}))
        subject.set(bootcount="10")
        assert store_of(subject).read().left["B"] == 2
        store_of(subject).commit(BootState(("B", "A"), {"A": 1, "B": 1}, policy=POLICY))
        assert (subject.values()["bootcount"], subject.values()["bootlimit"]) == ("0", "12")


@pytest.mark.parametrize("limit", ["0", "x", "-1"])
def test_trial_that_u_boot_would_never_leave_is_not_armed(tmp_path: Path, limit: str) -> None:
    subject = OnSWUpdate(tmp_path)
    subject.set(bootlimit=limit)
    with pytest.raises(ConfigError, match="never leave") as error:
        store_of(subject).commit(replace(ARMED, left={"A": 1, "B": 1}))
    refused(error)
    assert any(found.grade is Grade.FAIL and "never leave" in found.text for found in store_of(subject).inspect())


def test_trial_without_a_good_slot_behind_it_is_refused() -> None:
    for dialect, stored in ((MENDER, env(mender_boot_part="9")), (SWUPDATE, env(rootfs="first"))):
        for state in (BootState(("B",), {"B": 1}, "B"), BootState(("A", "B"), {"A": 1, "B": 1}, "B")):
            with pytest.raises(ConfigError, match="dark"):
                dialect.changed(stored, state)
        with pytest.raises(ConfigError, match="verity"):
            dialect.changed(stored, replace(ARMED, left={"A": 1, "B": 1}, verity={"B": "ab" * 32}))


def test_slot_behind_without_boots_stays_one() -> None:
    state = BootState(("A", "B"), {"A": 1, "B": 0}, policy=TrialPolicy(3, 0, 60), floor=7)
    for dialect, stored in ((MENDER, env(mender_boot_part="10")), (SWUPDATE, env(rootfs="second"))):
        assert dialect.state_of(dialect.changed(stored, state)) == state


def test_floor_that_leaves_no_room_for_a_trial_is_left_out(tmp_path: Path) -> None:
    subject = OnMender(tmp_path)
    store = store_of(subject)
    state = BootState(("A",), {"A": 1, "B": 0}, policy=POLICY, floor=1 << 62)
    store.commit(state)
    assert store.read().floor == 1 << 62
    store.commit(replace(state, floor=None))
    room = 0x4000 - 5 - sum(len(f"{name}={value}") + 1 for name, value in subject.values().items()) - 1
    # libubootenv takes no more than 1 KiB of one value.
    whole, rest = divmod(room - 10, 900)
    subject.set(**{f"fill{number:02}": "x" * (900 - len("fill00=") - 1) for number in range(whole)})
    subject.set(fill="x" * (rest - len("fill=") - 1))
    subject.set(BOOT_FLOOR="")
    store.commit(state)
    assert store.read() == replace(state, floor=None)
    store.commit(replace(ARMED, policy=None))
    assert store.read().trial == "B"


@pytest.mark.parametrize("slot", SLOTS)
def test_room_that_is_kept_for_a_trial_is_that_of_the_longer_slot(slot: str) -> None:
    other = "B" if slot == "A" else "A"
    trial = BootState((slot, other), {slot: 3, other: 0xFF}, slot, POLICY, floor=5)
    swupdate = SWUpdate(SLOTS, "rootfs", {"A": "the first of them", "B": "second"})
    for dialect, stored in (
        (MENDER, env(mender_boot_part="9", bootlimit="3")),
        (swupdate, env(rootfs="second", bootlimit="3")),
    ):
        most = dialect.changed(stored, dialect.largest(stored, replace(trial, trial=None)))
        assert sum(map(len, most.entries)) >= sum(map(len, dialect.changed(stored, trial).entries))


# ---- SWUpdate


def test_swupdate_arms_with_ustate_1_and_confirms_with_0(tmp_path: Path) -> None:
    subject = OnSWUpdate(tmp_path)
    store_of(subject).commit(ARMED)
    values = subject.values()
    assert (values["rootfs"], values["ustate"], values["upgrade_available"], values["bootcount"]) == ("second", "1", "1", "0")
    store_of(subject).commit(BootState(("B", "A"), {"A": 1, "B": 1}, policy=POLICY))
    values = subject.values()
    assert (values["rootfs"], values["ustate"], values["upgrade_available"], values["bootcount"]) == ("second", "0", "0", "0")


def test_ustate_3_after_our_trial_is_its_fallback_and_is_cleared(tmp_path: Path) -> None:
    subject = OnSWUpdate(tmp_path)
    store_of(subject).commit(ARMED)
    subject.set(rootfs="first", ustate="3", bootcount="0", upgrade_available="0")
    found = store_of(subject).read()
    assert (found.order, found.left, found.trial) == (("A",), {"A": 1, "B": 0}, "B")
    facts = replace(fallback(found, ""), record=None)
    assert machine.situation(facts) is Situation.FELL_BACK
    steps = machine.settle(facts)
    assert steps[0].record.attempt.reason == "tries exhausted"  # type: ignore[union-attr]
    store_of(subject).commit(steps[-1].state)  # type: ignore[union-attr]
    assert subject.values()["ustate"] == "0"
    assert store_of(subject).read().order == ("A",)


@pytest.mark.parametrize("ustate", ["3", "0", "4", "5", "7", "x", ""])
def test_any_other_ustate_is_no_trial(ustate: str) -> None:
    assert SWUPDATE.state_of(env(rootfs="second", ustate=ustate)).trial is None
    found = SWUPDATE.state_of(env(rootfs="second", ustate=ustate, BOOT_ORDER="B A"))
    assert (found.order, found.trial) == (("B", "A"), None)


def test_copy_that_swupdate_is_testing_is_on_trial() -> None:
    found = SWUPDATE.state_of(env(rootfs="second", ustate="2", bootlimit="3", upgrade_available="1", bootcount="1"))
    assert (found.order, found.trial, found.left["B"]) == (("B", "A"), "B", 2)


def test_ustate_that_nobody_took_back_after_an_update_long_ago_is_no_trial() -> None:
    found = SWUPDATE.state_of(env(rootfs="second", ustate="1", bootlimit="3"))
    assert (found.order, found.trial, found.fresh) == (("B",), None, True)
    found = SWUPDATE.state_of(env(rootfs="second", ustate="1", bootlimit="3", upgrade_available="1", bootcount="1"))
    assert (found.order, found.trial, found.left["B"]) == (("B", "A"), "B", 2)
    # What abupdate armed stays a trial, whatever becomes of U-Boot's own flag.
    assert SWUPDATE.state_of(env(rootfs="second", ustate="1", bootlimit="3", BOOT_ORDER="B A")).trial == "B"


def test_copy_that_is_no_slots_is_refused(tmp_path: Path) -> None:
    subject = OnSWUpdate(tmp_path)
    subject.set(rootfs="third")
    with pytest.raises(ConfigError, match="third") as error:
        store_of(subject).read()
    refused(error)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("", {"A": "1", "B": "2"}),
        ("copy", {"A": "1"}),
        ("ustate", {"A": "1", "B": "2"}),
        ("BOOT_ORDER", {"A": "1", "B": "2"}),
        ("a=b", {"A": "1", "B": "2"}),
        ("copy", {"A": "1", "B": "2\n"}),
        ("copy", {"A": "", "B": "2"}),
        ("bootcmd", {"A": "1", "B": "2"}),
    ],
)
def test_copy_variable_that_makes_no_sense_is_refused(name: str, values: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as error:
        SWUpdate(SLOTS, name, values)
    refused(error)


# ---- RAUC


def test_rauc_scripts_own_numbers_hold_until_abupdate_has_written_its_own(tmp_path: Path) -> None:
    store = store_of(Rauc(tmp_path))
    assert store.read() == BootState(SLOTS, {"A": 3, "B": 3}, policy=TrialPolicy(3, 3, 120), fresh=True)


def test_counters_that_raucs_script_reads_as_none_are_never_written(tmp_path: Path) -> None:
    subject = Rauc(tmp_path)
    with pytest.raises(ConfigError, match="counts to 9 boots, not 10") as error:
        store_of(subject).commit(BootState(SLOTS, {"A": 10, "B": 3}))
    refused(error)
    assert store_of(subject).traits.max_tries == store_of(subject).traits.max_confirmed == 9
    subject.set(BOOT_A_LEFT="a")
    assert any("BOOT_A_LEFT is 'a'" in found.text for found in store_of(subject).inspect())
    with pytest.raises(ConfigError, match="root hash"):
        store_of(subject).commit(BootState(SLOTS, {"A": 3, "B": 3}, verity={"A": "ab" * 32}))


@pytest.mark.parametrize(
    ("raw", "boots"), [("1", 1), ("9", 9), ("03", 3), ("3x", 3), ("0x3", 3), ("x", 0), ("a", 0), ("10", 0), ("08", 0), ("09", 0), ("ff", 0)]
)
def test_counter_that_raucs_script_takes_for_another_number_is_none(tmp_path: Path, raw: str, boots: int) -> None:
    """`test` of U-Boot 2023.01 says that a, 08, 09 and ff are not above 0; after one boot 10 is f, which is not either."""
    subject = Rauc(tmp_path)
    subject.set(BOOT_ORDER="A B", BOOT_A_LEFT=raw, BOOT_B_LEFT="3")
    assert store_of(subject).read().left == {"A": boots, "B": 3}
    said = [found.text for found in store_of(subject).inspect() if "may take for 0" in found.text]
    assert len(said) == (raw not in ("1", "9", "03"))


@pytest.mark.parametrize("left", ["a", "08"])
def test_good_slot_behind_a_rauc_trial_has_boots_that_the_script_can_read(tmp_path: Path, left: str) -> None:
    """RAUC itself writes such a counter with boot-attempts=10; behind a trial that hangs the script would pass over the good slot."""
    subject = Rauc(tmp_path)
    subject.set(BOOT_ORDER="A B", BOOT_A_LEFT=left, BOOT_B_LEFT="3")
    policy = TrialPolicy(3, 9, 120)
    for request in (machine.Write("B", "22", "2", 2), machine.Activate("B", verified=True)):
        slots = {"B": SlotRecord(SlotState.WRITTEN, "2", "22", 2)}
        facts = Facts(SLOTS, "A", "boot", store_of(subject).read(), "env", Record(0, slots), policy)
        for step in machine.decide(facts, request):
            if isinstance(step, CommitBoot):
                store_of(subject).commit(step.state)
    assert (subject.values()["BOOT_A_LEFT"], subject.values()["BOOT_B_LEFT"]) == ("9", "3")


def test_rauc_board_that_ran_our_script_before_is_refilled_with_what_its_script_can_count(tmp_path: Path) -> None:
    subject = Rauc(tmp_path)
    subject.set(BOOT_ORDER="A B", BOOT_A_LEFT="2", BOOT_B_LEFT="3", BOOT_BUDGET="a", BOOT_TRIES="3", BOOT_TIMEOUT="78")
    facts = Facts(SLOTS, "A", "boot", store_of(subject).read(), "env", Record(store="env"), TrialPolicy(3, 9, 120))
    (step,) = machine.decide(facts, machine.Start())
    store_of(subject).commit(step.state)  # type: ignore[union-attr]
    assert subject.values()["BOOT_A_LEFT"] == "9"


def test_rescue_slot_in_raucs_order_stays_the_last_resort(tmp_path: Path) -> None:
    subject = Rauc(tmp_path)
    subject.set(BOOT_ORDER="R A B", BOOT_A_LEFT="3", BOOT_B_LEFT="3", BOOT_R_LEFT="3")
    store_of(subject).commit(BootState(("A",), {"A": 3, "B": 0}))
    assert subject.values()["BOOT_ORDER"] == "A R"
    store_of(subject).commit(BootState(("B", "A"), {"A": 3, "B": 3}, "B"))
    assert (subject.values()["BOOT_ORDER"], subject.values()["BOOT_R_LEFT"]) == ("B A R", "3")
    assert store_of(subject).read().order == ("B", "A")


def test_counter_that_is_missing_is_what_raucs_script_puts_there(tmp_path: Path) -> None:
    subject = Rauc(tmp_path)
    subject.set(BOOT_ORDER="A", BOOT_BUDGET="9", BOOT_TRIES="2")
    assert store_of(subject).read().left == {"A": 3, "B": 0}


def test_refill_on_a_rauc_board_never_goes_beyond_what_its_script_can_count(tmp_path: Path) -> None:
    subject = Rauc(tmp_path)
    subject.set(BOOT_ORDER="A B", BOOT_A_LEFT="2", BOOT_B_LEFT="3")
    policy = TrialPolicy(3, 9, 120)
    facts = Facts(SLOTS, "A", "boot", store_of(subject).read(), "env", Record(store="env"), policy)
    (step,) = machine.decide(facts, machine.Start())
    store_of(subject).commit(step.state)  # type: ignore[union-attr]
    assert subject.values()["BOOT_A_LEFT"] == "9"


def test_rauc_budget_of_nothing_is_named_and_the_floor_has_its_place(tmp_path: Path) -> None:
    subject = Rauc(tmp_path)
    state = BootState(SLOTS, {"A": 1, "B": 1}, policy=TrialPolicy(3, 0, 120), floor=1 << 40)
    store_of(subject).commit(state)
    assert store_of(subject).read() == state
    assert any("confirmed_tries = 0" in found.text for found in store_of(subject).inspect())


def test_missing_bootlimit_and_altbootcmd_are_named(tmp_path: Path) -> None:
    subject = OnSWUpdate(tmp_path)
    subject.set(bootlimit="")
    said = [found.text for found in store_of(subject).inspect()]
    assert any(text.startswith("bootlimit is not set") for text in said)
    assert any(text.startswith("there is no altbootcmd") for text in said)


# ---- configuration and doctor


CONFIG = """
compatible = "x"
[bootloader]
kind = "uboot"
{bootloader}
[trust]
keyring = "/etc/k"
[trial]
{trial}
[slots.A]
images.rootfs = "/dev/a"
[slots.B]
images.rootfs = "/dev/b"
"""


def configured(bootloader: str, trial: str = "") -> tuple[Dialect, AbupdateError | None]:
    settings = compose([(Path("/c"), CONFIG.replace("{bootloader}", bootloader).replace("{trial}", trial).encode())], Path("/c"))
    dialect = uboot_dialect(settings, tuple(settings.slots))
    try:
        check_traits(settings, dialect.traits(lambda: env(bootlimit="1")))
    except AbupdateError as error:
        return dialect, error
    return dialect, None


def test_dialects_come_from_the_configuration() -> None:
    assert configured("")[0] == Native(SLOTS)
    assert configured('dialect = "rauc"', "confirmed_tries = 9") == (RAUC, None)
    dialect, error = configured('dialect = "mender"\npartitions = { A = 2, B = 3 }', "tries = 1\nconfirmed_tries = 0")
    assert (dialect, error) == (Mender(SLOTS, {"A": 2, "B": 3}), None)
    dialect, error = configured(
        'dialect = "swupdate"\ncopy_var = "c"\ncopy_values = { A = "1", B = "2" }', "tries = 1\nconfirmed_tries = 0"
    )
    assert (dialect, error) == (SWUpdate(SLOTS, "c", {"A": "1", "B": "2"}), None)


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [({"rauc.slot": "A"}, True), ({"rauc.slot": "A", "abupdate.slot": "A"}, False), ({"abupdate.slot": "A"}, False)],
)
def test_our_counters_are_kept_from_raucs_script(monkeypatch: pytest.MonkeyPatch, arguments: dict[str, str], refusal: bool) -> None:
    monkeypatch.setattr(bootwiring, "kernel_argument", arguments.get)
    assert configured('dialect = "rauc"', "confirmed_tries = 9")[0] == RAUC
    if not refusal:
        assert configured("")[0] == Native(SLOTS)
        return
    with pytest.raises(ConfigError, match="RAUC's boot script") as error:
        configured("")
    refused(error)
    assert 'dialect = "rauc"' in error.value.hint


@pytest.mark.parametrize(
    ("bootloader", "trial", "word"),
    [
        ('dialect = "rauc"', "", "confirmed_tries = 10"),
        ('dialect = "mender"\npartitions = { A = 2, B = 3 }', "tries = 1", "confirmed_tries = 0"),
        ('dialect = "mender"\npartitions = { A = 2, B = 3 }', "confirmed_tries = 0", "tries = 3"),
    ],
)
def test_what_the_script_cannot_count_is_refused(bootloader: str, trial: str, word: str) -> None:
    _, error = configured(bootloader, trial)
    assert error is not None
    assert error.exit_code == 2
    assert word in error.line


@pytest.mark.parametrize("bootloader", ['dialect = "mender"', 'dialect = "swupdate"', 'dialect = "swupdate"\ncopy_var = "c"'])
def test_dialect_without_its_values_is_refused_with_the_line_to_add(bootloader: str) -> None:
    with pytest.raises(ConfigError, match=r"\[bootloader\] does not say") as error:
        configured(bootloader)
    assert refused(error)
    assert error.value.hint.startswith("add ")


def test_doctor_says_what_a_foreign_script_costs_and_which_line_to_add(tmp_path: Path) -> None:
    subject = OnMender(tmp_path)
    said = [finding for finding in store_of(subject).inspect() if finding.topic == "boot script"]
    assert [finding.grade for finding in said] == [Grade.WARN] * len(said)
    hints = " ".join(finding.hint for finding in said)
    for word in ("panic=10", "abupdate.slot=A", "abupdate.trial=1", "watchdog.open_timeout=120"):
        assert word in hints
    (tmp_path / "proc/cmdline").write_text("ro abupdate.slot=A panic=10\n")
    (tmp_path / "proc/sys/kernel/panic").write_text("10\n")
    subject.set(altbootcmd="run mender_altbootcmd")
    assert [finding for finding in store_of(subject).inspect() if finding.topic == "boot script"] == []
    (tmp_path / "proc/cmdline").write_text("ro rauc.slot=A panic=10\n")
    assert ["does not mark a trial" in finding.text for finding in store_of(subject).inspect() if finding.topic == "boot script"] == [True]


def test_store_without_a_valid_copy_asks_for_no_fewer_tries_and_can_be_written_anew(tmp_path: Path) -> None:
    for subject in (OnMender(tmp_path / "m"), OnSWUpdate(tmp_path / "s")):
        subject.spoil()
        assert store_of(subject).traits.max_tries >= 3
        state = BootState(("A",), {"A": 1, "B": 0}, policy=POLICY)
        store_of(subject).rebuild(state)
        assert (store_of(subject).read().order, store_of(subject).read().left) == (("A",), {"A": 1, "B": 0})
        # Without bootlimit the next verb would find that U-Boot counts fewer boots than [trial] tries.
        assert store_of(subject).traits.max_tries == 3


def test_trial_goes_on_in_a_store_that_is_written_anew(tmp_path: Path) -> None:
    for subject in (OnMender(tmp_path / "m"), OnSWUpdate(tmp_path / "s")):
        subject.spoil()
        store_of(subject).rebuild(BootState(("B", "A"), {"A": 1, "B": 1}, "B", POLICY))
        assert (subject.values()["bootlimit"], subject.values()["bootcount"]) == ("3", "2")
        assert store_of(subject).read().left == {"A": 1, "B": 1}


text = st.text("0123456789abAB x-", max_size=6)
names = ["mender_boot_part", "mender_boot_part_hex", "upgrade_available", "bootcount", "bootlimit", "BOOT_ORDER", "BOOT_A_LEFT", "ustate"]


@given(st.fixed_dictionaries({}, optional=dict.fromkeys([*names, "BOOT_TRIES", "BOOT_TIMEOUT", "BOOT_FLOOR"], text)), st.booleans())
def test_any_environment_is_read_or_refused_and_what_is_committed_is_read_back(values: dict[str, str], on_b: bool) -> None:
    for dialect, slot in ((MENDER, {"mender_boot_part": "10" if on_b else "9"}), (SWUPDATE, {"rootfs": "second" if on_b else "first"})):
        stored = env(**{**values, **slot})
        state = dialect.state_of(stored)
        assert state.order[0] == ("B" if on_b else "A")
        assert set(state.left) == set(SLOTS)
        good = BootState(("B", "A"), {"A": 1, "B": 1})
        found = dialect.state_of(dialect.changed(stored, good))
        assert (found.order, dict(found.left), found.trial) == (good.order, good.left, None)
        most = dialect.traits(lambda stored=stored: stored).max_tries  # type: ignore[misc]
        armed = BootState(("B", "A"), {"A": 1, "B": most}, "B")
        if stored.get("bootlimit") is not None and not limit(stored):
            with pytest.raises(ConfigError, match="never leave"):
                dialect.changed(stored, armed)
            continue
        found = dialect.state_of(dialect.changed(stored, armed))
        assert (found.order, dict(found.left), found.trial) == (armed.order, armed.left, "B")
