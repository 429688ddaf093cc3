"""Whose boot script reads the environment, and what its variables mean: the part of UBootStore that differs between boards. Pure.

`Native` are RAUC's names with ours beside them (ubootvars.py), for our own boot script or RAUC's; Mender's and SWUpdate's lie in
menderenv.py and swupdateenv.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from abupdate.bootloaders import ubootvars
from abupdate.errors import ConfigError
from abupdate.formats.ubootenv import Environment
from abupdate.model import BootState, BootTraits, Finding, Grade, TrialPolicy

_LARGEST_POLICY = TrialPolicy(tries=0xFF, budget=0xFF, boot_timeout_s=0xFFFF)
_OURS = BootTraits(max_tries=99, counts_confirmed=True, falls_through=True, armed_in_store=True, keeps_verity=True)
# RAUC's script compares with `test`, which reads decimal digits, and counts with `setexpr`, which knows hexadecimal only: what begins
# with a letter is 0 to it. Beyond 9 the two do not mean the same.
_RAUC_MOST = 9
_RAUC = BootTraits(_RAUC_MOST, counts_confirmed=True, falls_through=False, armed_in_store=True, max_confirmed=_RAUC_MOST)
_RAUC_POLICY = TrialPolicy(tries=3, budget=3)


class Dialect(Protocol):
    """The meaning of an environment's variables."""

    @property
    def name(self) -> str:
        """As in [bootloader] dialect, empty for our own script."""

    def traits(self, stored: Callable[[], Environment | None]) -> BootTraits:
        """What this boot side can do. stored: reads the environment, None where none is valid."""

    def state_of(self, environment: Environment) -> BootState:
        """What the variables say. Raises ConfigError where they name what is not configured."""

    def changed(self, environment: Environment, state: BootState, *, anew: bool = False) -> Environment:
        """The environment with the whole state in it; a policy or floor that is None stays as the store has it.

        anew: nothing was valid, and the environment is what U-Boot was built with. Raises ConfigError for a state that the boot side
        cannot hold, or where this is no environment of that boot side.
        """

    def largest(self, environment: Environment, state: BootState) -> BootState:
        """The state of a trial that needs the most room."""

    def inspect(self, environment: Environment) -> Iterator[Finding]:
        """What `doctor` says of the variables."""


@dataclass(frozen=True, slots=True)
class Native:
    """`Dialect` of bootloader-hooks/uboot/boot.cmd, or (rauc) of the boot script that RAUC documents."""

    slots: tuple[str, ...]
    rauc: bool = False

    @property
    def name(self) -> str:
        """See Dialect."""
        return "rauc" if self.rauc else ""

    def traits(self, stored: Callable[[], Environment | None]) -> BootTraits:
        """See Dialect: our own counters are hexadecimal, and two digits are more than any trial needs."""
        return _RAUC if self.rauc else _OURS

    def state_of(self, environment: Environment) -> BootState:
        """See Dialect; never raises."""
        return ubootvars.state_of(environment, self.slots, _RAUC_POLICY if self.rauc else None)

    def changed(self, environment: Environment, state: BootState, *, anew: bool = False) -> Environment:
        """See Dialect."""
        if self.rauc:
            self._check_rauc(environment, state)
        return ubootvars.changed(environment, state, self.slots)

    def largest(self, environment: Environment, state: BootState) -> BootState:
        """See Dialect."""
        left = dict.fromkeys(self.slots, _RAUC_MOST if self.rauc else 0xFF)
        return replace(state, order=self.slots, left=left, trial=max(self.slots, key=len), policy=_LARGEST_POLICY)

    def inspect(self, environment: Environment) -> Iterator[Finding]:
        """See Dialect."""
        if not self.rauc:
            return
        for slot in self.slots:
            raw = (environment.get(ubootvars.left_name(slot)) or b"0").decode(errors="replace")
            if not (raw.isascii() and raw.isdigit() and int(raw) <= _RAUC_MOST):
                text = f"{ubootvars.left_name(slot)} is {raw[:20]!a}, which RAUC's script may take for 0"
                yield Finding(Grade.WARN, "boot script", text, f"fw_setenv {ubootvars.left_name(slot)} 3")
        policy = self.state_of(environment).policy
        if policy is not None and policy.budget == 0:
            text = "RAUC's script counts every boot, and confirmed_tries = 0 leaves a confirmed slot one"
            yield Finding(Grade.WARN, "boot script", text, "set [trial] confirmed_tries to 1 to 9")

    def _check_rauc(self, environment: Environment, state: BootState) -> None:
        if state.verity:
            raise ConfigError(
                "RAUC's boot script hands no root hash to the kernel", 'use our own script (dialect = ""), or an image without verity'
            )
        stands = ubootvars.state_of(environment, self.slots, _RAUC_POLICY).left
        for slot, left in state.left.items():
            if left > _RAUC_MOST and left != stands.get(slot):
                hint = f"set [trial] tries and confirmed_tries to {_RAUC_MOST} at most"
                raise ConfigError(f"RAUC's boot script counts to {_RAUC_MOST} boots, not {left}", hint)
