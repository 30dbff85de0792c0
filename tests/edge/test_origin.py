"""Servers that do not do what they should: every call ends, and says which server and what."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mirrors import Answer, Mirrors
from torpor.edge.origin import NotThere, Origin
from torpor.predictors.errors import Unavailable
from torpor.predictors.settings import SettingError

DATA = bytes(range(250)) * 40


@pytest.fixture
def mirrors(tmp_path: Path) -> Iterator[Mirrors]:
    (tmp_path / "f").write_bytes(DATA)
    with Mirrors(tmp_path).running() as server:
        yield server


@contextmanager
def answering(*pieces: bytes, ends: bool = True) -> Iterator[str]:
    """A server that says the same to whoever comes, and then ends the connection or holds it."""
    listening = socket.create_server(("127.0.0.1", 0))
    held = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            connection.recv(1 << 16)
            try:
                for piece in pieces:
                    connection.sendall(piece)
            except OSError:
                pass
            held.append(connection) if not ends else connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()
        for connection in held:
            connection.close()


def body(origin: Origin, offset: int = 0) -> tuple[int, bytes]:
    with origin.opened("f", offset, len(DATA)) as (start, chunks):
        return start, b"".join(chunks)


def test_a_file_comes_whole_from_where_it_is_asked_for_or_as_unchanged(mirrors: Mirrors) -> None:
    """Over one connection."""
    origin = Origin(mirrors.url("a"))
    assert origin.get("f", len(DATA)) == DATA
    assert body(origin) == (0, DATA)
    assert body(origin, 9000) == (9000, DATA[9000:])
    assert origin.get_changed("f", len(DATA)) == DATA
    assert origin.get_changed("f", len(DATA)) is None
    origin.forget()
    assert origin.get_changed("f", len(DATA)) == DATA
    with pytest.raises(NotThere, match="/a/none: 404"):
        origin.get("none", 10)
    origin.close()


def test_a_server_without_ranges_begins_at_the_beginning(mirrors: Mirrors) -> None:
    mirrors.has_ranges = False
    origin = Origin(mirrors.url("a"))
    assert body(origin, 9000) == (0, DATA)
    origin.close()


@pytest.mark.parametrize(("year", "status"), [(2099, 200), (2015, 304)])
def test_a_mark_that_may_stand_for_two_contents_is_not_used(mirrors: Mirrors, year: int, status: int) -> None:
    """What changed in the second in which it was sent may change again in it."""

    def spoil(answer: Answer) -> None:
        answer.headers["Last-Modified"] = f"Thu, 01 Jan {year} 00:00:00 GMT"

    mirrors.spoil = spoil
    origin = Origin(mirrors.url("a"))
    for _ in range(2):
        origin.get_changed("f", len(DATA))
    assert mirrors.asked[-1][2] == status
    origin.close()


def spoilt(**changes: object) -> Callable[[Answer], None]:
    def spoil(answer: Answer) -> None:
        for name, value in changes.items():
            setattr(answer, name, value)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "offset", "said"),
    [
        (spoilt(status=500), 0, "500, must be 200"),
        (spoilt(status=301), 0, "301, must be 200"),
        (spoilt(cut=100), 0, "ended 9900 bytes before its end"),
        (spoilt(body=DATA + b"x"), 0, "has 10001 bytes, must have 10000"),
        (spoilt(body=b""), 0, "has 0 bytes, must have 10000"),
        (spoilt(headers={"Content-Range": "bytes 1-9999/10000"}), 9000, "Content-Range = 'bytes 1-9999/10000'"),
    ],
)
def test_another_answer_than_the_file_is_refused(
    mirrors: Mirrors, spoil: Callable[[Answer], None], offset: int, said: str
) -> None:
    """And the next call begins anew."""
    origin = Origin(mirrors.url("a"))
    mirrors.spoil = spoil
    with pytest.raises(Unavailable, match=said):
        body(origin, offset)
    mirrors.spoil = lambda answer: None
    assert body(origin)[1] == DATA
    origin.close()


def test_what_may_be_unchanged_must_be_there(mirrors: Mirrors) -> None:
    """A page that says what is wrong is no file."""
    origin = Origin(mirrors.url("a"))
    mirrors.spoil = spoilt(status=500)
    with pytest.raises(Unavailable, match="500, must be 200"):
        origin.get_changed("f", len(DATA))
    origin.close()


def test_a_small_file_has_a_largest_size_and_must_be_whole(mirrors: Mirrors) -> None:
    origin = Origin(mirrors.url("a"))
    with pytest.raises(Unavailable, match="must have at most 9999 bytes"):
        origin.get("f", 9999)
    mirrors.spoil = spoilt(cut=10)
    with pytest.raises(Unavailable, match="ended 9990 bytes before its end"):
        origin.get("f", len(DATA))
    origin.close()


ENDLESS = b"x" * (1 << 20)
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ((HEAD + b"\r\n", ENDLESS), "goes on after its 10000 bytes"),
        ((CHUNKED, b"2710\r\n" + DATA + b"\r\n1\r\nx\r\n"), "goes on after its 10000 bytes"),
        ((CHUNKED, b"1;" + b"x" * 60_000 + b"\r\nx\r\n"), "ended|IncompleteRead"),
        ((b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000,), "it does not end"),
        ((b"nonsense\r\n\r\n",), "nonsense"),
        ((b"",), "closed connection"),
    ],
)  # fmt: skip
def test_a_server_that_does_not_speak_http_or_never_ends_is_left(pieces: tuple[bytes, ...], said: str) -> None:
    with answering(*pieces) as url, pytest.raises(Unavailable, match=said):
        body(Origin(url))


def test_a_server_that_only_trickles_is_left() -> None:
    """By the bytes that came in the time; here the clock makes a minute of each look at it."""
    looks = iter(range(0, 100_000, 70))
    with answering(HEAD + b"Content-Length: 10000\r\n\r\nx", ends=False) as url:
        origin = Origin(url, lambda: float(next(looks)))
        with pytest.raises(Unavailable, match="only 0 bytes came in 70 s"):
            body(origin)


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unavailable, match=f"http://127.0.0.1:{port}/f/f: .*refused"):
        body(Origin(f"http://127.0.0.1:{port}/f/"))


@pytest.mark.parametrize("url", ["ftp://a/b", "http://", "a:80", "http://me:word@a/", "http://a:x/", "http://a/?q"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match="must be like http://HOST:PORT/FOLDER"):
        Origin(url)
