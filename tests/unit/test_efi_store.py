"""Boot state in EFI variables: the order of the writes, what each cut leaves, entries by hand, what doctor says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from abupdate import bootwiring
from abupdate.bootloaders.efi import MARKER_GUID, MARKER_NAME, EfiStore
from abupdate.bootloaders.efientries import SlotFiles
from abupdate.bootloaders.efistate import placed
from abupdate.bootloaders.efivars import GLOBAL_GUID, Variable
from abupdate.config import Settings, compose
from abupdate.errors import ConfigError, Failed, StoreUnreadable
from abupdate.formats import efiboot
from abupdate.formats.efiboot import ACTIVE, LoadOption, Partition
from abupdate.model import BootState, Finding, Grade, TrialPolicy
from tests.sim.efi import FILES, MENU, PARTITION, VENDOR, EfiPlace, Flash, store_over

OUT = BootState(("A",), {"A": 1, "B": 0})
ARMED = BootState(("B", "A"), {"A": 1, "B": 1}, "B", TrialPolicy(1, 0, 20), 7, verity={"B": "ab" * 32})
CONFIRMED = BootState(("B", "A"), {"A": 1, "B": 1}, floor=8, verity={"B": "ab" * 32})
A, B = 1, 2


@pytest.fixture
def flash() -> Flash:
    """A board after `doctor --fix`: A in BootOrder between others' entries."""
    running = EfiPlace("efi").blank().thaw()
    assert isinstance(running, Flash)
    return running


@pytest.fixture
def store(flash: Flash) -> EfiStore:
    return store_over(flash)


def order(flash: Flash) -> tuple[int, ...]:
    found = flash.read("BootOrder")
    assert found is not None
    return efiboot.decode_order(found.data) or ()


def option(flash: Flash, number: int) -> LoadOption:
    found = flash.read(efiboot.option_name(number))
    decoded = efiboot.decode_option(found.data) if found is not None else None
    assert decoded is not None
    return decoded


def put(flash: Flash, number: int, entry: LoadOption) -> None:
    flash.write(efiboot.option_name(number), efiboot.encode_option(entry))


def shown(state: BootState) -> tuple[object, ...]:
    return state.order, dict(state.left), state.trial, dict(state.verity)


def runs(flash: Flash, number: int) -> None:
    """The firmware starts an entry; BootNext is consumed."""
    flash.delete("BootNext")
    flash.write("BootCurrent", efiboot.encode_order([number]), attributes=6)


def writes(flash: Flash, store: EfiStore, state: BootState) -> tuple[list[str], list[BootState]]:
    """Steps of a commit in their order, and what `read` shows before each."""
    steps: list[str] = []
    seen: list[BootState] = []

    def before(step: str, inside: bool) -> None:
        steps.append(step)
        seen.append(store_over(Flash(dict(flash.variables), False)).read())

    flash.listen(before)
    store.commit(state)
    flash.listen(lambda step, inside: None)
    return steps, seen


def test_taking_out_is_one_change_of_the_order_and_the_marker(flash: Flash, store: EfiStore) -> None:
    flash.write("BootOrder", efiboot.encode_order([MENU, A, B, VENDOR]))
    steps, seen = writes(flash, store, OUT)
    assert steps == ["write BootOrder", f"write {MARKER_NAME}"]
    assert [state.order for state in seen] == [("A", "B"), ("A",)]
    assert order(flash) == (MENU, A, VENDOR)
    assert shown(store.read()) == shown(OUT)


def test_arming_names_the_slot_nowhere_before_its_entry_is_right(flash: Flash, store: EfiStore) -> None:
    store.commit(OUT)
    steps, seen = writes(flash, store, ARMED)
    assert steps == ["write Boot0002", "write BootNext", f"write {MARKER_NAME}"]
    # From BootNext on it is armed, and before it nothing is.
    assert [(state.trial, state.order) for state in seen] == [(None, ("A",)), (None, ("A",)), ("B", ("B", "A"))]
    assert shown(store.read()) == shown(ARMED)
    assert order(flash) == (MENU, A, VENDOR)
    words = efiboot.decode_cmdline(option(flash, B).data).split()
    assert words[0] == "root=PARTLABEL=rootfs_b"
    assert words[1] == "initrd=\\abu\\B\\initrd.img"
    assert words[2:] == [
        *("abupdate.slot=B", "panic=10", "abupdate.verity=" + "ab" * 32),
        *("abupdate.trial=1", "abupdate.boot_timeout=20", "watchdog.open_timeout=20"),
    ]


