"""The classes of bad and odd Ed25519 signatures that test suites for it know, in cases of our own; the judge is edwards.py."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from abupdate.errors import Refused
from abupdate.formats import signature
from tests.formats.edwards import BASE, SMALL, Key, L, P, add, encode, is_good, key, number_of, points_at, times

SEED = bytes(range(32))
OUR_KEY = key(SEED)
MESSAGE = b"abupdate bundle 1\0" + bytes(32)
# Order 2, 4 and 8.
TORSION = {order: next(point for point in SMALL if times(order, point) == (0, 1) != times(order // 2, point)) for order in (2, 4, 8)}


def nonces() -> Iterator[int]:
    """Numbers for nonces, the same in every run."""
    source = random.Random(25519)
    return (source.randrange(1, L) for _ in itertools.count())


def s_of(value: bytes) -> int:
    """The second half of a signature."""
    return int.from_bytes(value[32:], "little")


def with_s(value: bytes, s: int) -> bytes:
    """The signature with another second half."""
    return value[:32] + s.to_bytes(32, "little")


def judged(public: bytes, value: bytes, message: bytes = MESSAGE) -> bool:
    """What verify says; the judge must say the same."""
    found = signature.verify(public, value, message)
    assert found == is_good(public, value, message)
    return found


GOOD = OUR_KEY.sign(MESSAGE, next(nonces()))


def test_the_judge_knows_the_library_s_signatures() -> None:
    private = Ed25519PrivateKey.from_private_bytes(SEED)
    assert private.public_key().public_bytes_raw() == OUR_KEY.public
    assert is_good(OUR_KEY.public, private.sign(MESSAGE), MESSAGE)
    assert judged(OUR_KEY.public, GOOD)


@pytest.mark.parametrize("message", [b"", b"\0", b"\xff", *(b"x" * n for n in (31, 32, 33, 47, 48, 63, 64, 111, 112, 127, 128, 129, 5000))])
def test_messages_of_every_length_and_another_message(message: bytes) -> None:
    value = OUR_KEY.sign(message, 12345)
    assert judged(OUR_KEY.public, value, message)
    for other in (message + b"\0", message[:-1] if message else b" ", message[::-1] + b"x"):
        assert not judged(OUR_KEY.public, value, other)


def test_every_flipped_bit_of_signature_key_and_message() -> None:
    whole = OUR_KEY.public + GOOD + MESSAGE
    assert signature.verify(whole[:32], whole[32:96], whole[96:])
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not signature.verify(bytes(flipped[:32]), bytes(flipped[32:96]), bytes(flipped[96:])), bit


def test_lengths() -> None:
    for length in range(140):
        value = (GOOD + bytes(80))[:length]
        assert signature.verify(OUR_KEY.public, value, MESSAGE) is (length == 64)
    for value in (b"\0" + GOOD, GOOD + b"\0", GOOD + GOOD, b"\0" + GOOD[:-1], GOOD[1:], GOOD[1:] + b"\0", GOOD[32:] + GOOD[:32]):
        assert not judged(OUR_KEY.public, value)
    for public in (b"", OUR_KEY.public[:-1], OUR_KEY.public + b"\0", b"\0" + OUR_KEY.public, b"\x04" + OUR_KEY.public):
        assert not judged(public, GOOD)


def test_a_zero_that_is_left_out() -> None:
    """Numbers of a fixed length, however small they are: a sparing encoder's and a padding one's signatures are none."""
    low = next(value for value in (OUR_KEY.sign(MESSAGE, nonce) for nonce in nonces()) if not value[63])
    assert judged(OUR_KEY.public, low)
    for value in (low[:63], low[:32] + b"\0" + low[32:63], low[:32] + low[32:63][::-1]):
        assert not judged(OUR_KEY.public, value)


@pytest.mark.parametrize("factor", range(1, 16))
def test_s_that_is_not_reduced(factor: int) -> None:
    """S + nL solves the equation too: whoever took it would have many signatures for one."""
    s = s_of(GOOD) + factor * L
    assert times(s % L, BASE) == times(s_of(GOOD), BASE)
    if s < 2**256:
        assert not judged(OUR_KEY.public, with_s(GOOD, s))
    else:
        assert factor == 15, "the last one that may not fit"


@pytest.mark.parametrize(
    "s", [0, 1, L - 1, L, L + 1, 2 * L, 2**252, 2**253, 2**254, 2**255 - 1, 2**255, 2**256 - 1, P, P - 1, L - s_of(GOOD)]
)
def test_special_values_of_s(s: int) -> None:
    assert not judged(OUR_KEY.public, with_s(GOOD, s))


@pytest.mark.parametrize("bits", [1 << bit for bit in range(252, 256)] + [0xE0 << 248, 0xF0 << 248])
def test_bits_set_in_the_high_part_of_s(bits: int) -> None:
    assert not judged(OUR_KEY.public, with_s(GOOD, s_of(GOOD) | bits))


def test_s_just_below_and_at_the_order() -> None:
    """Good signatures whose S is exactly what the rule turns on: the nonce is made to fit a key whose secret is known."""
    for s in (1, 2**252 - 1, 2**252, L - 1):
        # R is free, the key is not: a = (s - r) / h, where h must not depend on a. So the key signs under another's name.
        r = encode(times(7, BASE))
        h = number_of(r, OUR_KEY.public, MESSAGE)
        value = r + s.to_bytes(32, "little")
        point = times((s - 7) * pow(h, -1, L) % L, BASE)
        # The equation holds for that point with this h; for the key that was hashed it does not.
        assert times(s, BASE) == add(times(7, BASE), times(h, point))
        assert not judged(OUR_KEY.public, value)
    # S of every size that honest signing gives is taken.
    for nonce in itertools.islice(nonces(), 12):
        assert judged(OUR_KEY.public, OUR_KEY.sign(MESSAGE, nonce))
    assert judged(OUR_KEY.public, OUR_KEY.sign(MESSAGE, 1))
    assert judged(OUR_KEY.public, OUR_KEY.sign(MESSAGE, L - 1))


def test_what_the_library_is_never_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses some of it itself, today and in this version."""
    monkeypatch.setattr(Ed25519PublicKey, "from_public_bytes", None)
    careless = (P + 3).to_bytes(32, "little")
    for value in (with_s(GOOD, s_of(GOOD) + L), with_s(GOOD, L), careless + GOOD[32:], encode((0, 1)) + GOOD[32:], bytes(64), GOOD[:63]):
        assert not signature.verify(OUR_KEY.public, value, MESSAGE)
    for public in (careless, encode((0, 1)), bytes(32), OUR_KEY.public[:31]):
        assert not signature.verify(public, GOOD, MESSAGE)
    with pytest.raises(TypeError):
        signature.verify(OUR_KEY.public, with_s(GOOD, L - 1), MESSAGE)


