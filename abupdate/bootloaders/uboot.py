"""Boot state in U-Boot's environment, single or redundant, where fw_env.config says that it lies.

A commit is one durable write of the copy that does not count at the moment, made under fw_setenv's lock from what is on the medium
then; the flag in it makes it count. Cut off anywhere, the write leaves a copy with a wrong checksum and the old one counts. On NOR
flash the old copy is marked obsolete afterwards; cut off before that, either copy counts, and each is whole. A single environment
is overwritten where it lies and can tear: `single` tells.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from abupdate.bootloaders.bootargs import kernel_arguments
from abupdate.bootloaders.envarea import open_area
from abupdate.bootloaders.envio import Area, MediumError
from abupdate.bootloaders.envlock import LOCK_PATH, WRITE_WAIT_S, environment_lock, lock_problem
from abupdate.bootloaders.ubootdialect import Dialect, Native
from abupdate.errors import AbupdateError, ConfigError, Failed, StoreUnreadable
from abupdate.formats import fwenvconfig
from abupdate.formats.fwenvconfig import EnvLocation
from abupdate.formats.ubootenv import EnvCopy, Environment, Scheme, choose, decode, encode, next_flag, rebuilt_flags
from abupdate.log import log
from abupdate.model import BootState, BootTraits, Finding, Grade
from abupdate.ports import Bootloader

# What libubootenv takes when no copy is valid: the variables that this U-Boot was built with, one NAME=VALUE a line.
DEFAULT_ENVIRONMENT = Path("/etc/u-boot-initial-env")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What the medium holds: the areas, each one's copy (None: invalid), which one counts."""

    areas: tuple[Area, ...]
    scheme: Scheme
    copies: tuple[EnvCopy | None, ...]
    current: int

    @property
    def environment(self) -> Environment:
        copy = self.copies[self.current]
        return copy.environment if copy is not None else Environment()

    def check_room(self, environment: Environment) -> None:
        """Raises ConfigError where the environment does not fit into every area."""
        encode(environment, min(area.location.size_bytes for area in self.areas), self.scheme)


