"""Boot state <-> the variables of Mender's U-Boot integration. Pure. Counter and notes: bootcounting.py.

    mender_boot_part        number of the partition that boots, decimal; mender_boot_part_hex: the same in hexadecimal (U-Boot counts
                            partitions so). Read is the decimal one
    mender_check_saveenv_canary, mender_saveenv_canary    1 in the environment that U-Boot was built with; the other is stored by the boot
                            script at its first start. Where it is missing, U-Boot saves its environment somewhere else than fw_env.config
                            says, or not at all: nothing that is written here would ever be read, so nothing is

altbootcmd swaps the part and clears upgrade_available: afterwards only abupdate's record tells that a trial was. A slot that boots
without being the first of our BOOT_ORDER is all that is known to be good then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from abupdate.bootloaders import bootcounting
from abupdate.bootloaders.bootcounting import TOPIC
from abupdate.errors import ConfigError
from abupdate.formats.ubootenv import Environment
from abupdate.model import BootState, BootTraits, Finding, Grade, TrialPolicy

PART, PART_HEX = "mender_boot_part", "mender_boot_part_hex"
_ASKED, _CANARY = "mender_check_saveenv_canary", "mender_saveenv_canary"
_NO_CANARY = f"{_ASKED} is 1, and U-Boot never stored {_CANARY}: it keeps its environment somewhere else, or cannot save it"
_CANARY_HINT = "compare CONFIG_ENV_OFFSET and CONFIG_ENV_SIZE of U-Boot with /etc/fw_env.config, then boot once"


@dataclass(frozen=True, slots=True)
class Mender:
    """`ubootdialect.Dialect`. partitions: number of each slot's partition. Raises ConfigError where it does not name the slots."""

    slots: tuple[str, ...]
    partitions: Mapping[str, int]
    name = "mender"

    def __post_init__(self) -> None:
        if set(self.partitions) != set(self.slots):
            example = ", ".join(f"{slot} = {number}" for number, slot in enumerate(self.slots, 2))
            raise ConfigError("[bootloader] does not say which partitions the slots boot from", f"add partitions = {{ {example} }}")

    def traits(self, stored: Callable[[], Environment | None]) -> BootTraits:
        """See Dialect."""
        return bootcounting.traits(stored())

    def state_of(self, environment: Environment) -> BootState:
        """See Dialect."""
        first = self._first(environment)
        if first is None:
            return BootState((), dict.fromkeys(self.slots, 0), policy=TrialPolicy(1, 0), fresh=True)
        return bootcounting.state_of(environment, self.slots, first, on_trial=bootcounting.counting(environment))

    def changed(self, environment: Environment, state: BootState, *, anew: bool = False) -> Environment:
        """See Dialect."""
        if anew:
            environment = bootcounting.begun(environment, state)
        else:
            self._check(environment)
        values = bootcounting.values(environment, state, self.slots)
        number = self.partitions[state.order[0]]
        return environment.changed({PART: b"%d" % number, PART_HEX: b"%x" % number, **values})

    def largest(self, environment: Environment, state: BootState) -> BootState:
        """See Dialect."""
        first = max(self.slots, key=lambda slot: self.partitions[slot])
        others = tuple(slot for slot in self.slots if slot != first)
        return replace(state, order=(first, *others), left={first: 0, **dict.fromkeys(others, 0xFF)}, trial=first)

    def inspect(self, environment: Environment) -> Iterator[Finding]:
        """See Dialect."""
        raw, hexadecimal = environment.get(PART), environment.get(PART_HEX)
        if raw is None:
            yield Finding(Grade.FAIL, TOPIC, *_absent(self.partitions))
        elif hexadecimal is not None and self._first(environment) is not None and _number(hexadecimal, 16) != _number(raw, 10):
            text = f"{PART} is {_shown(raw)} and {PART_HEX} {_shown(hexadecimal)}: kernel and root file system of two slots may meet"
            yield Finding(Grade.WARN, TOPIC, text, f"fw_setenv {PART_HEX} {_number(raw, 10):x}; the next flash, too, sets both")
        if _canary_is_missing(environment):
            yield Finding(Grade.FAIL, TOPIC, _NO_CANARY, _CANARY_HINT)
        yield from bootcounting.inspect(environment)

    def _check(self, environment: Environment) -> None:
        if _canary_is_missing(environment):
            raise ConfigError(_NO_CANARY, _CANARY_HINT)
        if self._first(environment) is None:
            raise ConfigError(*_absent(self.partitions))

    def _first(self, environment: Environment) -> str | None:
        raw = environment.get(PART)
        if raw is None:
            return None
        # As the scripts compare: 09 is no 9 to them, nor to the name of a device.
        slot = next((slot for slot, known in self.partitions.items() if raw == b"%d" % known), None)
        if slot is None:
            names = ", ".join(f"{known} for slot {slot}" for slot, known in self.partitions.items())
            raise ConfigError(f"U-Boot boots from {PART} = {_shown(raw)}, which is no slot's", f"[bootloader] partitions says {names}")
        return slot


def _absent(partitions: Mapping[str, int]) -> tuple[str, str]:
    slot, number = next(iter(partitions.items()))
    return (
        f"the environment has no {PART}: no boot script of Mender's has ever run on it",
        f'our own boot script is dialect = ""; where the script has it built in: fw_setenv {PART} {number} on slot {slot}',
    )


def _canary_is_missing(environment: Environment) -> bool:
    return environment.get(_ASKED) == b"1" and environment.get(_CANARY) != b"1"


def _number(raw: bytes, base: int) -> int:
    """-1 for what is no number."""
    text = raw.decode(errors="replace")
    return int(text, base) if text.isascii() and text.isalnum() and len(text) <= 8 and _is_number(text, base) else -1


def _is_number(text: str, base: int) -> bool:
    return all(character in "0123456789abcdefABCDEF"[: 10 if base == 10 else 22] for character in text)


def _shown(raw: bytes) -> str:
    return ascii(raw[:40].decode(errors="replace"))