def test_confirming_cleans_the_entry_before_the_order_and_the_floor_rises_last(flash: Flash, store: EfiStore) -> None:
    store.commit(OUT)
    store.commit(ARMED)
    runs(flash, B)
    assert store.read().left == {"A": 1, "B": 0}
    steps, seen = writes(flash, store, CONFIRMED)
    assert steps == ["write Boot0002", "write BootOrder", f"write {MARKER_NAME}"]
    assert [(state.trial, state.floor) for state in seen] == [("B", 7), ("B", 7), (None, 7)]
    assert order(flash) == (MENU, B, A, VENDOR)
    assert "abupdate.trial" not in efiboot.decode_cmdline(option(flash, B).data)
    assert store.read().floor == 8


def test_a_trial_whose_marker_was_cut_off_is_seen_and_confirmed_all_the_same(flash: Flash, store: EfiStore) -> None:
    store.commit(OUT)
    before = dict(flash.variables)
    store.commit(ARMED)
    flash.variables[MARKER_NAME, MARKER_GUID] = before[MARKER_NAME, MARKER_GUID]
    assert store.read().trial == "B"
    runs(flash, B)
    assert shown(store.read()) == (("B", "A"), {"A": 1, "B": 0}, "B", {"B": "ab" * 32})
    steps, seen = writes(flash, store, CONFIRMED)
    # The marker first: with the entry clean nothing else would hold the trial.
    assert steps == [f"write {MARKER_NAME}", "write Boot0002", "write BootOrder", f"write {MARKER_NAME}"]
    assert [state.trial for state in seen] == ["B", "B", "B", None]


def test_reverting_on_trial_leaves_nothing_of_it(flash: Flash, store: EfiStore) -> None:
    store.commit(OUT)
    store.commit(ARMED)
    runs(flash, B)
    steps, seen = writes(flash, store, OUT)
    assert steps == [f"write {MARKER_NAME}", "write Boot0002"]
    assert [state.trial for state in seen] == ["B", "B"]
    assert shown(store.read()) == shown(OUT)


def test_cancelling_before_the_reboot_takes_bootnext_away(flash: Flash, store: EfiStore) -> None:
    store.commit(OUT)
    store.commit(ARMED)
    steps, seen = writes(flash, store, OUT)
    assert steps == [f"write {MARKER_NAME}", "delete BootNext", "write Boot0002"]
    assert [state.trial for state in seen] == ["B", "B", None]
    assert flash.read("BootNext") is None


def test_a_stale_marker_means_nothing_and_does_no_harm(flash: Flash, store: EfiStore) -> None:
    """Cut between BootOrder and marker of a confirmation; then the other slot is made first."""
    store.commit(OUT)
    store.commit(ARMED)
    runs(flash, B)
    marked = flash.variables[MARKER_NAME, MARKER_GUID]
    store.commit(CONFIRMED)
    flash.variables[MARKER_NAME, MARKER_GUID] = marked
    assert store.read().trial is None
    switched = replace(CONFIRMED, order=("A", "B"))
    steps, seen = writes(flash, store, switched)
    assert steps == [f"write {MARKER_NAME}", "write BootOrder"]
    assert all(state.trial is None for state in seen)
    assert shown(store.read()) == shown(switched)


@pytest.mark.parametrize("state", [OUT, ARMED])
def test_what_is_there_is_not_written_again(flash: Flash, store: EfiStore, state: BootState) -> None:
    store.commit(OUT)
    store.commit(state)
    assert writes(flash, store, state)[0] == []


