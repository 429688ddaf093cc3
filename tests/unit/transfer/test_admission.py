"""Versions of the updater: compared as numbers, part by part."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from abupdate.errors import Refused
from abupdate.formats.bundle import read_head
from abupdate.transfer.admission import Identity, check_device

GOLDEN = Path(__file__).parents[2] / "formats/golden/golden.abu"


def refusal(updater: str, wanted: str) -> str:
    """Why the bundle is refused, empty when it is not."""
    data = GOLDEN.read_bytes()
    manifest = replace(read_head(BytesIO(data).read, len(data)).signed.manifest, min_updater=wanted)
    try:
        check_device(manifest, Identity("golden-device", "r1", updater))
    except Refused as refused:
        return refused.message
    return ""


@pytest.mark.parametrize(
    ("updater", "wanted", "enough"),
    [
        ("0.10", "0.9", True),
        ("0.9", "0.10", False),
        ("1", "1.0.0", True),
        ("1.0.0", "1", True),
        ("1.0", "1.0.1", False),
        ("2", "1.99.99", True),
        ("0.2.dev3", "0.2", True),
        ("10", "9", True),
    ],
)
def test_versions_are_numbers(updater: str, wanted: str, enough: bool) -> None:
    assert refusal(updater, wanted) == ("" if enough else f"the bundle needs abupdate {wanted}, this is {updater}")


def test_an_updater_without_a_number_is_no_version() -> None:
    assert "'unknown' is not numbers and dots" in refusal("unknown", "0.1")
