"""Firmware that boots the slots itself, for real: OVMF, EFI-stub kernels and a unified kernel image, abupdate's adapter on efivarfs."""

from __future__ import annotations

import re

import pytest

from tests.qemu.efi_bench import Bench, Machine, Power

# On a busy host a boot takes twenty seconds. What every run boots is a whole device: test_x86_device.py.
pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT_HASH = "5a" * 32
TAKE_OUT = "store().commit(BootState(('A',), {'A': 1, 'B': 0}))"
ARM = f"store().commit(BootState(('B', 'A'), {{'A': 1, 'B': 1}}, 'B', TrialPolicy(1, 0, 20), 7, verity={{'B': '{ROOT_HASH}'}}))"
MODEL = "from abupdate.model import BootState, TrialPolicy\n"
STATE = "s = store().read(); result = [list(s.order), dict(s.left), s.trial, s.floor, dict(s.verity)]"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("efi"))


def order(power: Power) -> tuple[list[str], dict[str, str]]:
    """BootOrder as names of its entries, and all entries, as efibootmgr tells them."""
    said = power.do("result = sh('efibootmgr')")
    names = dict(re.findall(r"^Boot([0-9A-F]{4})\*? (.*?)\s*$", said, re.M))
    found = re.search(r"^BootOrder: (\S+)", said, re.M)
    assert found
    return [names[number] for number in found[1].split(",")], names


def set_up(power: Power) -> None:
    """From the firmware's own entry to slot A, by what `doctor --fix` does."""
    args = power.booted()
    assert "installer" in args
    findings = power.do("result = [f.grade.value + ' ' + f.text for f in store().inspect()]")
    assert "fail there is no entry 'abupdate A'" in findings
    power.do("for repair in store().repairs(): repair.run()")
    assert power.do("result = [repair.text for repair in store().repairs()]") == []
    args = power.reboot()
    assert (args["abupdate.slot"], args["root"], args["panic"]) == ("A", "A", "10")
    assert "abupdate.trial" not in args


@pytest.fixture(scope="module")
def ready(bench: Bench) -> Machine:
    """A machine whose entries `doctor --fix` has written and whose slot A has booted once; then it was switched off."""
    machine = bench.machine("ready")
    with machine.power() as power:
        set_up(power)
        assert power.do("result = [f.grade.value for f in store().inspect()]") == ["ok"]
    return machine


@pytest.fixture
def machine(ready: Machine, request: pytest.FixtureRequest) -> Machine:
    return ready.copy(request.node.name)


def test_a_trial_is_one_boot(machine: Machine) -> None:
    with machine.power() as power:
        power.booted()
        firmware = [name for name in order(power)[0] if not name.startswith("abupdate ")]
        assert len(firmware) >= 3
        power.do(MODEL + TAKE_OUT + "\n" + ARM)
        assert power.do(STATE) == [["B", "A"], {"A": 1, "B": 1}, "B", 7, {"B": ROOT_HASH}]
        # Not in BootOrder while nobody has confirmed it; the firmware's own entries where they were.
        assert order(power)[0] == ["abupdate A", *firmware]
        args = power.reboot()
        assert (args["abupdate.slot"], args["abupdate.trial"], args["abupdate.boot_timeout"]) == ("B", "1", "20")
        assert (args["watchdog.open_timeout"], args["abupdate.verity"], args["panic"]) == ("20", ROOT_HASH, "10")
        assert power.do(STATE) == [["B", "A"], {"A": 1, "B": 0}, "B", 7, {"B": ROOT_HASH}]
        # Nobody confirms: the one try is used up, whatever comes.
        args = power.reboot()
        assert (args["abupdate.slot"], "abupdate.trial" in args) == ("A", False)
        assert power.do(STATE) == [["B", "A"], {"A": 1, "B": 0}, "B", 7, {"B": ROOT_HASH}]
        power.do(MODEL + TAKE_OUT)
        assert power.do(STATE) == [["A"], {"A": 1, "B": 0}, None, 7, {}]
        # The kernel guards our marker from `rm`, and not from us.
        guarded = "p = next(Path('/sys/firmware/efi/efivars').glob('AbupdateState-*'))\ntry:\n    p.unlink()\nexcept OSError as e:\n    "
        assert power.do(guarded + "result = e.errno") == 1


def test_a_confirmation_stays_through_reboots_and_power_cuts(machine: Machine) -> None:
    with machine.power() as power:
        power.booted()
        firmware = [name for name in order(power)[0] if not name.startswith("abupdate ")]
        power.do(MODEL + TAKE_OUT + "\n" + ARM)
        assert power.reboot()["abupdate.slot"] == "B"
        power.do(MODEL + f"store().commit(BootState(('B', 'A'), {{'A': 1, 'B': 1}}, floor=8, verity={{'B': '{ROOT_HASH}'}}))")
        assert order(power)[0] == ["abupdate B", "abupdate A", *firmware]
        assert power.reboot()["abupdate.slot"] == "B"
    with machine.power() as power:
        args = power.booted()
        assert (args["abupdate.slot"], args["abupdate.verity"], "abupdate.trial" in args) == ("B", ROOT_HASH, False)
        assert power.do(STATE) == [["B", "A"], {"A": 1, "B": 1}, None, 8, {"B": ROOT_HASH}]
        assert order(power)[0] == ["abupdate B", "abupdate A", *firmware]