class UBootStore(Bootloader):
    """`ports.Bootloader` over fw_env.config. Raises ConfigError at once for a configuration that cannot be read or makes no sense."""

    def __init__(
        self,
        config_path: Path,
        slots: tuple[str, ...],
        *,
        dialect: Dialect | None = None,
        root: Path = Path("/"),
        lock_path: Path = LOCK_PATH,
        lock_wait_s: float = WRITE_WAIT_S,
        default_environment: Path = DEFAULT_ENVIRONMENT,
        find_area: Callable[[EnvLocation], Area] = open_area,
    ) -> None:
        self._config_path = config_path
        self._dialect: Dialect = dialect or Native(slots)
        self._root = root
        self._lock_path = lock_path
        self._lock_wait_s = lock_wait_s
        self._default_environment = default_environment
        self._find_area = find_area
        try:
            with config_path.open("rb") as file:
                text = file.read(fwenvconfig.MAX_CONFIG_BYTES + 1)
        except OSError as error:
            hint = "[bootloader] fw_env_config names it; device, offset and size of each copy: /dev/disk/by-partlabel/env 0x0 0x4000"
            raise ConfigError(f"{config_path}: {error.strerror}", hint) from None
        self._locations = fwenvconfig.parse(text, str(config_path))
        self._holds_bootcmd = False

    @property
    def traits(self) -> BootTraits:
        """What the boot script can do; where it counts against U-Boot's bootlimit, as that stands now."""
        return self._dialect.traits(self._stored)

    @property
    def location(self) -> str:
        """Devices, offsets and sizes as configured."""
        return "uboot:" + ",".join(map(str, self._locations))

    @property
    def tears(self) -> str:
        """See ports.Bootloader."""
        return "a single U-Boot environment can be lost by a power cut" if self.single else ""

    @property
    def single(self) -> bool:
        """True when there is one copy alone: a power cut in a commit can lose the whole environment."""
        return len(self._locations) == 1

    @property
    def lock_problem(self) -> str:
        """Empty, or why fw_setenv's lock cannot be taken here (for `doctor`)."""
        return lock_problem(self._lock_path)

    def read(self) -> BootState:
        """The state that counts. Raises StoreUnreadable when every copy is invalid, ConfigError when a place cannot be read."""
        with self._locked(writing=False):
            environment = self._valid(self._load()).environment
        self._holds_bootcmd = environment.get("bootcmd") is not None
        return self._dialect.state_of(environment)

    @property
    def irreplaceable(self) -> str:
        """See ports.Bootloader: U-Boot reads its own boot command from here, and nothing else on the device knows it."""
        if not self._holds_bootcmd or self.has_defaults:
            return ""
        return f"the environment holds U-Boot's own bootcmd, and {self._default_environment} is no file that root alone can write"

    def places(self) -> tuple[tuple[Path, int, int], ...]:
        """Each copy's device or file, where it begins and where it ends there, bytes. Raises ConfigError."""
        found = []
        for location in self._locations:
            span = self._find_area(location).span()
            found.append((Path(location.device), span.start, span.end))
        return tuple(found)

    def inspect(self) -> Iterator[Finding]:
        """See ports.Bootloader."""
        with contextlib.suppress(AbupdateError):  # reported by the check of the state
            self.read()
        if self.irreplaceable:
            hint = "fw_printenv > /etc/u-boot-initial-env keeps a copy to rebuild from"
            yield Finding(Grade.WARN, "boot store", f"the service will not rebuild a damaged store: {self.irreplaceable}", hint)
        if self.lock_problem:
            yield Finding(Grade.WARN, "boot store", self.lock_problem, "fw_setenv and abupdate could undo each other's writes")
        if not self.single:
            for index in self.invalid_copies():
                yield Finding(Grade.WARN, "boot store", f"copy {index} of the environment is invalid", "the next write goes over it")
        if self._dialect.name:
            environment = self._stored()
            if environment is not None:
                yield from self._dialect.inspect(environment)
            yield from kernel_arguments(self._root, f"{self._dialect.name}'s boot script")

    def invalid_copies(self) -> tuple[int, ...]:
        """Indices of copies whose checksum is wrong (for `doctor`; one of two is no fault, the next commit goes over it)."""
        with self._locked(writing=False):
            loaded = self._load()
        return tuple(index for index, copy in enumerate(loaded.copies) if copy is None)

    def commit(self, state: BootState) -> None:
        """Write the state over the copy that does not count; nothing when the store says just this already, which is then durable.

        A floor that has no room beside a trial stays what it was: its mirror must cost neither a confirmation nor the next update.
        """
        with self._locked(writing=True):
            self._update(self._valid(self._load()), state)

    def check_room(self, state: BootState) -> None:
        """See ports.Bootloader."""
        with self._locked(writing=False):
            loaded = self._valid(self._load())
        loaded.check_room(self._wanted(loaded, state))

    def rebuild(self, state: BootState) -> None:
        """Write the copies anew, at least one, when none is valid; what others stored is lost, U-Boot's own come from DEFAULT_ENVIRONMENT.

        A store that turns out to be valid is committed to instead.
        """
        with self._locked(writing=True):
            loaded = self._load()
            if any(copy is not None for copy in loaded.copies):
                self._update(loaded, state)
                return
            wanted = self._dialect.changed(self._defaults(), state, anew=True)
            failures: list[AbupdateError] = []
            for area, flag in zip(loaded.areas, rebuilt_flags(), strict=False):
                try:
                    area.write(encode(wanted, area.location.size_bytes, loaded.scheme, flag))
                except (Failed, ConfigError) as error:
                    failures.append(error)
            if len(failures) == len(loaded.areas):
                raise failures[0]
            # With one copy the device boots as it should; the next commit tries the other place again.
            for failure in failures:
                log.warning("%s", failure.line)

    @property
    def has_defaults(self) -> bool:
        """True where `rebuild` can also restore the variables that U-Boot itself was built with (its boot command among them).

        A file that others than root (or the caller) can write is none: U-Boot would run what stands in it.
        """
        try:
            found = self._default_environment.stat()
        except OSError:
            return False
        private = not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and found.st_uid in (0, os.geteuid())
        return stat.S_ISREG(found.st_mode) and private

    def _stored(self) -> Environment | None:
        try:
            with self._locked(writing=False):
                return self._valid(self._load()).environment
        except AbupdateError:
            return None

    def _defaults(self) -> Environment:
        if not self.has_defaults:
            return Environment()
        try:
            with self._default_environment.open("rb") as file:
                text = file.read(self._locations[0].size_bytes + 1)
        except OSError:
            return Environment()
        lines = (line.rstrip(b"\r") for line in text.split(b"\n"))
        return Environment(tuple(line for line in lines if b"=" in line[1:] and not line.startswith(b"#") and b"\0" not in line))

    def _locked(self, *, writing: bool) -> AbstractContextManager[None]:
        return environment_lock(self._lock_path, self._config_path, writing=writing, wait_s=self._lock_wait_s)

    def _update(self, loaded: _Loaded, state: BootState) -> None:
        wanted = self._wanted(loaded, state)
        # The copy that counts may lie in the disk's cache alone: U-Boot flushes nothing, and a commit's own flush may have failed. First
        # it goes to the medium, or a power cut could tear both copies, or bring back what everybody took for overwritten.
        loaded.areas[loaded.current].flush()
        if wanted != loaded.environment:
            _store(loaded, wanted)

    def _wanted(self, loaded: _Loaded, state: BootState) -> Environment:
        stored, dialect = loaded.environment, self._dialect
        wanted = dialect.changed(stored, state)
        if state.policy is not None and state.trial is None and not self._fits(loaded, wanted):
            # Numbers for the boot side, which it has from the trial or does without: they must cost neither a confirmation nor a refill.
            state = replace(state, policy=None)
            wanted = dialect.changed(stored, state)
        if state.floor is None:
            return wanted
        if not self._fits(loaded, dialect.changed(stored, dialect.largest(stored, state))):
            wanted = dialect.changed(stored, replace(state, floor=None))
        return wanted

    @staticmethod
    def _fits(loaded: _Loaded, environment: Environment) -> bool:
        try:
            loaded.check_room(environment)
        except ConfigError:
            return False
        return True

    def _load(self) -> _Loaded:
        areas = tuple(self._find_area(location) for location in self._locations)
        if len({area.scheme for area in areas}) != 1:
            raise ConfigError(f"{self._config_path}: the two copies lie on different kinds of flash", "their flags would not mean the same")
        if not self.single and areas[0].span().overlaps(areas[1].span()):
            raise ConfigError(f"{self._config_path}: the two copies overlap", "a redundant environment needs two areas of their own")
        scheme = Scheme.SINGLE if self.single else areas[0].scheme
        copies: list[EnvCopy | None] = []
        failures: list[MediumError] = []
        for area in areas:
            try:
                copies.append(decode(area.read(), scheme))
            except StoreUnreadable:
                copies.append(None)
            except MediumError as error:
                copies.append(None)
                failures.append(error)
        if len(failures) == len(areas):
            raise ConfigError(failures[0].message, "the medium under the U-Boot environment is failing")
        flags = [copy.flag if copy is not None else None for copy in copies]
        current = next((index for index, flag in enumerate(flags) if flag is not None), 0)
        if len(flags) == 2 and flags[0] is not None and flags[1] is not None:
            current = choose(flags[0], flags[1], scheme)
        return _Loaded(areas, scheme, tuple(copies), current)

    def _valid(self, loaded: _Loaded) -> _Loaded:
        if all(copy is None for copy in loaded.copies):
            copies = "the environment's checksum is" if self.single else "both copies' checksums are"
            raise StoreUnreadable(
                f"{self._locations[0].device}: {copies} wrong: there is no valid boot state",
                f"check {self._config_path}; `abupdate doctor --fix` shows and writes a new one",
            )
        return loaded


def _store(loaded: _Loaded, environment: Environment) -> None:
    """One write of the other copy, read back by the area; then, on NOR flash, the old copy's mark."""
    old = loaded.copies[loaded.current]
    if old is None:
        raise Failed("the U-Boot environment changed between reading and writing")
    target = 1 - loaded.current if len(loaded.areas) == 2 else 0
    area = loaded.areas[target]
    area.write(encode(environment, area.location.size_bytes, loaded.scheme, next_flag(old.flag, loaded.scheme)))
    if loaded.scheme is Scheme.BOOLEAN:
        loaded.areas[loaded.current].mark_obsolete()
