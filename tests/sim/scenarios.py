"""The operations that are cut: how the device gets there, the command, and what must be reached in the end."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from abupdate.formats.record import encode
from abupdate.model import Record
from tests.sim import goals
from tests.sim.blocks import Block
from tests.sim.bootplace import BootPlace
from tests.sim.contents import V1, V2, V3, Content, nature
from tests.sim.device import Device, durable, new_device, power_up, reboot
from tests.sim.filesystem import Files
from tests.sim.judge import Scenario
from tests.sim.parts import Part
from tests.sim.rings import V2_OF_RING_3
from tests.sim.state import STATE

FACTORY = frozenset({("A", "1.0")})
BOTH = frozenset({("A", "1.0"), ("B", "2.0")})


@dataclass(frozen=True)
class Ways:
    """How a device comes to stand just before an operation. folder: holds fw_env.config and the environment's lock."""

    folder: Path

    def factory(self, store: BootPlace) -> Device:
        """As it leaves the factory."""
        return new_device(self.folder, store)

    def running(self, store: BootPlace) -> Device:
        """The service has run once."""
        device = self.factory(store)
        device.service()
        return device

    def armed(self, store: BootPlace) -> Device:
        """V2 waits on B for a reboot."""
        device = self.running(store)
        device.flash(V2)
        return device

    def on_trial(self, store: BootPlace) -> Device:
        """V2 runs on trial on B."""
        device = reboot(self.armed(store))
        device.service()
        return device

    def both_good(self, store: BootPlace) -> Device:
        """V2 runs confirmed on B, V1 is good on A."""
        device = self.on_trial(store)
        device.confirm()
        return device

    def written(self, store: BootPlace) -> Device:
        """V2 is written on B and not armed."""
        device = self.running(store)
        device.flash(V2, activate=False)
        device = reboot(device)
        device.service()
        return device

    def fallen_back(self, store: BootPlace) -> Device:
        """V2 used its tries up; nobody has dealt with it."""
        device = self.armed(store)
        for _ in range(4):
            device = reboot(device, reset="watchdog")
        return device

    def destroyed(self, store: BootPlace) -> Device:
        """The confirmed slot B does not start any more."""
        device = self.both_good(store)
        part = device.machine.part("B.boot")
        assert isinstance(part, Block)
        device.machine.put("B.boot", Block.of(part.nature, b"mold" + part.content[4:]))
        return power_up(durable(device.machine.parts), store, self.folder, frozenset("A"))

    def torn_on_a(self, store: BootPlace) -> Device:
        """The store is gone while A runs."""
        return self._torn(reboot(self.running(store)))

    def torn_on_b(self, store: BootPlace) -> Device:
        """The store is gone while B is the good one; U-Boot's default starts A."""
        return self._torn(reboot(self.both_good(store)))

    def emptied_on_a(self, store: BootPlace) -> Device:
        """What the store's factory puts there has come back while A runs; B is written and was never tried."""
        return self._torn(reboot(self.written(store)), store.blank())

    def emptied_on_b(self, store: BootPlace) -> Device:
        """The same while B is the good one."""
        return self._torn(reboot(self.both_good(store)), store.blank())

    def emptied_on_trial(self, store: BootPlace) -> Device:
        """The same while B is on trial."""
        return self._torn(self.on_trial(store), store.blank())

    def _torn(self, device: Device, left: Part | None = None) -> Device:
        device.service()
        left = left or device.store.erased()
        assert left is not None
        device.machine.put("env", left)
        return power_up(durable(device.machine.parts), device.store, self.folder)

    def forgetful(self, store: BootPlace) -> Device:
        """One sector of slot B never keeps what is written to it, and no write fails."""
        device = self.running(store)
        part = device.machine.part("B.rootfs")
        assert isinstance(part, Block)
        device.machine.put("B.rootfs", Block.of(replace(nature("B", "rootfs"), deaf=frozenset({4096})), part.content))
        return device

    def started(self, store: BootPlace) -> Device:
        """A further boot of B, whose boots the hook has counted."""
        return reboot(self.both_good(store))

    def beside_a_newer_record(self, store: BootPlace) -> Device:
        """On trial; one file of the record was written by a version of abupdate that is newer than this one."""
        device = self.on_trial(store)
        files = device.machine.part("files")
        assert isinstance(files, Files)
        device.machine.put("files", Files.with_files({**files.seen, f"{STATE}/record.1": NEWER_RECORD}, files.folders))
        return device

    def on_trial_with_tpm(self, store: BootPlace) -> Device:
        """On trial, a TPM keeps a copy of the floor."""
        return replace(self.on_trial(store), has_tpm=True)

    def tpm_behind(self, store: BootPlace) -> Device:
        """V2 is confirmed, and the TPM's index was made only now."""
        return reboot(replace(self.both_good(store), has_tpm=True))

    def same_counter(self, store: BootPlace) -> Device:
        """As both_good, with the same security counter on both slots, so that going back is allowed."""
        device = self.both_good(store)
        state = device.board().state
        record, _ = state.load()
        assert record is not None
        state.save(replace(record, slots={**record.slots, "A": replace(record.slots["B"], version="1.0", bundle=V1.bundle)}))
        return device


def _newer_record() -> bytes:
    """A record of the next major version, as an agent in the other slot may have left it."""
    data = bytearray(encode(Record(floor=0), 1)[:-4])
    data[4:6] = (int.from_bytes(data[4:6], "big") + 1).to_bytes(2, "big")
    return bytes(data) + zlib.crc32(data).to_bytes(4, "big")


