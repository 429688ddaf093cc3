"""A software TPM of a test's own: swtpm behind a UNIX socket, its state in a folder that can be put back to an earlier day."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

PATIENCE_S = 20.0


class Tpm:
    """`start` and `stop` are its power; use it as a context manager."""

    def __init__(self) -> None:
        # Not in a test's own folder: the path of a UNIX socket has 107 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix="swtpm-"))
        self.state = self.folder / "state"
        self.state.mkdir()
        self.socket = self.folder / "tpm"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def tcti(self) -> str:
        """How tpm2-tools reach it."""
        return f"swtpm:path={self.socket}"

    def __enter__(self) -> Tpm:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        """Power on; returns when it answers."""
        control = self.folder / "tpm.ctrl"
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.state}", "--flags", "not-need-init,startup-clear"]
        command += ["--server", f"type=unixio,path={self.socket}", "--ctrl", f"type=unixio,path={control}"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + PATIENCE_S
        while self.tool("tpm2_getcap", "handles-nv-index").returncode != 0:
            assert self._process.poll() is None, "swtpm has ended"
            assert time.monotonic() < end, "swtpm does not answer"
            time.sleep(0.01)

    def stop(self) -> None:
        """Power off."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE_S)
            self._process = None

    def tool(self, name: str, *argv: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run one of tpm2-tools against it."""
        return subprocess.run([name, f"--tcti={self.tcti}", *argv], input=data, capture_output=True, timeout=PATIENCE_S, check=False)

    def save(self, place: Path) -> None:
        """Keep a copy of its state."""
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.state, place)

    def restore(self, place: Path) -> None:
        """Put it back to a state that was kept: what somebody with the chip in hand could do."""
        self.stop()
        shutil.rmtree(self.state)
        shutil.copytree(place, self.state)
        self.start()