def test_a_kernel_that_does_not_load_ends_on_the_other_slot_in_the_same_boot(machine: Machine) -> None:
    with machine.power() as power:
        power.booted()
        power.do(MODEL + TAKE_OUT + "\n" + ARM)
    machine.esp("mdel", "::abu/B/vmlinuz")
    with machine.power() as power:
        assert power.booted()["abupdate.slot"] == "A"
        assert power.console.count("BdsDxe: starting") == 1
        assert power.do(STATE)[:3] == [["B", "A"], {"A": 1, "B": 0}, "B"]
        findings = power.do("result = [f.grade.value + ' ' + f.text for f in store().inspect()]")
        assert any(text.startswith("fail slot B may boot and has no ") for text in findings)
    # A kernel that is there and damaged.
    machine.esp("mcopy", machine.disk.with_name("vars.fd"), "::abu/B/vmlinuz")
    with machine.power() as power:
        power.booted()
        power.do(MODEL + TAKE_OUT + "\n" + ARM)
    with machine.power() as power:
        assert power.booted()["abupdate.slot"] == "A"
        assert power.do(STATE)[:3] == [["B", "A"], {"A": 1, "B": 0}, "B"]


def test_a_trial_that_panics_ends_on_the_good_slot_without_help(machine: Machine) -> None:
    with machine.power() as power:
        power.booted()
        power.do(MODEL + TAKE_OUT + "\n" + ARM)
        # As the kernel of a bad release would: its own arguments hold what makes the guest panic; panic=10 reboots it.
        panicking = "from abupdate.formats import efiboot\nfrom abupdate.bootloaders.efivars import EfiVars\nv = EfiVars()\n"
        panicking += "s = store(); f = s._load(); n = f.numbers('B')[0]; o = f.options[n]\nfrom dataclasses import replace\n"
        panicking += "text = efiboot.decode_cmdline(o.data) + ' fault=panic'\n"
        panicking += "v.write(efiboot.option_name(n), efiboot.encode_option(replace(o, data=efiboot.encode_cmdline(text))))"
        power.do(panicking)
        args = power.reboot()
        assert args["abupdate.slot"] == "A"
        assert "Kernel panic" in power.console
        assert power.do(STATE)[:3] == [["B", "A"], {"A": 1, "B": 0}, "B"]


def test_entries_that_the_firmware_or_somebody_lost_are_made_anew_and_boot(machine: Machine) -> None:
    with machine.power() as power:
        power.booted()
        _, names = order(power)
        power.do("".join(f"sh('efibootmgr', '-B', '-b', '{number}')\n" for number, name in names.items() if name == "abupdate B"))
        assert "abupdate B" not in order(power)[1].values()
        power.do(MODEL + TAKE_OUT + "\n" + ARM)
        args = power.reboot()
        assert (args["abupdate.slot"], args["abupdate.trial"]) == ("B", "1")
        # Confirmed, and then the good slot's own entry goes as well.
        power.do(MODEL + "store().commit(BootState(('B', 'A'), {'A': 1, 'B': 1}))")
        _, names = order(power)
        power.do("".join(f"sh('efibootmgr', '-B', '-b', '{number}')\n" for number, name in names.items() if name.startswith("abupdate ")))
        assert power.do(STATE)[0] == []
        assert len(power.do("result = [r.text for r in store().repairs()]")) == 3
        power.do("for repair in store().repairs(): repair.run()")
        assert order(power)[0][0] == "abupdate B"
        assert power.reboot()["abupdate.slot"] == "B"


def test_variables_that_cannot_be_written_change_nothing_and_are_explained(machine: Machine) -> None:
    with machine.power() as power:
        power.booted()
        power.do("libc.mount(b'efivarfs', b'/sys/firmware/efi/efivars', b'efivarfs', 32 | 1, None)")
        said = "try:\n    {}\n    result = None\nexcept Exception as e:\n    result = [type(e).__name__, e.exit_code, e.message, e.hint]"
        kind, code, message, hint = power.do(MODEL + said.format(ARM))
        assert (kind, code) == ("ConfigError", 2)
        assert "read-only" in message
        assert "remount,rw" in hint
        assert power.do(STATE)[:3] == [["A"], {"A": 1, "B": 0}, None]
        assert "mounted read-only" in power.do("result = [f.text for f in store().inspect()]")[0]
        power.do("libc.umount2(b'/sys/firmware/efi/efivars', 0)")
        kind, code, message, hint = power.do(said.format("store().read()"))
        assert (kind, code) == ("ConfigError", 2)
        assert "mount -t efivarfs" in hint


def test_unified_kernel_images(bench: Bench) -> None:
    machine = bench.machine("unified", unified=True)
    with machine.power() as power:
        set_up(power)
        power.do(MODEL + TAKE_OUT + "\n" + ARM)
        args = power.reboot()
        assert (args["abupdate.slot"], args["abupdate.trial"], args["root"]) == ("B", "1", "B")
        assert "initrd" not in args
        assert power.reboot()["abupdate.slot"] == "A"
