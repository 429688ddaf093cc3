"""A site of six with a liar, f = 1: four emulated devices and two processes of this host on their LAN, one of which is byzantine."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from abupdate.formats import frame
from abupdate.formats.messages import Type, Vote
from qemu.cables import Heard
from qemu.site import SITE_CONFIG, Site
from tests.localsite import AGENT, LIAR, agreed, ended
from tests.qemu.neighbours import Neighbour
from tests.qemu.sites import closed_plan, judge, propose, up

pytestmark = [pytest.mark.qemu, pytest.mark.site, pytest.mark.slow, pytest.mark.timeout(1400)]

DEVICES, MEMBERS = 4, 6
HONEST, LYING = 4, 5
NUMBERS = f"faults = 1\nmin_up = {MEMBERS - 1}\n"


@pytest.fixture
def site(images: Path) -> Iterator[tuple[Site, Neighbour, Neighbour]]:
    """The site with its two neighbours, the second of which lies; all are enrolled and see each other."""
    config = SITE_CONFIG.replace("window_s = 45", "window_s = 25")
    assert config != SITE_CONFIG
    with ExitStack() as stack:
        one = stack.enter_context(Site(DEVICES, numbers=NUMBERS, config=config, others=MEMBERS - DEVICES))
        ring = one.keys.parent / "keyring.abk"
        made = [
            Neighbour(number, one.folder / f"n{number}", ring, one.hub.path(number), program)
            for number, program in ((HONEST, AGENT), (LYING, LIAR))
        ]
        for neighbour in made:
            stack.callback(neighbour.close)
        one.start([neighbour.key() for neighbour in made])
        for neighbour in made:
            neighbour.join(one.folder / "site.abm")
        one.until("all see each other", lambda: up(one.status(0)) == up(one.status(DEVICES - 1)) == MEMBERS, 180)
        neighbour, liar = made
        yield one, neighbour, liar


def test_a_liar_among_six_neither_stops_the_update_nor_lets_anybody_go_down_beyond_the_budget(
    site: tuple[Site, Neighbour, Neighbour],
) -> None:
    lan, neighbour, liar = site
    since_s = lan.hub.heard[-1].at_s
    # Five of the six: the plan must not need the liar's word.
    order = propose(lan, "v2", "--source", str(lan.bundle("v2").resolve()), "--share", "80")

    def over() -> dict[str, Any]:
        neighbour.go_on()
        return closed_plan(lan, order)

    done = lan.until("the plan is closed", over, 1000)
    assert (done["how"], done["completed"], done["reverted"]) == ("done", MEMBERS, 0)
    judge(lan, since_s)

    # The honest ones went through with it, and the liar never did.
    logs = [agreed(neighbour.ask("fleet", "log"))]
    for number in range(DEVICES):
        assert lan.boots(number) == ["A confirmed", "B trial"]
        assert slot_b(json.loads(lan.check(number, "abupdate --json status"))) == ("confirmed", "2.0.0")
        logs.append(agreed(json.loads(lan.check(number, "abupdate --json fleet log"))))
    assert slot_b(neighbour.ask("status")) == ("confirmed", "2.0.0")
    assert slot_b(liar.ask("status")) == ("written", "2.0.0")
    assert not liar.member.reboots
    assert all(log == logs[0] for log in logs), logs
    assert sorted(ended(logs[0])) == [f"n{number}" for number in range(MEMBERS)]

    # It did lie, as seen on its cable: two votes in one step, COMPLETE for whoever.
    said = [one for one in lan.hub.heard if one.port == LYING]
    assert {one.source for one in said if one.type is Type.COMPLETE} > {LYING}
    assert {kind for kind, _, _ in twice(said)} == {Type.PREVOTE, Type.PRECOMMIT}
    accused = [set(re.findall(r"node (\d+) has voted twice", lan.devices[number].console.text)) for number in range(DEVICES)]
    accused.append(set(re.findall(r"node (\d+) has voted twice", neighbour.member.log)))
    assert set().union(*accused) == {str(LYING)}, accused


def slot_b(status: dict[str, Any]) -> tuple[str, str]:
    """State and version of slot B in the document of `status`."""
    slot = status["slots"]["B"]
    return str(slot["state"]), str(slot["version"])


def twice(said: list[Heard]) -> set[tuple[Type, int, int]]:
    """Steps (type, height, round) in which the liar, in its own name, voted for more than one thing."""
    values: dict[tuple[Type, int, int], set[bytes]] = defaultdict(set)
    for one in said:
        message = frame.parse(one.data).message
        if one.source == LYING and isinstance(message, Vote):
            values[one.type, message.height, message.round].add(message.value)
    return {step for step, found in values.items() if len(found) > 1}
