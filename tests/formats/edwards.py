"""Ed25519 by the textbook, slowly: what tests make odd keys and signatures with, and what they hold the real thing against."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]
_Projective = tuple[int, int, int]


def add(left: Point, right: Point) -> Point:
    """Addition on edwards25519."""
    return _affine(_add((*left, 1), (*right, 1)))


def times(number: int, point: Point) -> Point:
    """Scalar multiplication."""
    result: _Projective = (0, 1, 1)
    power: _Projective = (*point, 1)
    while number:
        if number & 1:
            result = _add(result, power)
        power = _add(power, power)
        number >>= 1
    return _affine(result)


def _add(left: _Projective, right: _Projective) -> _Projective:
    """The law of addition without a division: x and y are the first two numbers over the third."""
    (x1, y1, z1), (x2, y2, z2) = left, right
    z, x, y = z1 * z2 % P, x1 * x2 % P, y1 * y2 % P
    square, product = z * z % P, D * x * y % P
    below, above = square - product, square + product
    return z * below * (x1 * y2 + x2 * y1) % P, z * above * (y + x) % P, below * above % P


def _affine(point: _Projective) -> Point:
    inverse = pow(point[2], -1, P)
    return point[0] * inverse % P, point[1] * inverse % P


def points_at(y: int) -> list[Point]:
    """The points of the curve with this y, the one with even x first."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    return [] if (x * x - square) % P else sorted([(x, y), (-x % P, y)], key=lambda point: point[0] & 1)


def encode(point: Point) -> bytes:
    """32 bytes as in RFC 8032, 5.1.2."""
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def decode(data: bytes) -> Point | None:
    """The point of a canonical encoding, None for anything else."""
    number = int.from_bytes(data, "little")
    y, odd = number & ~(1 << 255), number >> 255
    found = [point for point in points_at(y) if point[0] & 1 == odd] if y < P else []
    return found[0] if found else None


def small_order_points() -> set[Point]:
    """The 8 points whose order divides 8: L times the curve's points gives nothing else."""
    found: set[Point] = set()
    y = 2
    while len(found) < 8:
        for point in points_at(y):
            torsion = times(L, point)
            found |= {times(factor, torsion) for factor in range(8)}
        y += 1
        assert y < 200
    return found


BASE = points_at(4 * pow(5, -1, P) % P)[0]
SMALL = sorted(small_order_points())


def number_of(*parts: bytes) -> int:
    """SHA-512 as a number below L."""
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % L


@dataclass(frozen=True)
class Key:
    """A secret number and the point that is published, which need not be the honest one."""

    secret: int
    point: Point

    @property
    def public(self) -> bytes:
        """The raw public key."""
        return encode(self.point)

    def sign(self, message: bytes, nonce: int, *, plus: Point = (0, 1)) -> bytes:
        """A signature with this nonce; plus: added to R."""
        r = encode(add(times(nonce, BASE), plus))
        return r + ((nonce + number_of(r, self.public, message) * self.secret) % L).to_bytes(32, "little")


def key(seed: bytes, *, plus: Point = (0, 1)) -> Key:
    """The key of a 32-byte seed as RFC 8032, 5.1.5 makes it; plus: added to the public point."""
    scalar = int.from_bytes(hashlib.sha512(seed).digest()[:32], "little") & ((1 << 254) - 8) | 1 << 254
    return Key(scalar, add(times(scalar, BASE), plus))


def is_good(public: bytes, value: bytes, message: bytes) -> bool:
    """The strict rules in one place: lengths, canonical points not of small order, S below L, and the equation without cofactor."""
    if len(public) != 32 or len(value) != 64:
        return False
    a, r, s = decode(public), decode(value[:32]), int.from_bytes(value[32:], "little")
    if a is None or r is None or a in SMALL or r in SMALL or s >= L:
        return False
    return times(s, BASE) == add(r, times(number_of(value[:32], public, message), a))