def test_others_bootnext_stays_while_nothing_is_armed(flash: Flash, store: EfiStore) -> None:
    flash.write("BootNext", efiboot.encode_order([VENDOR]))
    store.commit(OUT)
    assert flash.read("BootNext") is not None
    store.commit(ARMED)
    assert store.read().trial == "B"


def test_entries_that_are_gone_are_made_anew_with_numbers_that_nobody_has(flash: Flash, store: EfiStore) -> None:
    flash.delete(efiboot.option_name(B))
    flash.write("BootOrder", efiboot.encode_order([MENU, A, VENDOR, B, 3]))
    # Of another kind, and not readable: not ours to write over.
    flash.write(efiboot.option_name(4), b"\0")
    store.commit(OUT)
    store.commit(ARMED)
    assert store.read().trial == "B"
    found = flash.read("BootNext")
    assert found is not None
    assert efiboot.decode_order(found.data) == (5,)


@pytest.mark.parametrize(
    "broken",
    [
        LoadOption(0, "abupdate B", b"", b""),
        LoadOption(ACTIVE, "abupdate B", efiboot.file_on(Partition(2, 9, 9, bytes(16)), "abu/B/vmlinuz"), b""),
        LoadOption(ACTIVE, "abupdate B", efiboot.file_on(PARTITION, "abu/A/vmlinuz"), b"\xff"),
        LoadOption(ACTIVE | 8, "abupdate B", b"\xff" * 30, efiboot.encode_cmdline("root=C")),
    ],
)
def test_an_entry_that_is_not_what_it_must_be_is_written_anew_before_it_boots(flash: Flash, store: EfiStore, broken: LoadOption) -> None:
    put(flash, B, broken)
    store.commit(OUT)
    store.commit(ARMED)
    found = option(flash, B)
    assert efiboot.place_of(found.path) == (PARTITION, "/abu/B/vmlinuz")
    assert found.active
    assert "root=PARTLABEL=rootfs_b" in efiboot.decode_cmdline(found.data)


def test_what_the_firmware_puts_before_the_partition_stays(flash: Flash, store: EfiStore) -> None:
    """Some firmware turns short device paths into full ones; that is the same place, and an entry need not be written for it."""
    found = option(flash, B)
    long = b"\x02\x01\x0c\x00\xd0\x41\x03\x0a\0\0\0\0" + found.path
    put(flash, B, replace(found, path=long))
    store.commit(OUT)
    store.commit(ARMED)
    assert option(flash, B).path == long
    assert not [repair for repair in store.repairs() if "'abupdate B'" in repair.text]


def test_an_esp_that_is_not_mounted_keeps_no_trial_from_being_ended(flash: Flash) -> None:
    def absent() -> Partition:
        raise ConfigError("nothing is mounted at /efi", "mount it")

    store_over(flash).commit(OUT)
    store_over(flash).commit(ARMED)
    runs(flash, B)
    path = option(flash, B).path
    store = EfiStore(FILES, esp=Path("/efi"), variables=flash, partition=absent, proc_cmdline=Path("/nowhere"))
    store.commit(CONFIRMED)
    assert shown(store.read()) == shown(CONFIRMED)
    assert option(flash, B).path == path
    # Without an entry there is nothing to make one from: nothing changes then.
    flash.delete(efiboot.option_name(A))
    before = dict(flash.variables)
    with pytest.raises(ConfigError, match="nothing is mounted") as caught:
        store.commit(replace(OUT, order=("A",)))
    assert caught.value.hint
    assert flash.variables == before


def test_an_esp_that_is_not_mounted_is_flashed_nowhere(flash: Flash) -> None:
    """The folders below its mount point would take the kernel, and firmware would load the old one."""

    def absent() -> Partition:
        raise ConfigError("nothing is mounted at /efi", "mount it")

    for state in (OUT, ARMED, OUT):
        store_over(flash).commit(state)
    with pytest.raises(ConfigError, match="nothing is mounted"):
        EfiStore(FILES, esp=Path("/efi"), variables=flash, partition=absent, proc_cmdline=Path("/nowhere")).check_room(ARMED)


