"""Two releases on one device: this tree's agent on slot A, an earlier release's on slot B, the same data partition and boot store."""

from __future__ import annotations

import pytest

from qemu.device import Device
from tests.qemu.guest import confirm, flash, settled_environment

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.timeout(900)]


def is_old(device: Device) -> bool:
    """Whether the agent that runs is the earlier one, which knows no verb `keyring`."""
    code = device.run("abupdate keyring show").exit_code
    assert code in (0, 2)
    return code == 2


def kept(device: Device) -> None:
    """Confirm; returns when the trial's service has handed the watchdog over to the one that stays."""
    confirm(device)
    device.wait(r"abupdate\[service\]: ended with status 0", 60)
    device.wait(r"abupdate\[service\]: .*watchdog is open", 60)
    settled_environment(device)


def test_an_older_agent_confirms_flashes_and_is_come_back_to(device: Device) -> None:
    assert not is_old(device)
    flash(device, "old-release")
    up = device.reboot()
    assert (up.slot, up.version) == ("B", "2.0.0")
    assert is_old(device)
    assert device.status()["trial"]["slot"] == "B"
    kept(device)

    # The old one flashes, the new one runs on trial and turns back.
    flash(device, "v3")
    up = device.reboot()
    assert (up.slot, up.version) == ("A", "3.0.0")
    assert not is_old(device)
    status = device.status()
    assert (status["record"], status["trial"]["slot"], status["floor"], status["slots"]["B"]["version"]) == ("whole", "A", 20, "2.0.0")
    device.check("abupdate revert")
    assert device.reboot().slot == "B"
    settled_environment(device)
    status = device.status()
    assert (status["record"], status["attempt"]["phase"], status["slots"]["A"]["state"]) == ("whole", "reverted", "bad")

    # And once more to the end.
    flash(device, "v3")
    assert device.reboot().slot == "A"
    kept(device)
    status = device.status()
    assert (status["floor"], status["slots"]["A"]["state"], status["slots"]["B"]["state"]) == (30, "confirmed", "confirmed")
    assert device.run("abupdate flash /bundles/v2.abu").exit_code == 3, "below the floor"
    assert device.watchdog_resets == 0
