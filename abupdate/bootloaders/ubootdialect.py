"""Whose boot script reads the environment, and what its variables mean: the part of UBootStore that differs between boards. Pure.

`Native` are RAUC's names with ours beside them (ubootvars.py), for our own boot script or RAUC's; Mender's and SWUpdate's lie in
menderenv.py and swupdateenv.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from abupdate.bootloaders import ubootvars
from abupdate.errors import ConfigError
from abupdate.formats.ubootenv import Environment
from abupdate.model import BootState, BootTraits, Finding, Grade, TrialPolicy

_LARGEST_POLICY = TrialPolicy(tries=0xFF, budget=0xFF, boot_timeout_s=0xFFFF)
_OURS = BootTraits(max_tries=99, counts_confirmed=True, falls_through=True, armed_in_store=True, keeps_verity=True)
# RAUC's script compares with `test`, to which a leading 0 is octal and a letter no number, and counts with `setexpr`, which knows
# hexadecimal only. Beyond 9 (or 07) the two do not mean the same, and what looks like many boots may be none.
_RAUC_MOST = 9
_RAUC_COUNTS = re.compile(rb"0*[0-7]|[89]")
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
        if not self.rauc:
            return ubootvars.state_of(environment, self.slots)
        state = ubootvars.state_of(environment, self.slots, _RAUC_POLICY)
        policy = state.policy or _RAUC_POLICY
        left = {slot: _rauc_boots(environment.get(ubootvars.left_name(slot)), listed=slot in state.order) for slot in self.slots}
        return replace(state, left=left, policy=replace(policy, budget=min(policy.budget, _RAUC_MOST)))

    def changed(self, environment: Environment, state: BootState, *, anew: bool = False) -> Environment:
        """See Dialect."""
        wanted = ubootvars.changed(environment, state, self.slots)
        if not self.rauc:
            return wanted
        self._check_rauc(state)
        # A slot that abupdate does not update, a rescue system say, is the last resort of RAUC's script.
        found = ubootvars.words(environment.get(ubootvars.ORDER))
        others = [name for name in found if name not in self.slots and name.isascii() and name.isprintable()]
        return wanted.changed({ubootvars.ORDER: " ".join(dict.fromkeys((*state.order, *others))).encode()})

    def largest(self, environment: Environment, state: BootState) -> BootState:
        """See Dialect."""
        left = dict.fromkeys(self.slots, _RAUC_MOST if self.rauc else 0xFF)
        return replace(state, order=self.slots, left=left, trial=max(self.slots, key=len), policy=_LARGEST_POLICY)

    def inspect(self, environment: Environment) -> Iterator[Finding]:
        """See Dialect."""
        if not self.rauc:
            return
        for slot in self.slots:
            raw = environment.get(ubootvars.left_name(slot)) or b"0"
            if not _RAUC_COUNTS.fullmatch(raw):
                shown = ascii(raw[:20].decode(errors="replace"))
                text = f"{ubootvars.left_name(slot)} is {shown}, which RAUC's script may take for 0"
                yield Finding(Grade.WARN, "boot script", text, f"fw_setenv {ubootvars.left_name(slot)} 3")
        policy = self.state_of(environment).policy
        if policy is not None and policy.budget == 0:
            text = "RAUC's script counts every boot, and confirmed_tries = 0 leaves a confirmed slot one"
            yield Finding(Grade.WARN, "boot script", text, "set [trial] confirmed_tries to 1 to 9")

    def _check_rauc(self, state: BootState) -> None:
        if state.verity:
            raise ConfigError(
                "RAUC's boot script hands no root hash to the kernel", 'use our own script (dialect = ""), or an image without verity'
            )
        for left in state.left.values():
            if left > _RAUC_MOST:
                hint = f"set [trial] tries and confirmed_tries to {_RAUC_MOST} at most"
                raise ConfigError(f"RAUC's boot script counts to {_RAUC_MOST} boots, not {left}", hint)


def _rauc_boots(raw: bytes | None, *, listed: bool) -> int:
    """Boots in a counter, 0 where RAUC's script may see none. listed: in the order, where the script makes what is missing."""
    if raw is None:
        return _RAUC_POLICY.budget if listed else 0
    octal = raw[:1] == b"0" and raw[1:2] not in (b"x", b"X")
    number = ubootvars.counter(raw)
    return number if number <= (7 if octal else _RAUC_MOST) else 0