class Full(Flash):
    """Firmware without room for Boot####, from some moment on."""

    full = False

    def write(self, name: str, data: bytes, guid: str = GLOBAL_GUID, attributes: int = 7) -> None:
        if self.full and efiboot.option_number(name) is not None:
            raise ConfigError("no space left", "efibootmgr -v")
        super().write(name, data, guid, attributes)


def test_a_full_store_of_variables_keeps_no_trial_from_being_reverted() -> None:
    base = EfiPlace("efi").blank().thaw()
    assert isinstance(base, Flash)
    flash = Full(base.variables, False)
    store = store_over(flash)
    store.commit(OUT)
    store.commit(ARMED)
    runs(flash, B)
    flash.full = True
    store.commit(OUT)
    assert shown(store.read()) == shown(OUT)
    assert flash.read(efiboot.option_name(B)) is None


def test_a_slot_with_two_entries_is_one_slot(flash: Flash, store: EfiStore) -> None:
    put(flash, 9, option(flash, A))
    flash.write("BootOrder", efiboot.encode_order([9, MENU, A, VENDOR]))
    assert store.read().order == ("A",)
    store.commit(OUT)
    store.commit(ARMED)
    runs(flash, B)
    store.commit(replace(CONFIRMED, order=("B",), left={"B": 1, "A": 0}))
    assert order(flash) == (B, MENU, VENDOR)


def test_an_entry_that_comes_in_meanwhile_is_kept(flash: Flash, store: EfiStore) -> None:
    store.commit(OUT)
    store.commit(ARMED)
    runs(flash, B)

    def somebody(step: str, inside: bool) -> None:
        if step == "write Boot0002":
            flash.variables["BootOrder", GLOBAL_GUID] = Variable(7, efiboot.encode_order([MENU, A, VENDOR, 0x33]))

    flash.listen(somebody)
    store.commit(CONFIRMED)
    assert order(flash) == (MENU, B, A, VENDOR, 0x33)


def test_the_order_of_others_is_theirs() -> None:
    ours = frozenset({1, 2})
    assert placed((0, 1, 7, 2, 9), ours, (2, 1)) == (0, 2, 7, 1, 9)
    assert placed((0, 1, 7, 2, 9), ours, (2,)) == (0, 2, 7, 9)
    assert placed((0, 2, 7), ours, (1, 2)) == (0, 1, 2, 7)
    assert placed((0, 7), ours, (1, 2)) == (1, 2, 0, 7)
    assert placed((), ours, (1,)) == (1,)
    assert placed((2, 0, 1), ours, ()) == (0,)


@pytest.mark.parametrize(
    "state",
    [
        BootState((), {"A": 0, "B": 0}),
        BootState(("A", "C"), {"A": 1, "C": 1}),
        BootState(("A",), {"A": 1, "X": 0}),
        BootState(("A",), {"A": 3, "B": 0}),
        replace(ARMED, trial="C"),
        replace(ARMED, verity={"B": "ü" * 64}),
        replace(ARMED, verity={"B": "a" * 3000}),
    ],
)
def test_a_state_that_efi_cannot_hold_changes_nothing(flash: Flash, store: EfiStore, state: BootState) -> None:
    before = dict(flash.variables)
    for call in (store.check_room, store.commit):
        with pytest.raises(ConfigError) as caught:
            call(state)
        assert caught.value.exit_code == 2
        assert caught.value.hint
        assert "\n" not in caught.value.message
    assert flash.variables == before


def test_a_firmware_that_tells_its_room_is_asked_before_anything_is_written() -> None:
    class Small(Flash):
        def free_bytes(self) -> int | None:
            return 900

    base = EfiPlace("efi").blank().thaw()
    assert isinstance(base, Flash)
    with pytest.raises(ConfigError, match="900 bytes left"):
        store_over(Small(base.variables, False)).check_room(ARMED)
    store_over(base).check_room(ARMED)


