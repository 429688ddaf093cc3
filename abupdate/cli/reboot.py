"""An ordered reboot, as the verbs order it."""

from __future__ import annotations

from contextlib import suppress

from abupdate.config import Settings
from abupdate.errors import AbupdateError


def go_down(settings: Settings) -> None:
    """Order the reboot, with a limit on how long the shutdown may take. Raises Failed where nobody takes the order."""
    from abupdate.devices import power
    from abupdate.devices.watchdog import Watchdog, limit_shutdown

    # So that a shutdown that hangs ends too. Who holds the device (the service, systemd) sees to that itself.
    with suppress(AbupdateError):
        limit_shutdown(Watchdog(settings.watchdog.device), settings.trial.boot_timeout_s)
    power.reboot()
