"""The drawing of what a site did."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from qemu.timeline import Mark, Span, What, svg

SVG = "{http://www.w3.org/2000/svg}"


def drawn(spans: list[Span], marks: list[Mark]) -> ElementTree.Element:
    return ElementTree.fromstring(svg(["gw <1>", "gw2"], spans, marks, "a & b"))


def titles(root: ElementTree.Element) -> list[str]:
    return [str(title.text) for title in root.iter(f"{SVG}title")]


def test_every_span_and_mark_is_there_with_its_times_from_the_first_one_on() -> None:
    root = drawn([Span(0, What.LEASE, 100.0, 160.0), Span(0, What.DOWN, 110.0, 120.0)], [Mark(1, What.REVERTED, 150.0)])
    assert sorted(titles(root)) == ["gw <1>: down, 10 to 20 s", "gw <1>: lease, 0 to 60 s", "gw2: reverted at 50 s"]


def test_a_span_is_as_wide_as_it_was_long() -> None:
    root = drawn([Span(0, What.LEASE, 0.0, 100.0), Span(1, What.TRIAL, 25.0, 75.0)], [])
    widths = {rect[0].text: float(rect.attrib["width"]) for rect in root.iter(f"{SVG}rect") if len(rect)}
    assert widths["gw2: trial, 25 to 75 s"] * 2 == pytest.approx(widths["gw <1>: lease, 0 to 100 s"])


def test_a_moment_is_still_seen_and_nothing_is_no_drawing() -> None:
    root = drawn([Span(0, What.DOWN, 5.0, 5.0)], [])
    assert any(float(rect.attrib["width"]) == 1.0 for rect in root.iter(f"{SVG}rect") if len(rect))
    with pytest.raises(ValueError, match="nothing"):
        svg(["n0"], [], [], "")
