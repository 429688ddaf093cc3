"""Draws what a site did as an SVG: nodes against time, with leases, times down, trials and how they ended. Pure: events in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from xml.sax.saxutils import escape


class What(Enum):
    """Spans (a bar) and moments (a mark)."""

    LEASE = "lease"
    DOWN = "down"
    TRIAL = "trial"
    CONFIRMED = "confirmed"
    REVERTED = "reverted"


@dataclass(frozen=True)
class Span:
    """Something that lasted. from_s, to_s: on one clock for all."""

    node: int
    what: What
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Mark:
    """Something that happened."""

    node: int
    what: What
    at_s: float


_COLOURS = {What.LEASE: "#bfdbfe", What.DOWN: "#374151", What.TRIAL: "#fbbf24", What.CONFIRMED: "#16a34a", What.REVERTED: "#dc2626"}
_HEIGHTS = {What.LEASE: 26, What.TRIAL: 14, What.DOWN: 14}
_ROW, _LEFT, _TOP, _WIDTH = 40, 70, 54, 900


def svg(names: Sequence[str], spans: Sequence[Span], marks: Sequence[Mark], title: str) -> str:
    """The drawing. Times are shown in seconds from the earliest one. Raises ValueError where there is nothing to draw."""
    times = [time for span in spans for time in (span.from_s, span.to_s)] + [mark.at_s for mark in marks]
    if not times:
        raise ValueError("there is nothing to draw")
    start, end = min(times), max(times)
    scale = _WIDTH / max(end - start, 1.0)
    height = _TOP + _ROW * len(names) + 40

    def x(time: float) -> float:
        return _LEFT + (time - start) * scale

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 20}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="white"/><text x="{_LEFT}" y="18" font-size="14">{escape(title)}</text>',
        *_legend(),
    ]
    for number, name in enumerate(names):
        middle = _TOP + _ROW * number + _ROW / 2
        parts.append(f'<text x="8" y="{middle + 4:.0f}">{escape(name)}</text>')
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{middle:.0f}" y2="{middle:.0f}" stroke="#d1d5db"/>')
    for span in sorted(spans, key=lambda one: list(What).index(one.what) if one.what is not What.DOWN else len(What)):
        high = _HEIGHTS[span.what]
        top = _TOP + _ROW * span.node + _ROW / 2 - high / 2
        wide = max((span.to_s - span.from_s) * scale, 1.0)
        label = f"{names[span.node]}: {span.what.value}, {span.from_s - start:.0f} to {span.to_s - start:.0f} s"
        parts.append(
            f'<rect x="{x(span.from_s):.1f}" y="{top:.0f}" width="{wide:.1f}" height="{high}" fill="{_COLOURS[span.what]}">'
            f"<title>{escape(label)}</title></rect>"
        )
    for mark in marks:
        middle = _TOP + _ROW * mark.node + _ROW / 2
        label = f"{names[mark.node]}: {mark.what.value} at {mark.at_s - start:.0f} s"
        parts.append(
            f'<circle cx="{x(mark.at_s):.1f}" cy="{middle:.0f}" r="6" fill="{_COLOURS[mark.what]}" stroke="white">'
            f"<title>{escape(label)}</title></circle>"
        )
    return "\n".join([*parts, *_axis(end - start, scale, _TOP + _ROW * len(names)), "</svg>", ""])


def _legend() -> list[str]:
    parts = []
    for place, (what, colour) in enumerate(_COLOURS.items()):
        left = _LEFT + 110 * place
        parts.append(f'<rect x="{left}" y="28" width="12" height="12" fill="{colour}"/><text x="{left + 18}" y="38">{what.value}</text>')
    return parts


def _axis(length_s: float, scale: float, y: float) -> list[str]:
    step = next(step for step in (1, 5, 10, 30, 60, 300, 600, 3600, 86400) if length_s / step <= 15 or step == 86400)
    parts = []
    for tick in range(0, int(length_s) + 1, step):
        left = _LEFT + tick * scale
        parts.append(f'<line x1="{left:.1f}" x2="{left:.1f}" y1="{_TOP}" y2="{y:.0f}" stroke="#f3f4f6"/>')
        parts.append(f'<text x="{left:.1f}" y="{y + 18:.0f}" text-anchor="middle">{tick} s</text>')
    return parts
