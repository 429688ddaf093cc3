"""What a site does, as seen from outside: words on the consoles and frames on the wire, turned into the spans and marks of a timeline."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass

from abupdate.formats import entries
from abupdate.formats import frame as frame_format
from abupdate.formats.entries import GrantEntry, ReleaseEntry, ReturnEntry
from abupdate.formats.messages import Proposal
from qemu.site import HEARTBEAT_S, Site
from qemu.timeline import Mark, Span, What

_LOOK_S = 0.2
_WORDS = (
    ("boot", re.compile(r"^abupdate: slot (\w) (confirmed|trial) left", re.MULTILINE)),
    ("confirmed", re.compile(r"^abupdate\[service\]: .*slot is confirmed", re.MULTILINE)),
)


@dataclass(frozen=True)
class Word:
    """Something that a console said. at_s: time.monotonic() within a fifth of a second."""

    at_s: float
    node: int
    word: str
    slot: str = ""
    state: str = ""


class Watch:
    """Follows all consoles from its start on; use it as a context manager."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._ended = threading.Event()
        self._from_s = time.monotonic()
        self._places = [len(device.console.text) for device in site.devices]
        self.words: list[Word] = []
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(timeout=5)

    def _follow(self) -> None:
        while not self._ended.wait(_LOOK_S):
            for node, device in enumerate(self._site.devices):
                text = device.console.text
                # Only whole lines: the rest of the last one comes later.
                end = text.rfind("\n") + 1
                fresh, self._places[node] = text[self._places[node] : end], max(end, self._places[node])
                for word, pattern in _WORDS:
                    for found in pattern.finditer(fresh):
                        slot, state = found.groups() if word == "boot" else ("", "")
                        self.words.append(Word(time.monotonic(), node, word, slot, state))

    def timeline(self) -> tuple[list[Span], list[Mark]]:
        """All that was seen, as spans and marks."""
        spans, marks = self._leases(), []
        spans += [Span(node, What.DOWN, begin, end) for node, begin, end in self._site.down(self._from_s, 2.5 * HEARTBEAT_S)]
        for node in range(len(self._site.devices)):
            trial: float | None = None
            for word in sorted((one for one in self.words if one.node == node), key=lambda one: one.at_s):
                if word.word == "boot" and word.state == "trial":
                    trial = trial if trial is not None else word.at_s
                elif trial is not None:
                    what = What.CONFIRMED if word.word == "confirmed" else What.REVERTED
                    spans.append(Span(node, What.TRIAL, trial, word.at_s))
                    marks.append(Mark(node, what, word.at_s))
                    trial = None
        return spans, marks

    def _leases(self) -> list[Span]:
        """From the first proposal of each GRANT to the first one of the RELEASE or RETURN that ends it."""
        spans: list[Span] = []
        open_: dict[int, float] = {}
        for heard in self._site.hub.heard:
            if heard.at_s < self._from_s or not heard.data:
                continue
            message = frame_format.parse(heard.data).message
            if not isinstance(message, Proposal) or not message.entry:
                continue
            entry = entries.parse(message.entry)
            if isinstance(entry, GrantEntry):
                for node, _ in entry.grants:
                    open_.setdefault(node, heard.at_s)
            elif isinstance(entry, (ReleaseEntry, ReturnEntry)):
                ending = [release.node for release in entry.releases if release.node in open_]
                spans += [Span(node, What.LEASE, open_.pop(node), heard.at_s) for node in ending]
        return spans + [Span(node, What.LEASE, begin, time.monotonic()) for node, begin in open_.items()]
