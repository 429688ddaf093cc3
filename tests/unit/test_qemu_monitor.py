"""QMP of a machine that is just starting: its socket comes after the console's, and whoever waits for it must be able to try again."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from qemu.monitor import Monitor


@pytest.mark.parametrize("bound", [False, True], ids=["no socket yet", "nobody listens yet"])
def test_a_machine_that_does_not_answer_yet_is_an_oserror_and_leaves_no_thread(tmp_path: Path, bound: bool) -> None:
    before = threading.active_count()
    with socket.socket(socket.AF_UNIX) as early:
        if bound:
            early.bind(str(tmp_path / "qmp"))
        with pytest.raises(OSError, match="qmp"):
            Monitor(tmp_path / "qmp")
    assert threading.active_count() == before