def test_special_values_of_r() -> None:
    strange = [bytes(32), b"\xff" * 32, encode((0, 1)), OUR_KEY.public, encode(BASE), bytes(31) + b"\x80", (P).to_bytes(32, "little")]
    strange += [(P + y).to_bytes(32, "little") for y in range(19)] + [(P - 1).to_bytes(32, "little"), (2**255 - 1).to_bytes(32, "little")]
    for r in strange:
        for s in (bytes(32), GOOD[32:], (1).to_bytes(32, "little")):
            assert not judged(OUR_KEY.public, r + s)
    assert not judged(OUR_KEY.public, bytes([*GOOD[:31], GOOD[31] ^ 0x80]) + GOOD[32:]), "the other x of the same y"
    assert not judged(OUR_KEY.public, OUR_KEY.sign(MESSAGE, 0)), "R is the point at zero: with it the secret could be read off"


@pytest.mark.parametrize("y", [y for y in range(19) if points_at(y)])
def test_points_that_are_not_canonical(y: int) -> None:
    """y + p stands for y in a careless decoder."""
    for odd in (0, 1):
        careless = (y + P | odd << 255).to_bytes(32, "little")
        with pytest.raises(Refused):
            signature.check_public_key(careless)
        assert not judged(careless, GOOD)
        assert not judged(OUR_KEY.public, careless + GOOD[32:])


@pytest.mark.parametrize("y", [1, P - 1])
def test_zero_has_no_sign(y: int) -> None:
    careless = (y | 1 << 255).to_bytes(32, "little")
    with pytest.raises(Refused):
        signature.check_public_key(careless)
    assert not judged(careless, careless + bytes(32))


def test_numbers_that_are_on_no_point() -> None:
    for y in (y for y in range(2, 40) if not points_at(y)):
        raw = y.to_bytes(32, "little")
        assert not judged(raw, GOOD)
        assert not judged(OUR_KEY.public, raw + GOOD[32:])


@pytest.mark.parametrize("order", TORSION)
def test_a_point_of_small_order_in_r(order: int) -> None:
    """Good only where both sides are multiplied by 8: two verifiers could disagree about it, so it is none."""
    for nonce in itertools.islice(nonces(), 4):
        assert not judged(OUR_KEY.public, OUR_KEY.sign(MESSAGE, nonce, plus=TORSION[order]))


@pytest.mark.parametrize("order", TORSION)
def test_a_point_of_small_order_in_the_key(order: int) -> None:
    """Whether such a key's signature is good depends on the message; nobody but its holder can make one."""
    odd = key(SEED, plus=TORSION[order])
    taken = []
    for nonce in itertools.islice(nonces(), 24):
        value = odd.sign(MESSAGE, nonce)
        even = number_of(value[:32], odd.public, MESSAGE) % order == 0
        assert judged(odd.public, value) is even
        taken.append(even)
    assert True in taken
    assert False in taken
    assert not judged(odd.public, GOOD)
    assert not judged(OUR_KEY.public, odd.sign(MESSAGE, 99))


@pytest.mark.parametrize("point", SMALL)
def test_a_key_of_small_order_signs_nothing(point: tuple[int, int]) -> None:
    """With 1 in 8 messages, or with all of them, anybody could sign under it."""
    weak = Key(0, point)
    for nonce in itertools.islice(nonces(), 8):
        assert not judged(weak.public, weak.sign(MESSAGE, nonce))
    for other in SMALL:
        assert not judged(weak.public, encode(other) + bytes(32))


def test_other_keys() -> None:
    for seed in (bytes(32), b"\xff" * 32, bytes(reversed(range(32)))):
        other = key(seed)
        assert judged(other.public, other.sign(MESSAGE, 3))
        assert not judged(other.public, GOOD)
        assert not judged(OUR_KEY.public, other.sign(MESSAGE, 3))
        # The right secret, hashed with another's name.
        assert not judged(OUR_KEY.public, Key(OUR_KEY.secret, other.point).sign(MESSAGE, 3))
    minus = (-OUR_KEY.point[0] % P, OUR_KEY.point[1])
    assert not judged(encode(minus), GOOD)


def test_a_message_that_was_hashed_before() -> None:
    """Ed25519ph and a domain in front are other schemes."""
    for other in (hashlib.sha512(MESSAGE).digest(), b"SigEd25519 no Ed25519 collisions\x01\x00" + MESSAGE):
        assert not judged(OUR_KEY.public, OUR_KEY.sign(other, 11))
