"""The demo's story holds from its first step to its last (outside the quick runs: it takes minutes)."""

from __future__ import annotations

import pytest

from qemu import story

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.usefixtures("images")
def test_the_story_that_the_demo_tells_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert story.main() == 0
    told = capsys.readouterr().out
    assert told.count("\nok ") + told.startswith("ok ") >= 11
    assert "FAIL" not in told
