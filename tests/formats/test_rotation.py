"""Rotation: every link needs the roots of both versions; what a chain may look like; what is never taken."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abupdate.errors import Refused
from abupdate.formats import keyring, rotation, signature
from abupdate.formats.signature import Domain
from abupdate.host.signing import sign_all
from abupdate.model import Signature
from tests.rings import body_of, one, pair, signed


def walked(current: bytes, chain: bytes, *, allow_test_keys: bool = False) -> list[int]:
    """Versions that a device with this keyring takes out of a chain."""
    steps = rotation.walk(keyring.parse(current), chain, allow_test_keys=allow_test_keys)
    for step in steps:
        assert keyring.parse(step.data) == step.ring
    return [step.ring.version for step in steps]


def test_a_chain_is_walked_from_any_of_its_versions() -> None:
    files = [
        one(1),
        signed(body_of(2, ("admin",)), "root", "admin"),
        signed(body_of(3, ("admin", "security"), 2), "admin", "security"),
        signed(body_of(4, ("stranger",), release="release-2"), "admin", "security", "stranger"),
    ]
    whole = b"".join(files)
    for start in range(4):
        for first in range(start + 2):
            assert walked(files[start], b"".join(files[first:])) == list(range(start + 2, 5)), (start, first)
        assert walked(files[start], b"".join(files[: start + 1])) == [], "nothing newer"
    assert walked(files[0], b"") == []
    assert b"".join(frame.data for frame in rotation.split(whole)) == whole
    assert [frame.version for frame in rotation.split(whole)] == [1, 2, 3, 4]


NAMES = ("root", "release-1", "release-2", "security", "admin", "stranger")
ROOTS_N, ROOTS_NEXT = ("root", "admin", "security"), ("security", "stranger", "release-2")


@pytest.mark.parametrize(("threshold", "next_threshold"), [(1, 1), (2, 2), (2, 1), (3, 2), (1, 3)])
def test_both_thresholds_count_distinct_root_keys(threshold: int, next_threshold: int) -> None:
    """Every set of signers of the six keys: taken exactly when both root roles are met; `security` counts in both."""
    current = signed(body_of(1, ROOTS_N, threshold), *ROOTS_N)
    body = body_of(2, ROOTS_NEXT, next_threshold)
    for count in range(len(NAMES) + 1):
        for names in combinations(NAMES, count):
            good = len(set(names) & set(ROOTS_N)) >= threshold and len(set(names) & set(ROOTS_NEXT)) >= next_threshold
            file = signed(body, *names)
            if good:
                assert walked(current, file) == [2], names
            else:
                with pytest.raises(Refused, match="root keys and needs"):
                    walked(current, file)


def test_one_short_on_either_side_says_which() -> None:
    current = signed(body_of(1, ("root", "admin"), 2), "root", "admin")
    body = body_of(2, ("security", "stranger"), 2)
    with pytest.raises(Refused, match="version 2 of the keyring: it is signed by 1 of version 1's root keys and needs 2"):
        walked(current, signed(body, "root", "security", "stranger"))
    with pytest.raises(Refused, match="version 2 of the keyring: the keyring is signed by 1 of its root keys and needs 2"):
        walked(current, signed(body, "root", "admin", "stranger"))
    assert walked(current, signed(body, "root", "admin", "security", "stranger")) == [2]


def test_other_roles_and_other_kinds_of_objects_make_no_keyring() -> None:
    body = body_of(2, ("root",))
    for name in ("release-1", "admin", "stranger"):
        with pytest.raises(Refused, match="signed by 0 of version 1's"):
            walked(one(1), signed(body, name))
    for domain in set(Domain) - {Domain.KEYRING}:
        forged = Signature(pair("root").public.raw, pair("root").sign(signature.message(domain, body)))
        with pytest.raises(Refused, match="is wrong"):
            walked(one(1), keyring.build(body, [forged]))


def test_a_wrong_signature_beside_enough_good_ones_is_refused() -> None:
    body = body_of(2, ("admin",))
    good = sign_all([pair("root"), pair("admin")], signature.message(Domain.KEYRING, body))
    assert walked(one(1), keyring.build(body, good)) == [2]
    for name, refused in (("release-1", True), ("stranger", False)):
        both = keyring.build(body, [*good, Signature(pair(name).public.raw, good[0].value)])
        if refused:
            with pytest.raises(Refused, match="is wrong"):
                walked(one(1), both)
        else:
            assert walked(one(1), both) == [2]


def test_one_signature_many_times_is_one() -> None:
    current = signed(body_of(1, ("root", "admin"), 2), "root", "admin")
    frame = rotation.split(signed(body_of(2, ("root", "admin"), 2), "root"))[0]
    with pytest.raises(Refused, match="signed by 1 of version 1's"):
        rotation.follow(keyring.parse(current), replace(frame, signatures=frame.signatures * 3))


def test_a_key_that_was_revoked_signs_no_later_version() -> None:
    second = signed(body_of(2, ("admin",)), "root", "admin")
    third = signed(body_of(3, ("root",)), "root")
    assert walked(one(1), second) == [2]
    with pytest.raises(Refused, match="signed by 0 of version 2's"):
        walked(one(1), second + third)
    with pytest.raises(Refused, match="signed by 0 of version 2's"):
        walked(second, third)


def test_nothing_of_a_chain_counts_unless_all_of_it_is_good() -> None:
    with pytest.raises(Refused):
        walked(one(1), one(2) + one(3, "stranger"))
    with pytest.raises(Refused):
        walked(one(1), one(2) + b"x")


def test_gaps_order_and_two_keyrings_of_one_version() -> None:
    first, second, third, fourth = (one(version) for version in (1, 2, 3, 4))
    with pytest.raises(Refused, match="from version 1 to version 3") as caught:
        walked(first, third)
    assert "version 2 must come between" in caught.value.hint
    with pytest.raises(Refused, match="from version 1 to version 4") as caught:
        walked(first, first + fourth)
    assert "versions 2 to 3" in caught.value.hint
    for chain in (first + third, first + third + fourth):
        with pytest.raises(Refused, match="from version 1 to version 3"):
            walked(third, chain)
    for chain in (second + first, second + second, third + second):
        with pytest.raises(Refused, match="after version"):
            walked(first, chain)
    other = signed(body_of(2, ("root",), release="release-2"), "root")
    with pytest.raises(Refused, match="not the one that this device has"):
        walked(second, other + third)
    with pytest.raises(Refused, match="not the one that this device has"):
        walked(second, first + other)
    # The same body under other signatures is the same keyring.
    assert walked(second, signed(body_of(2, ("root",)), "root", "stranger") + third) == [3]


def test_a_test_key_in_any_new_version() -> None:
    marked = signed(body_of(2, ("root",), test="release-1"), "root")
    chain = marked + one(3)
    with pytest.raises(Refused, match="test key"):
        walked(one(1), chain)
    assert walked(one(1), chain, allow_test_keys=True) == [2, 3]
    assert walked(one(2), chain.replace(marked, one(2))) == [3]


def test_the_bound_of_a_chain() -> None:
    size = len(one(1))
    count = rotation.MAX_CHAIN_BYTES // size
    chain = b"".join(one(version) for version in range(1, count + 1))
    assert walked(one(count - 1), chain) == [count]
    with pytest.raises(Refused, match="more than"):
        walked(one(count - 1), chain + one(count + 1))


def test_the_body_is_not_decoded_before_the_old_roots_signed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    current = keyring.parse(one(1))
    unsigned = rotation.split(one(2, "stranger"))[0]
    seen: list[bytes] = []
    monkeypatch.setattr(keyring, "decode", lambda frame: seen.append(frame.body))
    with pytest.raises(Refused, match="version 1's root keys"):
        rotation.follow(current, unsigned)
    assert not seen


@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_every_flipped_byte_of_a_new_version_is_refused(mask: int) -> None:
    current, data = keyring.parse(one(1)), signed(body_of(2, ("admin",)), "root", "admin")
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= mask
        with pytest.raises(Refused):
            rotation.walk(current, bytes(damaged), allow_test_keys=True)


@given(data=st.data())
def test_fuzz_gives_refusals_only(data: st.DataObject) -> None:
    current, chain = keyring.parse(one(1)), one(2) + one(3)
    start = data.draw(st.integers(0, len(chain)))
    end = data.draw(st.integers(start, len(chain)))
    mutated = chain[:start] + data.draw(st.binary(max_size=60)) + chain[end:]
    try:
        taken = b"".join(step.data for step in rotation.walk(current, mutated, allow_test_keys=True))
    except Refused:
        return
    assert chain.startswith(taken)


@pytest.mark.parametrize("body", [b"", b"\1\0\4\0\1\0\0", b"\2\0\4\0\1\0\0\0", b"\1\0\4\0\0\0\0\0", b"\1\0\2\0\1\0\0\0"])
def test_a_body_that_does_not_start_with_its_version(body: bytes) -> None:
    with pytest.raises(Refused, match=r"version|cut off"):
        walked(one(1), signed(body, "root"))
    with pytest.raises(Refused, match=r"version|cut off"):
        walked(one(1), one(1) + signed(body, "root"))
