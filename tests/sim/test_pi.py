"""The Raspberry Pi: the firmware's model against the codec, and cuts on the way to a trial and in it."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from abupdate import machine
from abupdate.errors import ConfigError
from abupdate.formats import autoboot
from abupdate.model import Phase, Situation
from tests.sim.device import V2, Device, durable, new_device, power_up, reboot
from tests.sim.explore import survivors
from tests.sim.filesystem import Files, Tree
from tests.sim.parts import Part, outcomes
from tests.sim.pi import AUTOBOOT, PI, chosen_partition

LINES = ("[all]", "[none]", "[tryboot]", "boot_partition=2", "boot_partition=3", "tryboot_a_b=1", "# x", "", "x=1", "# boot_partition=3")


@pytest.fixture
def armed(tmp_path: Path) -> Device:
    """V2 waits on B for a reboot."""
    device = new_device(tmp_path, PI)
    device.service()
    device.flash(V2)
    return device


def test_codec_and_model_of_the_firmware_read_the_same() -> None:
    """Written apart from each other; 4000 random files of the lines that matter."""
    chance = Random(6)
    for _ in range(4000):
        data = "\n".join(chance.choices(LINES, k=chance.randrange(9))).encode()
        for flag in (False, True):
            said = autoboot.parse(data).partition(tryboot=flag)
            assert chosen_partition(data, flag, (9, 2, 3)) == (9 if said is None else said), (data, flag)


def cold(device: Device, parts: tuple[Part, ...]) -> Device:
    """The power was cut."""
    return power_up(parts, device.store, device.folder)


def test_a_power_cut_while_armed_costs_nothing_but_the_parameter(armed: Device) -> None:
    for parts in survivors(armed.machine.parts, 1, 64, 64):
        device = cold(armed, parts)
        assert device.boot.slot == "A"
        assert machine.situation(device.facts()) is Situation.ARMED
        without_service = reboot(cold(armed, parts))
        assert without_service.boot.slot == "A", "nobody has asked again"
        device.service()
        device = reboot(device)
        assert device.boot.slot == "B"
        device.service()
        assert machine.situation(device.facts()) is Situation.ON_TRIAL


@pytest.mark.parametrize("started", [True, False])
def test_a_power_cut_on_trial_ends_it_and_never_starts_a_second_one(armed: Device, started: bool) -> None:
    device = reboot(armed)
    assert device.boot.slot == "B"
    if started:
        device.service()
    assert "/run/reboot-param" not in seen(device), "the trial asks for nothing"
    device = cold(device, durable(device.machine.parts))
    assert device.boot.slot == "A"
    device.service()
    record = device.facts().record
    assert record is not None
    assert record.attempt is not None
    assert (record.attempt.phase, record.attempt.reason) == (Phase.REVERTED, "tries exhausted")
    assert reboot(device).boot.slot == "A"


def seen(device: Device) -> dict[str, bytes]:
    part = device.machine.part("env")
    assert isinstance(part, Files)
    return part.seen


def test_a_cut_in_the_note_on_the_way_down_leaves_an_armed_trial_or_a_tried_one(armed: Device) -> None:
    before = armed.machine.part("env")
    found = set()
    running = before.thaw()
    moments: list[Part] = []
    running.listen(lambda step, inside: moments.append(running.freeze()))
    assert isinstance(running, Tree)
    PI.bootloader(running, Path()).depart()
    moments.append(running.freeze())
    assert len(moments) > 3
    for moment in moments:
        for picks in outcomes(list(moment.choices), 1, 64, 64):
            left = moment.after(iter(picks))
            device = cold(armed, (left, *durable(armed.machine.parts)[1:]))
            assert device.boot.slot == "A"
            where = machine.situation(device.facts())
            found.add(where)
            device.service()
            assert reboot(device).boot.slot == ("B" if where is Situation.ARMED else "A")
    assert found == {Situation.ARMED, Situation.FELL_BACK}


def test_a_reboot_by_a_program_that_drops_the_parameter_leaves_the_trial_armed(armed: Device) -> None:
    env, *rest = durable(armed.machine.parts)
    assert isinstance(env, Files)
    kept = {name: data for name, data in env.content.items() if name != "/run/reboot-param"}
    device = cold(armed, (Files.with_files(kept, env.folders), *rest))
    assert device.boot.slot == "A"
    device.service()
    assert machine.situation(device.facts()) is Situation.ARMED
    assert reboot(device).boot.slot == "B"


def test_the_factorys_short_file_grows_without_ever_naming_another_partition(tmp_path: Path) -> None:
    """Whatever a cut leaves of the first commit, which brings the file to its 512 bytes."""
    device = new_device(tmp_path, PI)
    device.service()
    factory = seen(device)[AUTOBOOT]
    assert len(factory) < 512
    part = device.machine.part("env")
    moments: list[Part] = []
    running = part.thaw()
    running.listen(lambda step, inside: moments.append(running.freeze()))
    store = PI.bootloader(running, tmp_path)
    store.commit(store.read())
    moments.append(running.freeze())
    lengths = set()
    for moment in moments:
        for picks in outcomes(list(moment.choices), 1, 256, 256):
            left = moment.after(iter(picks))
            assert isinstance(left, Files)
            lengths.add(len(left.content[AUTOBOOT]))
            assert chosen_partition(left.content[AUTOBOOT], False, (9, 2, 3)) == 2
            state = PI.state(left)
            assert state is not None
            assert (state.order, state.trial) == (("A",), None)
    assert {len(factory), 512} <= lengths


def test_a_file_that_names_another_partition_is_never_written_over(armed: Device) -> None:
    env, *_ = durable(armed.machine.parts)
    assert isinstance(env, Files)
    other = Files.with_files({**env.content, AUTOBOOT: b"boot_partition=7\n"}, env.folders).thaw()
    store = PI.bootloader(other, Path())
    for call in (store.read, store.depart, store.rearm):
        with pytest.raises(ConfigError):
            call()
    frozen = other.freeze()
    assert isinstance(frozen, Files)
    assert frozen.content[AUTOBOOT] == b"boot_partition=7\n"
