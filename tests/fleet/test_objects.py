"""What a node looks for: bounded, and not to be filled up by a proposal that names what does not exist."""

from __future__ import annotations

from abupdate.fleet.objects import MAX_WANTED, Objects
from abupdate.formats.messages import Thing


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_facts_that_nobody_has_leave_room_for_the_rest() -> None:
    objects = Objects()
    for number in range(64):
        objects.want(Thing.FACT, digest(number), 1, 0.0, pinned=True)
    assert sum(digest(number) in objects for number in range(64)) == MAX_WANTED // 2
    objects.want(Thing.ORDER, digest(100), 2, 0.0, pinned=False)
    assert digest(100) in objects


def test_what_was_asked_for_in_vain_gives_way_to_what_is_new() -> None:
    objects = Objects()
    for number in range(2 * MAX_WANTED):
        objects.want(Thing.ENTRY, digest(number), 1, 0.0, pinned=True)
        objects.want(Thing.FACT, digest(1000 + number), 1, 0.0, pinned=True)
    for new in (Thing.ENTRY, Thing.FACT):
        objects.want(new, digest(5000 + new), 2, 0.0, pinned=True)
        assert digest(5000 + new) not in objects
    for round_ in range(4):
        assert len(list(objects.due(100.0 * (round_ + 1), [1, 2]))) == MAX_WANTED
    for new in (Thing.ENTRY, Thing.FACT):
        objects.want(new, digest(5000 + new), 2, 500.0, pinned=True)
        assert digest(5000 + new) in objects