NEWER_RECORD = _newer_record()


def applies(scenario: str, place: BootPlace) -> bool:
    """Whether such a thing can happen to a device with this store."""
    if place.name == "grub-rauc":
        # RAUC's script gives every good slot its one boot back when all are used up, the trial's too (which the service then ends by a
        # reboot that is not modelled), and a confirmed slot whose power goes before the service has come up is left for the other one:
        # what its boards live with, and no operation here can help.
        return scenario == "keyring update" or (scenario.startswith("flash") and scenario != "flash that brings keyrings")
    if place.name == "rauc" and scenario == "flash, fresh board":
        # RAUC's script counts there before abupdate ever ran; a flash after a cut finds the boots refilled, the uncut one does not.
        return False
    if scenario.startswith("service, store torn"):
        return place.erased() is not None
    if scenario.startswith("service, store emptied"):
        # Elsewhere the factory has put slot A's entries there, and a board that it has put there again is a new one.
        state = place.state(place.blank())
        return state is not None and state.fresh
    if scenario == "service, confirmed slot destroyed":
        # Without the marker nothing says that the slot is still of the order.
        return place.traits.falls_through and place.name != "efi-torn"
    return True


def scenarios(folder: Path) -> tuple[Scenario, ...]:
    """All of them."""
    ways = Ways(folder)
    on_b = frozenset("B")

    def flash(content: Content = V2, *, activate: bool = True) -> Callable[[Device], None]:
        return lambda device: device.flash(content, activate=activate)

    def lost(
        name: str, prepare: Callable[[BootPlace], Device], confirmed: frozenset[tuple[str, str]], reverts: frozenset[str] = frozenset()
    ) -> Scenario:
        """What the store held is gone, and the service writes what the record knows."""
        return Scenario(name, prepare, goals.nothing, goals.rebuilt, confirmed, reverts=reverts, starts=True, blind=True, stays=frozenset())

    return (
        Scenario("flash, fresh board", ways.factory, flash(), goals.flashed("B", "2.0"), FACTORY, arms=on_b),
        Scenario(
            "flash, both slots good", ways.both_good, flash(V3), goals.flashed("A", "3.0"), BOTH, stays=frozenset("B"), arms=frozenset("A")
        ),
        Scenario("flash --no-activate", ways.running, flash(activate=False), goals.same, FACTORY),
        Scenario("flash over a written slot", ways.written, flash(V3), goals.flashed("B", "3.0"), FACTORY, arms=on_b),
        Scenario("flash, medium loses a block", ways.forgetful, flash(), goals.refused, FACTORY),
        Scenario("activate", ways.written, Device.activate, goals.flashed("B", "2.0"), FACTORY, arms=on_b),
        Scenario(
            "activate under a lease",
            ways.written,
            lambda device: device.activate(7),
            goals.flashed_under(7, "B", "2.0"),
            FACTORY,
            arms=on_b,
        ),
        Scenario("confirm", ways.on_trial, Device.confirm, goals.confirmed, FACTORY, confirms=frozenset({("B", "2.0")}), reverts=on_b),
        Scenario("revert, armed", ways.armed, Device.revert, goals.back_on_a, FACTORY, reverts=on_b),
        Scenario("revert, on trial", ways.on_trial, Device.revert, goals.back_on_a, FACTORY, reverts=on_b),
        Scenario(
            "revert, steady", ways.same_counter, Device.revert, goals.switched, BOTH, reverts=on_b, needed=goals.on_b, stays=frozenset("AB")
        ),
        Scenario("service, after a fallback", ways.fallen_back, goals.nothing, goals.cleaned_up, FACTORY, reverts=on_b, starts=True),
        Scenario("service, confirmed slot destroyed", ways.destroyed, goals.nothing, goals.fell_through, BOTH, reverts=on_b, starts=True),
        lost("service, store torn on A", ways.torn_on_a, FACTORY),
        lost("service, store torn on B", ways.torn_on_b, BOTH),
        lost("service, store emptied on A", ways.emptied_on_a, FACTORY),
        lost("service, store emptied on B", ways.emptied_on_b, BOTH),
        lost("service, store emptied on trial", ways.emptied_on_trial, FACTORY, reverts=on_b),
        Scenario("service, boots refilled", ways.started, goals.nothing, goals.same, BOTH, starts=True, stays=frozenset("AB")),
        Scenario("keyring update", ways.running, Device.keyring_update, goals.rotated, FACTORY),
        Scenario("flash that brings keyrings", ways.running, flash(V2_OF_RING_3), goals.flashed("B", "2.0", ring=3), FACTORY, arms=on_b),
        Scenario(
            "confirm, newer record beside",
            ways.beside_a_newer_record,
            Device.confirm,
            goals.confirmed,
            FACTORY,
            confirms=frozenset({("B", "2.0")}),
            reverts=on_b,
            keeps=NEWER_RECORD,
        ),
        Scenario(
            "confirm, floor in a TPM too",
            ways.on_trial_with_tpm,
            Device.confirm,
            goals.confirmed,
            FACTORY,
            confirms=frozenset({("B", "2.0")}),
            reverts=on_b,
        ),
        Scenario("service, TPM behind", ways.tpm_behind, goals.nothing, goals.same, BOTH, starts=True, stays=frozenset("AB")),
    )