@pytest.mark.parametrize("data", [b"\x01", b"\x01\x00\x02", bytes(2050)])
def test_a_bootorder_that_is_no_list_is_unreadable_and_written_anew_by_rebuild(flash: Flash, store: EfiStore, data: bytes) -> None:
    flash.write("BootOrder", data)
    with pytest.raises(StoreUnreadable) as caught:
        store.read()
    assert caught.value.hint
    with pytest.raises(StoreUnreadable):
        store.commit(OUT)
    store.rebuild(OUT)
    assert shown(store.read()) == shown(OUT)
    assert order(flash) == (A,)


def test_without_bootorder_nothing_of_ours_boots_and_doctor_says_so(flash: Flash, store: EfiStore) -> None:
    flash.delete("BootOrder")
    assert store.read().order == ()
    assert store.read().fresh
    assert "BootOrder names no slot of ours" in {finding.text for finding in store.inspect()}


def test_bytes_in_every_variable_are_survived(flash: Flash, store: EfiStore) -> None:
    for junk in (b"\0", b"\xff" * 7, bytes(600)):
        for name in ("BootNext", "BootCurrent", "Boot0001", "Boot0002"):
            flash.write(name, junk)
        flash.write(MARKER_NAME, junk, MARKER_GUID)
        store.read()
        list(store.inspect())


@pytest.mark.parametrize("said", ["trial=B", "trial=C good=A", "good=A,B,C spent=B", "floor=99999999999999999999 good=A"])
def test_a_marker_by_hand_names_only_configured_slots(flash: Flash, store: EfiStore, said: str) -> None:
    flash.write(MARKER_NAME, said.encode(), MARKER_GUID)
    found = store.read()
    assert set(found.order) <= {"A", "B"}
    assert found.floor is None
    assert found.order[-1] == "A" or found.left["B"] == 0


def test_words_of_a_newer_version_stay_in_the_marker(flash: Flash, store: EfiStore) -> None:
    flash.write(MARKER_NAME, b"good=A colour=blue", MARKER_GUID)
    store.commit(OUT)
    store.commit(ARMED)
    found = flash.read(MARKER_NAME, MARKER_GUID)
    assert found is not None
    assert b"colour=blue" in found.data


def test_an_entry_that_the_firmware_adds_behind_the_slot_is_not_called_good(flash: Flash, store: EfiStore) -> None:
    store.commit(OUT)
    flash.write("BootOrder", efiboot.encode_order([MENU, A, VENDOR, B]))
    assert shown(store.read()) == shown(OUT)
    assert any("nothing says that it is good" in finding.text for finding in store.inspect())


def test_a_trial_that_the_firmware_puts_first_is_still_one(flash: Flash, store: EfiStore) -> None:
    store.commit(OUT)
    store.commit(ARMED)
    runs(flash, B)
    flash.write("BootOrder", efiboot.encode_order([B, A]))
    # Its entry still has the trial's arguments: nobody has confirmed it, whoever runs.
    for number in (B, A):
        runs(flash, number)
        assert shown(store.read())[:3] == (("B", "A"), {"A": 1, "B": 1}, "B")


def test_files_outside_the_esp_are_refused() -> None:
    with pytest.raises(ConfigError, match="does not lie on the EFI system partition") as caught:
        EfiStore({"A": SlotFiles(Path("/boot/vmlinuz"))}, esp=Path("/efi"))
    assert "/efi/abu/" in caught.value.hint


# ---- doctor


def findings(store: EfiStore) -> dict[str, Finding]:
    return {finding.text: finding for finding in store.inspect()}


