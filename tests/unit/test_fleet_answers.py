"""What the daemon answers when what was asked for cannot be done, and when it must not go on at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

import pytest

from abupdate.errors import AbupdateError, Busy, Failed, Refused
from abupdate.fleet.answers import Answers
from abupdate.fleet.control import Submit
from abupdate.fleet.controlserver import Asked, ControlServer
from abupdate.fleet.events import Event
from abupdate.fleet.ports import Core


class Said(ControlServer):
    """Keeps the answers."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.said: list[Mapping[str, object]] = []

    def answer(self, asked: Asked, document: Mapping[str, object], now_s: float) -> None:
        self.said.append(document)


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Said]:
    made = Said(tmp_path / "control")
    yield made
    made.close()


def raising(error: AbupdateError) -> Callable[[Event], None]:
    """A core that takes no event."""

    def hand_in(event: Event) -> None:
        raise error

    return hand_in


def submit(control: Said, error: AbupdateError) -> None:
    """Somebody submits an order."""
    Answers(control, cast("Core", None), raising(error), dict).take(Asked(1, Submit(b"order")), 0.0)


@pytest.mark.parametrize(("error", "code"), [(Refused("not signed"), 3), (Busy("not now"), 5)])
def test_what_is_refused_is_answered_and_the_daemon_goes_on(control: Said, error: AbupdateError, code: int) -> None:
    submit(control, error)
    assert [(one["error"], one["exit_code"]) for one in control.said] == [(error.message, code)]


def test_a_log_that_cannot_be_written_ends_the_daemon_whoever_asked(control: Said) -> None:
    """Else it would send what rests on a record that the next start does not find."""
    with pytest.raises(Failed, match="No space left"):
        submit(control, Failed("log: No space left on device"))
    assert control.said == []
