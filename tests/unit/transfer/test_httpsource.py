"""Bundles over HTTP on the loopback: whole transfers, ones that break off, servers that answer oddly or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from abupdate.errors import AbupdateError, ConfigError, Failed
from abupdate.transfer.httpsource import HttpSource
from abupdate.transfer.sources import open_source
from tests.workstation import Kit, Workstation

DATA = bytes(range(256)) * 800

Answer = Callable[["Handler", list[str]], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says."""

    answer: Answer
    ranges: list[str]

    def do_GET(self) -> None:
        self.ranges.append(self.headers.get("Range", ""))
        type(self).answer(self, self.ranges)

    def log_message(self, *words: object) -> None:
        return

    def head(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """A server on the loopback; its URL and the Range headers that it has seen."""
    ranges: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("One", (Handler,), {"answer": answer, "ranges": ranges}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/some/bundle.abu?x=1", ranges
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def whole(handler: Handler, ranges: list[str]) -> None:
    handler.head(Content_Length=len(DATA))
    handler.wfile.write(DATA)


def resuming(piece: int) -> Answer:
    """Gives so many bytes for each request, and understands ranges."""

    def answer(handler: Handler, ranges: list[str]) -> None:
        start = int(ranges[-1].removeprefix("bytes=").rstrip("-") or 0)
        if start:
            assert handler.headers["If-Range"] == '"v1"'
            handler.head(206, Content_Length=len(DATA) - start, Content_Range=f"bytes {start}-{len(DATA) - 1}/{len(DATA)}", ETag='"v1"')
        else:
            handler.head(Content_Length=len(DATA), ETag='"v1"')
        handler.wfile.write(DATA[start : start + piece])

    return answer


def fetch(url: str, timeout_s: float = 5.0) -> bytes:
    with HttpSource(url, timeout_s=timeout_s, first_wait_s=0.0) as source:
        return source.read(len(DATA) + 10)


def test_a_whole_transfer() -> None:
    with serving(whole) as (url, ranges), HttpSource(url) as source:
        assert (source.size_bytes, source.seekable, source.position) == (len(DATA), False, 0)
        assert source.read(10) == DATA[:10]
        assert source.skip(300) == 300
        assert not source.silent(0)
        assert source.read(1 << 20) == DATA[310:]
        assert source.position == len(DATA)
        assert source.silent(0), "nobody waits for the server to close"
        assert source.read(1) == b""
    assert ranges == [""]


def test_a_transfer_that_breaks_off_again_and_again_goes_on_where_it_stopped() -> None:
    with serving(resuming(30000)) as (url, ranges):
        assert fetch(url) == DATA
    assert ranges == ["", *(f"bytes={at}-" for at in range(30000, len(DATA), 30000))]


def test_a_server_without_ranges_starts_again_and_no_byte_counts_twice() -> None:
    def answer(handler: Handler, ranges: list[str]) -> None:
        handler.head(Content_Length=len(DATA))
        handler.wfile.write(DATA[: 100000 * len(ranges)])

    with serving(answer) as (url, ranges):
        assert fetch(url) == DATA
    assert ranges == ["", "bytes=100000-", "bytes=200000-"]


def test_a_length_that_changes_is_another_bundle() -> None:
    def answer(handler: Handler, ranges: list[str]) -> None:
        handler.head(Content_Length=len(DATA) + len(ranges))
        handler.wfile.write(DATA[:1000])

    with serving(answer) as (url, _), pytest.raises(Failed, match="has changed"):
        fetch(url)


def test_without_a_length_the_end_is_where_the_stream_ends() -> None:
    def answer(handler: Handler, ranges: list[str]) -> None:
        handler.head()
        handler.wfile.write(DATA)

    with serving(answer) as (url, _), HttpSource(url) as source:
        assert source.size_bytes is None
        assert not source.silent(0)
        assert source.read(1 << 20) == DATA


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (503, 6), (429, 6)])
def test_a_server_that_says_no(status: int, tries: int) -> None:
    with serving(lambda handler, ranges: handler.head(status, Content_Length=0)) as (url, ranges):
        with pytest.raises(Failed, match=f"the server says {status}"):
            fetch(url)
        assert len(ranges) == tries


def test_a_server_that_falls_silent_is_given_up_after_a_few_tries() -> None:
    done = threading.Event()

    def answer(handler: Handler, ranges: list[str]) -> None:
        handler.head(Content_Length=len(DATA))
        handler.wfile.write(DATA[:1000] if len(ranges) == 1 else b"")
        handler.wfile.flush()
        done.wait(20)

    with serving(answer) as (url, ranges):
        try:
            with pytest.raises(Failed, match="no answer") as caught:
                fetch(url, timeout_s=0.05)
        finally:
            done.set()
    assert caught.value.hint
    assert len(ranges) > 1


def test_nobody_listens() -> None:
    with serving(whole) as (url, _):
        pass
    with pytest.raises(Failed, match="refused"):
        fetch(url)


def test_a_redirect_is_followed_and_a_circle_is_not() -> None:
    def once(handler: Handler, ranges: list[str]) -> None:
        if "there" in handler.path:
            whole(handler, ranges)
        else:
            handler.head(302, Location="/there", Content_Length=0)

    with serving(once) as (url, _):
        assert fetch(url) == DATA
    with (
        serving(lambda handler, ranges: handler.head(302, Location="/x", Content_Length=0)) as (url, ranges),
        pytest.raises(Failed, match="redirects more than 5 times"),
    ):
        fetch(url)
    assert len(ranges) == 6


def test_a_redirect_leads_to_no_file() -> None:
    with (
        serving(lambda handler, ranges: handler.head(302, Location="file:///etc/passwd", Content_Length=0)) as (url, _),
        pytest.raises(ConfigError, match=r"no http\(s\) URL"),
    ):
        fetch(url)


def test_cancel_ends_a_read_that_waits_in_another_thread() -> None:
    done = threading.Event()

    def answer(handler: Handler, ranges: list[str]) -> None:
        handler.head(Content_Length=len(DATA))
        handler.wfile.write(DATA[:1000])
        handler.wfile.flush()
        done.wait(20)

    with serving(answer) as (url, _), HttpSource(url, timeout_s=60) as source:
        assert source.read(1000) == DATA[:1000]
        ended: list[AbupdateError] = []

        def wait() -> None:
            try:
                source.read(1)
            except AbupdateError as error:
                ended.append(error)

        reader = threading.Thread(target=wait)
        reader.start()
        source.cancel()
        reader.join(10)
        done.set()
        assert not reader.is_alive()
        assert "interrupted" in ended[0].message


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/x",
        "http://",
        "http:///x",
        "http://host:port/x",
        "http://host:0/x",
        "http://ho st/x",
        "http://user:word@host/x",
        "file:///etc/passwd",
    ],
)
def test_what_is_no_url_of_a_bundle(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_source(url)
    assert caught.value.hint
    assert "word" not in caught.value.message


def test_flash_from_a_url(workstation: Workstation, kit: Kit) -> None:
    bundle = kit["v2"].read_bytes()

    def answer(handler: Handler, ranges: list[str]) -> None:
        handler.head(Content_Length=len(bundle))
        handler.wfile.write(bundle)

    with serving(answer) as (url, _):
        workstation.ok("flash", url)
    assert workstation.holds("B", "v2")
    with serving(lambda handler, ranges: handler.head(404, Content_Length=0)) as (url, _):
        workstation.ok("revert")
        done = workstation.run("flash", url)
    assert (done.code, done.err.count("\n"), "the server says 404" in done.err) == (1, 1, True)