def test_doctor_has_nothing_to_say_of_a_board_that_is_as_it_should_be(flash: Flash, tmp_path: Path) -> None:
    runs(flash, A)
    files = {slot: SlotFiles(tmp_path / slot / "vmlinuz", tmp_path / slot / "initrd.img", files.arguments) for slot, files in FILES.items()}
    cmdline = tmp_path / "cmdline"
    cmdline.write_text("ro abupdate.slot=A")
    for slot in "AB":
        (tmp_path / slot).mkdir()
        files[slot].program.write_bytes(b"x")
    store = EfiStore(files, esp=tmp_path, variables=flash, partition=lambda: PARTITION, proc_cmdline=cmdline)
    for repair in store.repairs():
        repair.run()
    assert store.repairs() == ()
    said = findings(store)
    assert list(said) == [f"slot A may boot and has no {tmp_path}/A/initrd.img", "BootOrder has slots A"]
    (tmp_path / "A/initrd.img").write_bytes(b"x")
    assert {finding.grade for finding in store.inspect()} == {Grade.OK}
    cmdline.write_text("ro")
    assert any("was not told what Boot0001 says" in text for text in findings(store))
    runs(flash, VENDOR)
    assert any("started by Boot0007 (Vendor recovery), no slot's entry" in text for text in findings(store))
    flash.write("BootOrder", efiboot.encode_order([VENDOR, A]))
    assert any("stands before the slots" in text for text in findings(store))
    flash.write("SecureBoot", b"\1")
    unified = {slot: SlotFiles(tmp_path / slot / "linux.efi", unified=True) for slot in "AB"}
    store = EfiStore(unified, esp=tmp_path, variables=flash, partition=lambda: PARTITION, proc_cmdline=cmdline)
    assert any("Secure Boot" in text for text in findings(store))


def test_doctor_says_what_differs(flash: Flash, store: EfiStore) -> None:
    good = option(flash, B)
    for broken, words in (
        (replace(good, attributes=0), "not active"),
        (replace(good, path=efiboot.file_on(PARTITION, "EFI/x.efi")), "it loads /EFI/x.efi of partition 1"),
        (replace(good, path=b"\x7f\xff\x04\x00"), "something that is no file on a partition instead of"),
        (replace(good, data=efiboot.encode_cmdline("quiet")), "its arguments are 'quiet'"),
    ):
        put(flash, B, broken)
        assert any("'abupdate B' is not what the configuration says" in text and words in text for text in findings(store))
        (repair,) = (repair for repair in store.repairs() if "'abupdate B'" in repair.text)
        repair.run()
        assert option(flash, B) == good


def test_doctor_leaves_the_entry_of_a_trial_alone(flash: Flash, store: EfiStore) -> None:
    store.commit(OUT)
    store.commit(ARMED)
    assert store.repairs() == ()
    assert not any("not what the configuration says" in text for text in findings(store))


def test_a_bootorder_that_is_gone_is_mended_without_confirming_anything(flash: Flash, store: EfiStore) -> None:
    store.commit(OUT)
    store.commit(ARMED)
    runs(flash, B)
    flash.delete("BootOrder")
    (repair,) = store.repairs()
    assert repair.text == "put 'abupdate A' first in BootOrder"
    repair.run()
    assert shown(store.read()) == shown(replace(ARMED, left={"A": 1, "B": 0}))
    store.commit(CONFIRMED)
    flash.delete("BootOrder")
    # Both are good: the first, as nothing tells which runs.
    (repair,) = store.repairs()
    repair.run()
    assert store.read().order == ("A",)


def test_two_entries_of_one_name_are_named(flash: Flash, store: EfiStore) -> None:
    put(flash, 9, option(flash, B))
    assert any("Boot0002, Boot0009 are all called 'abupdate B'" in text for text in findings(store))


def test_without_variables_doctor_says_that_and_repairs_nothing(tmp_path: Path) -> None:
    from abupdate.bootloaders.efivars import EfiVars

    store = EfiStore(FILES, esp=Path("/efi"), variables=EfiVars(tmp_path), partition=lambda: PARTITION)
    (finding,) = store.inspect()
    assert (finding.grade, finding.topic) == (Grade.FAIL, "EFI variables")
    assert "mount -t efivarfs" in finding.hint
    assert store.repairs() == ()
    with pytest.raises(ConfigError):
        store.read()


