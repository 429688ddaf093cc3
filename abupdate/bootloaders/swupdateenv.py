"""Boot state <-> the variables of a double copy under SWUpdate. Pure. Counter and notes: bootcounting.py.

    ustate        0 nothing is pending; 1 installed (2: being tested): the copy is on trial; 3 the bootloader went back. Others of
                  SWUpdate's values (4 to 7) say nothing of what boots. Many boards never take a 1 back: without a boot that is counted,
                  and without a note of ours, it is an old one
    [copy_var]    which copy boots: [copy_values] of a slot. Both are the board's own names

The bootloader counts, and beyond bootlimit its altbootcmd toggles the copy and sets ustate to 3; userspace sets it to 0 again. A
ustate of 3 while our BOOT_ORDER has the other slot first is the fallback of that slot; any other 3 is somebody else's old story.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from abupdate.bootloaders import bootcounting
from abupdate.bootloaders.bootcounting import TOPIC
from abupdate.errors import ConfigError
from abupdate.formats.ubootenv import Environment
from abupdate.model import BootState, BootTraits, Finding, Grade, TrialPolicy

USTATE = "ustate"
OK, INSTALLED, TESTING, FAILED = b"0", b"1", b"2", b"3"
# What abupdate writes itself cannot be the board's word for a copy as well.
_TAKEN = {USTATE, bootcounting.LIMIT, bootcounting.COUNT, bootcounting.AVAILABLE, bootcounting.ALTERNATIVE, "bootcmd"}


@dataclass(frozen=True, slots=True)
class SWUpdate:
    """`ubootdialect.Dialect`. copy_var: name of the variable; copy_values: what it says for each slot. Raises ConfigError."""

    slots: tuple[str, ...]
    copy_var: str
    copy_values: Mapping[str, str]
    name = "swupdate"

    def __post_init__(self) -> None:
        if not self.copy_var or set(self.copy_values) != set(self.slots):
            example = ", ".join(f'{slot} = "{number}"' for number, slot in enumerate(self.slots, 1))
            hint = f'add copy_var = "..." and copy_values = {{ {example} }}, as the boot script has them'
            raise ConfigError("[bootloader] does not say which variable chooses the copy that boots", hint)
        words = (self.copy_var, *self.copy_values.values())
        odd = next((word for word in words if not word or not word.isprintable() or "=" in word or not word.isascii()), None)
        if odd is not None:
            raise ConfigError(f"[bootloader] {odd!r} is no name or value of a U-Boot variable", "see copy_var and copy_values")
        if self.copy_var in _TAKEN or self.copy_var.startswith("BOOT_"):
            raise ConfigError(
                f"[bootloader] copy_var = {self.copy_var!r} means something else", "it names the variable that chooses the copy"
            )

    def traits(self, stored: Callable[[], Environment | None]) -> BootTraits:
        """See Dialect."""
        return bootcounting.traits(stored())

    def state_of(self, environment: Environment) -> BootState:
        """See Dialect."""
        first = self._first(environment)
        if first is None:
            return BootState((), dict.fromkeys(self.slots, 0), policy=TrialPolicy(1, 0), fresh=True)
        said = environment.get(USTATE)
        noted = bootcounting.noted_order(environment, self.slots)
        pending = said in (INSTALLED, TESTING) and (bool(noted) or bootcounting.counting(environment))
        state = bootcounting.state_of(environment, self.slots, first, on_trial=pending)
        if said == FAILED and noted and noted[0] != first:
            return replace(state, trial=noted[0])
        return state

    def changed(self, environment: Environment, state: BootState, *, anew: bool = False) -> Environment:
        """See Dialect."""
        if anew:
            environment = bootcounting.begun(environment, state)
        elif self._first(environment) is None:
            raise ConfigError(*self._absent())
        values = bootcounting.values(environment, state, self.slots)
        ustate = OK if state.trial is None else INSTALLED
        return environment.changed({self.copy_var: self.copy_values[state.order[0]].encode(), USTATE: ustate, **values})

    def largest(self, environment: Environment, state: BootState) -> BootState:
        """See Dialect."""
        first = max(self.slots, key=lambda slot: len(self.copy_values[slot]))
        others = tuple(slot for slot in self.slots if slot != first)
        return replace(state, order=(first, *others), left={first: 0, **dict.fromkeys(others, 0xFF)}, trial=first)

    def inspect(self, environment: Environment) -> Iterator[Finding]:
        """See Dialect."""
        if environment.get(self.copy_var) is None:
            yield Finding(Grade.FAIL, TOPIC, *self._absent())
        yield from bootcounting.inspect(environment)

    def _first(self, environment: Environment) -> str | None:
        raw = environment.get(self.copy_var)
        if raw is None:
            return None
        said = raw.decode(errors="replace")
        slot = next((slot for slot, value in self.copy_values.items() if value == said), None)
        if slot is None:
            names = ", ".join(f"{value} for slot {slot}" for slot, value in self.copy_values.items())
            text = f"U-Boot boots {self.copy_var} = {said[:40]!a}, which is no slot's"
            raise ConfigError(text, f"[bootloader] copy_values says {names}")
        return slot

    def _absent(self) -> tuple[str, str]:
        slot, value = next(iter(self.copy_values.items()))
        return (
            f"the environment has no {self.copy_var}: no boot script that chooses by it has ever run on it",
            f"is [bootloader] copy_var right? Where the script has it built in: fw_setenv {self.copy_var} {value} on slot {slot}",
        )
