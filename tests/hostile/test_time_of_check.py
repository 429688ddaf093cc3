"""Sources that change between check and use, slots that somebody else writes to: never a byte on a slot that no signed hash covers.

`Shifting` implements the production port and shows other bytes from, at or until its k-th read, for every k that a flash makes; the
recorded writes are compared with the signed images. Then the same with real files, pipes and the real command line.
"""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from abupdate.transfer.sources import FileSource, open_source
from tests.fuzz import shapes
from tests.hostile import specimen
from tests.hostile.specimen import Specimen
from tests.hostile.victim import OLD, PLACE_BYTES, Victim
from tests.workstation import environ

Contents = Callable[[int], bytes]
Mode = Callable[[int, int], bool]
# When the other content is shown, by the number of the read and k.
MODES: dict[str, Mode] = {
    "from k on": lambda read, k: read >= k,
    "at k": lambda read, k: read == k,
    "until k": lambda read, k: read < k,
    "by turns from k on": lambda read, k: read >= k and (read - k) % 2 == 0,
}
FEW = ("from k on", "at k")


class Shifting:
    """`ports.RandomSource`, or a plain stream: its n-th read shows what `contents(n)` says. A read is torn where `torn` names it: its
    first half shows the read before's content.
    """

    def __init__(self, contents: Contents, size_bytes: int | None, torn: int | None = None) -> None:
        self._contents = contents
        self._size_bytes = size_bytes
        self._torn = torn
        self._lock = threading.Lock()
        self.position = 0
        self.reads = 0

    @property
    def size_bytes(self) -> int | None:
        """As it was at the start."""
        return self._size_bytes

    @property
    def seekable(self) -> bool:
        """A file is, a stream is not."""
        return self._size_bytes is not None

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """See ports.RandomSource."""
        with self._lock:
            number = self.reads
            self.reads += 1
        piece = self._contents(number)[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        if number == self._torn:
            half = self._contents(number - 1)[offset : offset + len(buffer)][: len(buffer) // 2]
            buffer[: len(half)] = half
        return len(piece)

    def read_into(self, buffer: memoryview) -> int:
        """See ports.Source."""
        count = self.read_at(buffer, self.position)
        self.position += count
        return count

    def skip(self, count: int) -> int:
        """See ports.Source."""
        self.position += count
        return count

    def close(self) -> None:
        """Nothing is held."""


def others(kind: str, variants: dict[str, Specimen]) -> dict[str, bytes]:
    """What the source may change into."""
    good = variants[kind].data
    parts = shapes.take_bundle_apart(good)
    assert parts is not None
    head = len(good) - len(parts.payload)
    return {
        "another good bundle": variants["other"].data.ljust(len(good), b"\0"),
        "another payload": good[:head] + bytes(byte ^ 0xFF for byte in parts.payload),
        "another head": bytes(byte ^ 1 for byte in good[:head]) + parts.payload,
        "noise": random.Random(1).randbytes(len(good)),
        "nothing": b"",
        "half": good[: len(good) // 2],
    }


def judge(victim: Victim, code: int, allowed: set[int], *candidates: dict[str, bytes]) -> None:
    """Either one bundle is there, whole, and boots; or none boots, and what was written is of one bundle."""
    assert code in allowed
    assert victim.slot_a_is_untouched()
    if code == 0:
        assert victim.bootable()
        assert any(victim.holds(images) and victim.covered(images) for images in candidates)
    else:
        assert not victim.bootable()
        assert any(victim.covered(images) for images in candidates)


def reads_of(victim: Victim, data: bytes, size_bytes: int | None) -> int:
    """How often a flash reads; chunks of several images take different threads, but never more reads."""
    source = Shifting(lambda read: data, size_bytes)
    assert victim.flash(source) == 0
    victim.reset()
    return source.reads


@pytest.mark.parametrize("seekable", [True, False], ids=["file", "stream"])
@pytest.mark.parametrize(
    ("kind", "modes"),
    [("plain", FEW)] + [pytest.param(kind, tuple(MODES), marks=pytest.mark.slow) for kind in ("plain", "chain", "sealed")],
)
def test_another_content_at_every_read(
    victim: Victim, variants: dict[str, Specimen], kind: str, modes: tuple[str, ...], seekable: bool
) -> None:
    good, images = variants[kind].data, variants[kind].images
    size_bytes = len(good) if seekable else None
    # 3: the bytes are wrong. 1: a stream ended. 0: nothing that was needed had changed, or all of it had before the first read.
    allowed = {0, 3} if seekable else {0, 1, 3}
    total = reads_of(victim, good, size_bytes)
    assert total >= 8
    refused = 0
    changes = others(kind, variants)
    if modes == FEW:
        changes = {name: changes[name] for name in ("another good bundle", "another payload", "another head", "half")}
    for other in changes.values():
        for shown in (MODES[name] for name in modes):
            for k in range(total):

                def contents(read: int, k: int = k, other: bytes = other, shown: Mode = shown) -> bytes:
                    return other if shown(read, k) else good

                code = victim.flash(Shifting(contents, size_bytes))
                judge(victim, code, allowed, images, variants["other"].images)
                refused += code != 0
                victim.reset()
    assert refused > total * len(modes) * len(changes) // 2


@pytest.mark.parametrize("seekable", [True, False], ids=["file", "stream"])
def test_a_read_that_is_torn(victim: Victim, variants: dict[str, Specimen], seekable: bool) -> None:
    """The content changes in the middle of a read."""
    good, images = variants["plain"].data, variants["plain"].images
    size_bytes = len(good) if seekable else None
    total = reads_of(victim, good, size_bytes)
    for name in ("another good bundle", "another payload"):
        other = others("plain", variants)[name]
        for k in range(1, total):

            def contents(read: int, k: int = k, other: bytes = other) -> bytes:
                return other if read >= k else good

            judge(victim, victim.flash(Shifting(contents, size_bytes, torn=k)), {0, 1, 3}, images, variants["other"].images)
            victim.reset()


# ---- files


class Meddled(FileSource):
    """A real file; somebody does something to it before its k-th read."""

    def __init__(self, path: Path, k: int, act: Callable[[], None]) -> None:
        super().__init__(path, os.open(path, os.O_RDONLY))
        self._k = k
        self._act = act
        self._reads = 0
        self._guard = threading.Lock()

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """See ports.RandomSource."""
        with self._guard:
            if self._reads == self._k:
                self._act()
            self._reads += 1
        return super().read_at(buffer, offset)


def meddle(kind: str, link: Path, other: bytes) -> Callable[[], None]:
    """What somebody does to the file behind the link."""
    path = link.resolve()

    def rename() -> None:
        path.with_name("new").write_bytes(other)
        path.with_name("new").rename(path)

    def move_link() -> None:
        link.with_name("elsewhere").write_bytes(other)
        link.unlink()
        link.symlink_to("elsewhere")

    def rewrite() -> None:
        with path.open("r+b") as file:
            file.write(other)

    def append() -> None:
        with path.open("ab") as file:
            file.write(other)

    return {
        "renamed over": rename,
        "link moved": move_link,
        "removed": lambda: path.unlink(),
        "longer": append,
        "cut": lambda: os.truncate(path, len(other) // 2),
        "emptied": lambda: os.truncate(path, 0),
        "rewritten": rewrite,
    }[kind]


@pytest.mark.parametrize("kind", ["renamed over", "link moved", "removed", "longer", "cut", "emptied", "rewritten"])
def test_a_file_that_is_meddled_with_at_every_read(victim: Victim, variants: dict[str, Specimen], kind: str) -> None:
    good, images = variants["plain"].data, variants["plain"].images
    # What comes from one descriptor is not touched by what happens to the names.
    allowed = {0} if kind in ("renamed over", "link moved", "removed", "longer") else {0, 3}
    codes = []
    for k in range(reads_of(victim, good, len(good))):
        link, path = victim.folder / "link", victim.folder / "behind"
        link.unlink(missing_ok=True)
        path.write_bytes(good)
        link.symlink_to("behind")
        with Meddled(link, k, meddle(kind, link, variants["other"].data)) as source:
            codes.append(victim.flash(source))
        # Rewritten before more than the magic was read, it is the other bundle from end to end.
        judge(victim, codes[-1], allowed, images, *([variants["other"].images] if kind == "rewritten" and k <= 1 else []))
        victim.reset()
    assert (3 in codes) == (3 in allowed)


def test_a_writer_with_the_file_in_its_memory(victim: Victim, variants: dict[str, Specimen]) -> None:
    """It changes the payload to and fro, without a call that anybody could see."""
    good, images = variants["plain"].data, variants["plain"].images
    path = victim.folder / "mapped"
    over = threading.Event()
    path.write_bytes(good)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        start = len(good) - 900

        def write() -> None:
            # With a rest after every change, or this thread would have the interpreter nearly to itself.
            while not over.wait(0.00002):
                mapped[start:] = bytes(900)
                over.wait(0.00002)
                mapped[start:] = good[start:]

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(5):
                with open_source(str(path)) as source:
                    judge(victim, victim.flash(source), {0, 3}, images)
                victim.reset()
        finally:
            over.set()
            writer.join()


# ---- pipes


def flash_fifo(victim: Victim, *writers: list[bytes]) -> int:
    """Flash a named pipe into which one writer after the other puts its pieces; each closes it in between."""
    path = victim.folder / "fifo"
    os.mkfifo(path)
    done = threading.Event()

    def write() -> None:
        for pieces in writers:
            try:
                descriptor = os.open(path, os.O_WRONLY if pieces is writers[0] else os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                return  # the reader has had enough
            try:
                for piece in pieces:
                    os.write(descriptor, piece)
            except BrokenPipeError:
                return
            finally:
                os.close(descriptor)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with open_source(str(path)) as source:
            return victim.flash(source)
    finally:
        thread.join()
        path.unlink()


def test_pipes_that_change_their_mind(victim: Victim, variants: dict[str, Specimen]) -> None:
    good, images, other = variants["plain"].data, variants["plain"].images, variants["other"].data
    bytewise = [good[at : at + 1] for at in range(len(good))]
    assert flash_fifo(victim, bytewise) == 0
    assert victim.holds(images)
    victim.reset()
    for cut in (0, 5, 96, 300, 1000, len(good) - 600, len(good) - 1):
        assert flash_fifo(victim, [good[:cut]]) == 1
        judge(victim, 1, {1}, images)
        victim.reset()
        # The end, and then more: of the same (a reader that saw no end takes it), of another bundle, of this one again.
        judge(victim, flash_fifo(victim, [good[:cut]], [good[cut:]]), {0, 1}, images)
        victim.reset()
        for more in (other[cut:], good):
            whole = good[:cut] + more in (good, other)
            judge(victim, flash_fifo(victim, [good[:cut], more]), {0} if whole else {1, 3}, images, variants["other"].images)
            victim.reset()


def test_a_stream_that_ends_and_goes_on_at_every_read(victim: Victim, variants: dict[str, Specimen]) -> None:
    good, images = variants["plain"].data, variants["plain"].images
    for k in range(reads_of(victim, good, None)):

        def contents(read: int, k: int = k) -> bytes:
            return b"" if read == k else good

        judge(victim, victim.flash(Shifting(contents, None)), {0, 1}, images)
        victim.reset()


# ---- the slot itself


def scribble(victim: Victim, image: str, offset: int) -> None:
    """Somebody else writes to the slot."""
    with victim.places["B", image].open("r+b") as file:
        file.seek(offset)
        file.write(b"somebody else was here")


def spots(variants: dict[str, Specimen]) -> Iterator[tuple[str, int]]:
    """Where each chunk starts."""
    for image, data in variants["plain"].images.items():
        for offset in range(0, len(data), specimen.BLOCK_BYTES):
            yield image, offset


@pytest.mark.parametrize("again", [False, True], ids=["to be written", "there already"])
def test_somebody_writes_to_the_slot(victim: Victim, variants: dict[str, Specimen], again: bool) -> None:
    """Each chunk is spoiled at the last moment at which the read-back can see it: exit 1, and the slot is not armed."""
    for spot in spots(variants):
        if again:
            for image, data in variants["plain"].images.items():
                victim.places["B", image].write_bytes(data.ljust(PLACE_BYTES, OLD))
        spoiled: list[tuple[str, int]] = []

        def spoil(image: str, offset: int, spot: tuple[str, int] = spot, spoiled: list[tuple[str, int]] = spoiled) -> None:
            # A batch of chunks is read in one go, from the image's start or from where zeros end.
            if victim.journal.verifying and image == spot[0] and not spoiled:
                spoiled.append(spot)
                scribble(victim, *spot)

        victim.journal.before_read = spoil
        assert victim.flash_bytes(variants["plain"].data) == 1, spot
        assert spoiled
        assert not victim.bootable()
        assert victim.slot_a_is_untouched()
        victim.reset()


def test_somebody_writes_between_our_writes(victim: Victim, variants: dict[str, Specimen]) -> None:
    """Before each write all that was written before is spoiled."""
    writes = {("rootfs", 0), ("boot", 4096), ("modem", 0)}
    seen = set()
    for number in range(1, 6):
        spoiled: list[tuple[str, int]] = []

        def spoil(image: str, offset: int, number: int = number, spoiled: list[tuple[str, int]] = spoiled) -> None:
            seen.add((image, offset))
            if len(victim.journal.writes) == number:
                spoiled.extend((name, at) for name, at, _ in victim.journal.writes)
                for name, at, _ in victim.journal.writes:
                    scribble(victim, name, at)

        victim.journal.before_write = spoil
        code = victim.flash_bytes(variants["plain"].data)
        assert (code, victim.bootable()) == ((1, False) if spoiled else (0, True))
        assert spoiled or number == 5
        victim.reset()
    assert writes <= seen


def test_the_comparison_of_writes_can_fail(victim: Victim, variants: dict[str, Specimen]) -> None:
    """What the tests above rely on."""
    images = variants["plain"].images
    assert victim.flash_bytes(variants["plain"].data) == 0
    assert victim.covered(images)
    assert not victim.covered(variants["other"].images)
    scribble(victim, "rootfs", 9000)
    assert not victim.covered(images)
    victim.reset()
    assert victim.covered(images)
    victim.journal.writes.append(("modem", 0, b"?"))
    assert not victim.covered(images)
    assert not victim.unchanged()


# ---- the real command line


def test_the_command_line_while_its_file_changes(tmp_path: Path) -> None:
    """Three devices at once, each told at its first progress that the file is not what it was."""
    contents = {image: random.Random(image).randbytes(size) for image, size in (("rootfs", 3 << 20), ("boot", 4096), ("modem", 4096))}
    (tmp_path / "made").mkdir()
    big = specimen.build(tmp_path / "made", contents=contents).data
    wanted = {"renamed over": 0, "cut": 3, "rewritten": 3}
    running: dict[str, tuple[Victim, subprocess.Popen[str]]] = {}
    for kind in wanted:
        folder = tmp_path / kind.replace(" ", "-")
        folder.mkdir()
        device = Victim(folder, 4 << 20)
        (folder / "behind").write_bytes(big)
        (folder / "link").symlink_to("behind")
        words = ["-c", folder / "config.toml", "flash", "--progress", "json", "--max-rate", "2000000", folder / "link"]
        command = [sys.executable, "-m", "abupdate", *map(str, words)]
        process = subprocess.Popen(command, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running[kind] = device, process
    for kind, (device, process) in running.items():
        assert process.stderr is not None
        first = next(line for line in process.stderr if '"write"' in line)
        assert '"done_bytes": 3' not in first
        meddle(kind, device.folder / "link", bytes(len(big)))()
    for kind, (device, process) in running.items():
        out, err = process.communicate(timeout=100)
        assert process.returncode == wanted[kind], f"{kind}: {out}{err}"
        judge(device, process.returncode, {wanted[kind]}, contents)
