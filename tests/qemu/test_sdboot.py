"""The real systemd-boot under OVMF over entries that the production store wrote; each boot is also what the simulator's model says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from abupdate.bootloaders.systemdboot import SystemdBootStore
from abupdate.formats.bootentry import Entry, encode
from abupdate.formats.efiboot import decode_order, encode_order, option_name
from abupdate.model import BootState, TrialPolicy
from tests.qemu.sdboot_bench import Bench, Boot, Esp, get_variable, set_variable
from tests.sim import sdboot_model

pytestmark = pytest.mark.qemu

SLOTS = ("A", "B")
# The second part does not fit into the entry's first sector.
CMDLINE = {slot: f"console=ttyS0 quiet root=PARTLABEL=rootfs_{slot} " + " ".join(f"filler.n{n}=x" for n in range(60)) for slot in SLOTS}
POLICY = TrialPolicy(2, 0, 90)
GOOD_A = BootState(("A",), {"A": 1, "B": 0}, policy=POLICY)
ARMED_B = BootState(("B", "A"), {"A": 1, "B": 2}, trial="B", policy=POLICY, verity={"B": "5a" * 32})
CONFIRMED_B = BootState(("B", "A"), {"A": 1, "B": 1}, policy=POLICY, verity={"B": "5a" * 32})


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Esp:
    """One disk for all tests of this file."""
    return Bench(tmp_path_factory.mktemp("sdboot")).esp()


@pytest.fixture
def esp(disk: Esp) -> Esp:
    """Without entries, both kernels there."""
    disk.clear()
    for slot in set(SLOTS) - disk.kernels:
        disk.put_kernel(slot, disk.bench.kernel.read_bytes())
    return disk


def store_of(esp: Esp) -> SystemdBootStore:
    images = {slot: {"kernel": esp.folder / f"abu/{slot}/vmlinuz", "initrd": esp.folder / f"abu/{slot}/initrd"} for slot in SLOTS}
    return SystemdBootStore(esp.folder, SLOTS, images, CMDLINE)


def boot(esp: Esp, *, default: str = "slot-*", readonly: bool = False) -> Boot:
    """Start; what systemd-boot does must be what the model says."""
    before = esp.entries()
    said = sdboot_model.boot(before, {f"/abu/{slot}/vmlinuz" for slot in esp.kernels}, default)
    done = esp.boot(readonly=readonly)
    assert done.slot == said.slot, done.console
    assert (done.args.get("abupdate.trial") == "1") == said.trial
    assert said.file is not None
    assert said.renamed is not None
    name = said.file if readonly else said.renamed
    assert esp.entries() == {**{other: data for other, data in before.items() if other != said.file}, name: before[said.file]}
    return done


@pytest.mark.slow
def test_a_trial_is_counted_confirmed_and_stays(esp: Esp) -> None:
    store = store_of(esp)
    store.rebuild(GOOD_A)
    store.check_room(ARMED_B)
    store.commit(ARMED_B)
    first = boot(esp)
    assert first.args | {"initrd": ""} == {
        "initrd": "",
        "abupdate.slot": "B",
        "panic": "10",
        "abupdate.trial": "1",
        "abupdate.boot_timeout": "90",
        "watchdog.open_timeout": "90",
        "abupdate.verity": "5a" * 32,
        "console": "ttyS0",
        "quiet": "",
        "root": "PARTLABEL=rootfs_B",
        **{f"filler.n{n}": "x" for n in range(60)},
    }
    state = store_of(esp).read()
    assert (state.order, dict(state.left), state.trial) == (("B", "A"), {"A": 1, "B": 1}, "B")
    assert state.policy == POLICY
    store_of(esp).commit(CONFIRMED_B)
    assert sorted(esp.entries()) == ["slot-A.conf", "slot-B.conf"]
    for _ in range(2):
        done = boot(esp)
        assert done.slot == "B"
        assert "abupdate.trial" not in done.args


@pytest.mark.slow
def test_a_trial_that_nobody_confirms_ends_on_the_good_slot(esp: Esp) -> None:
    store = store_of(esp)
    store.rebuild(GOOD_A)
    store.commit(ARMED_B)
    assert [boot(esp).slot for _ in range(3)] == ["B", "B", "A"]
    state = store_of(esp).read()
    assert (state.order, dict(state.left), state.trial) == (("A", "B"), {"A": 1, "B": 0}, "B")
    store_of(esp).commit(GOOD_A)
    store_of(esp).commit(replace(ARMED_B, left={"A": 1, "B": 1}))
    assert [boot(esp).slot for _ in range(2)] == ["B", "A"]


def test_a_missing_kernel_means_the_other_slot_in_the_same_boot_and_costs_no_try(esp: Esp) -> None:
    store = store_of(esp)
    store.rebuild(GOOD_A)
    store.commit(ARMED_B)
    esp.put_kernel("B", None)
    assert boot(esp).slot == "A"
    assert store_of(esp).read().left["B"] == 2


@pytest.mark.slow
def test_switched_off_and_empty_entries_are_none(esp: Esp) -> None:
    store = store_of(esp)
    store.rebuild(GOOD_A)
    store.commit(ARMED_B)
    store.commit(GOOD_A)
    entries = esp.folder / "loader/entries"
    (entries / "slot-B+3.conf").write_bytes(b"")
    (entries / "slot-B+2-1.conf").write_bytes(encode(Entry("B", 1, False, "/abu/B/vmlinuz", cmdline=CMDLINE["B"])))
    assert boot(esp).slot == "A"


@pytest.mark.slow
def test_the_sort_key_beats_the_version(esp: Esp) -> None:
    entries = esp.folder / "loader/entries"
    for slot, key, version in (("A", 50, "9.9"), ("B", 49, "1.0")):
        entry = Entry(slot, key, True, f"/abu/{slot}/vmlinuz", f"/abu/{slot}/initrd", cmdline=CMDLINE[slot])
        (entries / f"slot-{slot}.conf").write_bytes(encode(entry) + f"version {version}\n".encode())
    assert boot(esp).slot == "B"


@pytest.mark.slow
def test_a_trial_is_not_counted_where_the_name_that_it_is_to_get_is_there_already(esp: Esp) -> None:
    store = store_of(esp)
    store.rebuild(GOOD_A)
    store.commit(replace(ARMED_B, left={"A": 1, "B": 1}))
    entries = esp.folder / "loader/entries"
    (entries / "slot-B+0-1.conf").write_bytes(b"")
    assert boot(esp).slot == "B"
    assert store_of(esp).read().left["B"] == 1, "what the names in one sector of the folder and the count in the record are for"


@pytest.mark.slow
def test_a_write_protected_esp_boots_a_trial_that_is_not_counted(esp: Esp) -> None:
    store = store_of(esp)
    store.rebuild(GOOD_A)
    store.commit(ARMED_B)
    assert [boot(esp, readonly=True).slot for _ in range(3)] == ["B", "B", "B"], "what `check_room` and the count in the record are for"


@pytest.mark.slow
def test_a_default_that_names_one_entry_boots_it_even_when_its_tries_are_used_up(esp: Esp) -> None:
    store = store_of(esp)
    store.rebuild(GOOD_A)
    store.commit(replace(ARMED_B, left={"A": 1, "B": 0}))
    (esp.folder / "loader/loader.conf").write_text("default slot-b+0.conf\ntimeout 0\n")
    assert boot(esp, default="slot-b+0.conf").slot == "B", "what `doctor` refuses"


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["vmlinuz", "initrd"])
def test_a_damaged_kernel_costs_the_tries_and_ends_on_the_good_slot_without_a_person(esp: Esp, damaged: str) -> None:
    """As often in BootOrder as `doctor --fix` puts it there: systemd-boot returns to the firmware each time."""
    store = store_of(esp)
    store.rebuild(GOOD_A)
    assert boot(esp).slot == "A"
    before = decode_order(get_variable(esp.variables, "BootOrder"))
    assert before is not None
    loader = next(number for number in before if b"M\0i\0s\0c\0" in get_variable(esp.variables, option_name(number)))
    rest = [number for number in before if number != loader]
    set_variable(esp.variables, "BootOrder", encode_order([loader] * (POLICY.tries + 1) + rest))
    store.commit(ARMED_B)
    good = esp.replaced("B", damaged, None if damaged == "initrd" else bytes(4096))
    try:
        done = esp.boot()
    finally:
        esp.replaced("B", damaged, good)
        set_variable(esp.variables, "BootOrder", encode_order(before))
    assert done.slot == "A", done.console
    assert store_of(esp).read().left["B"] == 0
    assert done.console.count("starting Boot") == POLICY.tries + 1