def test_a_firmware_that_refuses_leaves_the_commit_where_it_was(flash: Flash) -> None:
    class Refusing(Flash):
        refused = "BootNext"

        def write(self, name: str, data: bytes, guid: str = GLOBAL_GUID, attributes: int = 7) -> None:
            if name == self.refused:
                raise Failed(f"cannot write EFI variable {name}", "the firmware refuses")
            super().write(name, data, guid, attributes)

    refusing = Refusing(flash.variables, False)
    store = store_over(refusing)
    store.commit(OUT)
    with pytest.raises(Failed):
        store.commit(ARMED)
    assert shown(store.read())[:3] == shown(OUT)[:3]


# ---- configuration

EXAMPLE = Path(__file__).resolve().parents[2] / "bootloader-hooks/efi/config.toml"


def settings(text: str) -> Settings:
    path = Path("/etc/abupdate/config.toml")
    return compose([(path, text.encode())], path)


def test_the_example_that_users_copy_is_a_whole_configuration() -> None:
    found, tears = bootwiring.bootloader(settings(EXAMPLE.read_text()))
    assert isinstance(found, EfiStore)
    assert (found.location, tears, found.places()) == ("efi:BootOrder", "", ())
    bootwiring.check_traits(settings(EXAMPLE.read_text()), found.traits)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("\ntries = 1", "\ntries = 3", "can count 1"),
        ("confirmed_tries = 0", "confirmed_tries = 10", "does not count"),
        (r"images\.kernel = .*", "", "either an image `kernel` or an image `uki`"),
        (r"images.initrd", "images.uki", "either an image `kernel` or an image `uki`"),
        ("/efi/abu/A/initrd.img", "/boot/initrd.img", "does not lie on the EFI system partition"),
        ('esp = "/efi"', 'esp = "/boot/efi"', "does not lie on the EFI system partition"),
    ],
)
def test_what_firmware_cannot_do_is_refused_with_a_hint(old: str, new: str, words: str) -> None:
    wrong = settings(re.sub(old, new, EXAMPLE.read_text()))
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        bootwiring.check_traits(wrong, bootwiring.bootloader(wrong)[0].traits)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_unified_images_need_no_initramfs() -> None:
    text = re.sub(r"(?m)^images\.initrd = .*\n", "", EXAMPLE.read_text()).replace("images.kernel", "images.uki")
    found, _ = bootwiring.bootloader(settings(text))
    assert isinstance(found, EfiStore)


def test_doctor_repairs_nothing_in_a_bootorder_that_is_no_list_so_that_it_can_be_rebuilt(flash: Flash, store: EfiStore) -> None:
    flash.write("BootOrder", b"\x01\x00\x02")
    assert store.repairs() == ()


def test_an_inactive_entry_in_the_bootorder_is_no_second_way_to_a_trial(flash: Flash, store: EfiStore) -> None:
    store.commit(OUT)
    put(flash, B, replace(option(flash, B), attributes=0))
    flash.write("BootOrder", efiboot.encode_order([A, B, VENDOR]))
    store.commit(ARMED)
    assert option(flash, B).active
    assert order(flash) == (A, VENDOR)


def test_a_good_slot_whose_entry_is_deleted_during_a_trial_is_still_the_way_back(flash: Flash, store: EfiStore) -> None:
    store.commit(OUT)
    store.commit(ARMED)
    runs(flash, B)
    flash.delete("Boot0001")
    assert shown(store.read()) == shown(replace(ARMED, left={"A": 1, "B": 0}))
    store.commit(BootState(("A",), {"A": 1, "B": 0}))
    assert shown(store.read()) == shown(OUT)
    assert store.repairs() == ()


def test_doctor_puts_a_good_slot_that_runs_and_whose_entry_was_deleted_back_into_its_place(flash: Flash, tmp_path: Path) -> None:
    said = tmp_path / "cmdline"
    said.write_text("ro abupdate.slot=B\n")
    store = EfiStore(FILES, esp=Path("/efi"), variables=flash, partition=lambda: PARTITION, proc_cmdline=said)
    store.commit(OUT)
    store.commit(ARMED)
    runs(flash, B)
    store.commit(CONFIRMED)
    flash.delete("Boot0002")
    assert store.read().order == ("A",)
    for repair in store.repairs():
        repair.run()
    assert store.read().order == ("B", "A")
    assert store.repairs() == ()
