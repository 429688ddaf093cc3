"""What is fuzzed of a serial line: any bytes, in any pieces, into the framing and the ring. The first byte says how long a piece is."""

from __future__ import annotations

from random import Random

from abupdate.fleet.framing import MAX_ENCODED_BYTES, Deframer, burst
from abupdate.fleet.ring import Ring, Timing, Turn, with_token
from abupdate.formats import frame
from abupdate.formats.messages import Frame, Poll, Type
from tests.fleet.bus import heartbeat, vote
from tests.fuzz import fleettargets
from tests.fuzz.shapes import Bytes

ME, MEMBERS = 1, (0, 1, 2, 5, 200)
_BYTE_S = 10 / 115200
_TAG = fleettargets.GENESIS[:4]
_MAX_BURST_BYTES = 2048
_BEAT, _VOTE = heartbeat(ME), vote(Type.PREVOTE, ME)


def run_line(data: bytes) -> bool:
    """Frames come out the same whatever the pieces; nothing is kept beyond a frame; the ring always knows when it is to be asked again.

    Accepted: a frame was for the node.
    """
    size = (data[0] if data else 0) + 8
    pieces = [data[start : start + size] for start in range(1, len(data), size)]
    deframer, whole = Deframer(), Deframer()
    found: list[bytes] = []
    ring = Ring(ME, _TAG, Timing(_BYTE_S, 0.003), 0.0)
    ring.follow(1, MEMBERS)
    now_s, taken = 0.0, False
    for piece in pieces:
        now_s += len(piece) * _BYTE_S
        ring.hear_bytes(now_s)
        for one in deframer.feed(piece):
            found.append(one)
            taken |= _hear(ring, one, now_s)
        assert deframer.held_bytes <= MAX_ENCODED_BYTES
        ring.put(_BEAT, now_s, urgent=False)
        ring.put(_VOTE, now_s, urgent=True)
        now_s = _act(ring, now_s)
    assert found == whole.feed(data[1:])
    assert deframer.dropped == whole.dropped
    # Silence, and the ring goes on by itself.
    _act(ring, max(now_s, ring.wake_s))
    return taken


def _hear(ring: Ring, one: bytes, now_s: float) -> bool:
    head = frame.peek(one)
    mine = ring.turn is Turn.MINE
    for_node = ring.hear(one, now_s)
    assert not for_node or (head is not None and head.tag == _TAG and head.type is not Type.POLL)
    # Only a whole frame of this site that names this member gives it the token.
    if ring.turn is Turn.MINE and not mine:
        assert head is not None
        assert (head.token, head.to, head.tag) == (True, ME, _TAG)
    return for_node


def _act(ring: Ring, now_s: float) -> float:
    """Let it send where it wants to; the time after that."""
    wake_s = ring.wake_s
    frames = ring.act(now_s)
    assert bool(frames) == (now_s >= wake_s) or ring.turn is Turn.MINE
    if not frames:
        return now_s
    sent = burst(frames)
    assert len(sent) <= _MAX_BURST_BYTES
    heads = [frame.peek(one) for one in frames]
    assert [head is not None and head.token for head in heads] == [False] * (len(frames) - 1) + [True]
    last = heads[-1]
    assert last is not None
    assert (last.source, last.to in MEMBERS, last.to != ME) == (ME, True, True)
    return now_s + len(sent) * _BYTE_S


def mutate_line(data: bytes, chance: Random, change: Bytes) -> bytes:
    """The bytes of the line; or one of its frames, which is put in again as it should be; or frames go, come twice, change places."""
    frames = Deframer().feed(data[1:])
    first = bytes([chance.randrange(256)]) if chance.random() < 0.1 else data[:1] or b"\0"
    if not frames or chance.random() < 0.2:
        return first + change(data[1:])
    at = chance.randrange(len(frames))
    match chance.randrange(6):
        case 0:
            frames.insert(at, frames[at])
        case 1:
            del frames[at]
        case 2:
            frames.reverse()
        case _:
            frames[at] = fleettargets.mutate_frame(frames[at], chance, change)
    return first + burst(frames)


def seeds() -> list[bytes]:
    """What is heard of a ring of this site, noise between it, and nothing but noise."""

    def made(data: bytes, to: int | None = None) -> bytes:
        one = frame.parse(data)
        mine = frame.pack(Frame(one.type, one.source, one.to, _TAG, 1, 1, one.seq, one.message, one.signature))
        return mine if to is None else with_token(mine, to)

    poll = frame.pack(Frame(Type.POLL, 2, 5, _TAG, 1, 0, 0, Poll(), b"", token=True))
    talk = burst([made(heartbeat(0)), made(vote(Type.PREVOTE, 0), ME)]) + burst([poll]) + burst([made(heartbeat(5), 200)])
    return [b"\x0f" + talk, b"\x03" + talk[:150] + b"\x55" * 300 + talk + b"\xff" + talk[40:], b"\x00" + bytes(range(256)) * 2]
