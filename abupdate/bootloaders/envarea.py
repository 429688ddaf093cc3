"""The place on which a copy of U-Boot's environment lies: regular file, block device, or raw flash behind /dev/mtdN.

An area is opened for each access and closed again; nothing is held between two calls. A place that is missing, too short or not
allowed is a ConfigError that names it; a medium that fails is Failed.
"""

from __future__ import annotations

import stat
from pathlib import Path

from abupdate.bootloaders.envfile import FileArea
from abupdate.bootloaders.envflash import Ioctl, flash_area, system_ioctl
from abupdate.bootloaders.envio import Area, unusable
from abupdate.errors import ConfigError
from abupdate.formats.fwenvconfig import EnvLocation


def open_area(location: EnvLocation, run_ioctl: Ioctl = system_ioctl, sys_block: Path = Path("/sys/class/block")) -> Area:
    """The area for what the device turns out to be. Raises ConfigError for what cannot hold an environment."""
    if ":" in location.device or Path(location.device).name.startswith("ubi"):
        raise ConfigError(f"{location.device}: UBI volumes are not supported as U-Boot environment", "use a partition, or the MTD device")
    try:
        mode = Path(location.device).stat().st_mode
    except OSError as error:
        raise unusable(location, error) from None
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return FileArea(location, sys_block)
    if stat.S_ISCHR(mode):
        return flash_area(location, run_ioctl)
    raise ConfigError(f"{location.device}: neither file, block device nor flash", "see the first field in fw_env.config")
