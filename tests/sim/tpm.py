"""The NV index of the simulated device's TPM: one counter, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping

from abupdate.errors import Failed
from tests.sim.blocks import Block, Disk, Nature
from tests.sim.journal import Machine
from tests.sim.parts import Part, Running

_BYTES = 8


class Index:
    """`ports.FloorCopy`."""

    name = "TPM"

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @staticmethod
    def blank() -> Part:
        """Never written."""
        return Block.of(Nature("tpm"), bytes(_BYTES))

    @staticmethod
    def of(part: Part) -> int:
        """What it keeps."""
        assert isinstance(part, Block)
        return int.from_bytes(part.content, "big")

    def value(self) -> int:
        """See ports.FloorCopy."""
        value: int = self._machine.call("value", ("tpm",), lambda running, machine: self.of(running["tpm"].freeze()))
        return value

    def raise_to(self, counter: int) -> None:
        """See ports.FloorCopy."""

        def write(running: Mapping[str, Running], machine: Machine) -> None:
            disk = running["tpm"]
            assert isinstance(disk, Disk)
            try:
                disk.write_through(0, max(counter, int.from_bytes(disk.content, "big")).to_bytes(_BYTES, "big"))
            except OSError as error:
                raise Failed(f"TPM: {error.strerror}") from error

        self._machine.call(("raise", counter), ("tpm",), write)
