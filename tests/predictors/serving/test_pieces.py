"""Answers in pieces on one connection: their bytes, and callers that are behind or leave."""

from typing import Any

import pytest
from connection_bench import Bench
from hyperframe.frame import DataFrame, HeadersFrame, RstStreamFrame, WindowUpdateFrame
from torpor.predictors.serving.exchange import Exchange
from torpor.predictors.serving.http1 import PROGRESS_S, Http1
from torpor.predictors.serving.http2 import Http2

HEAD = b"POST /model HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
INTERNAL = 2


@pytest.fixture
def begun(bench) -> tuple[Bench, Exchange]:
    """An answer by HTTP/1.1 of which the head has gone."""
    at = bench(Http1)
    at.say(HEAD)
    (exchange,) = at.app.asked
    exchange.begin(200, ((b"x-own", b"1"),))
    assert at.written().endswith(b"\r\nx-own: 1\r\n\r\n")
    return at, exchange


@pytest.fixture
def begun_http2(bench) -> tuple[Bench, Exchange]:
    at = bench(Http2)
    at.frames(at.post(1, b"/model", ends=True))
    (exchange,) = at.app.asked
    exchange.begin(200)
    at.sent()
    return at, exchange


def test_chunks_end_with_an_empty_one_that_no_piece_is(begun) -> None:
    """An empty piece is none; the next request on the connection is answered after the end."""
    at, exchange = begun
    at.say(HEAD)
    for piece in (b"a" * 17, b"", b"b"):
        assert exchange.send(piece)
    assert at.written() == b"11\r\n" + b"a" * 17 + b"\r\n1\r\nb\r\n"
    assert len(at.app.asked) == 1
    exchange.end()
    assert at.written() == b"0\r\n\r\n"
    assert len(at.app.asked) == 2
    assert at.server.in_flight == 1


def test_a_second_answer_breaks_the_first_off(begun, begun_http2) -> None:
    """Neither goes on: HTTP/1.1 ends without the last chunk, HTTP/2's stream is reset."""
    at, exchange = begun
    exchange.send(b"a")
    exchange.respond(500, b"no")
    exchange.send(b"b")
    exchange.end()
    assert at.written() == b"1\r\na\r\n"
    assert at.transport.ended == "half"
    assert at.server.in_flight == 0
    at, exchange = begun_http2
    exchange.send(b"a")
    exchange.respond(500, b"no")
    exchange.end()
    data, reset = at.sent()
    assert isinstance(data, DataFrame)
    assert isinstance(reset, RstStreamFrame)
    assert reset.error_code == INTERNAL
    assert at.server.in_flight == 0


def test_the_last_piece_ends_an_http2_stream(begun_http2) -> None:
    """By an empty frame, or by that of what had to wait."""
    at, exchange = begun_http2
    exchange.send(b"a")
    exchange.end()
    first, last = at.sent()
    assert (first.data, "END_STREAM" in first.flags) == (b"a", False)
    assert (last.data, "END_STREAM" in last.flags) == (b"", True)
    at.frames(at.post(3, b"/model", ends=True))
    exchange = at.app.asked[-1]
    exchange.begin(200)
    exchange.send(bytes(70000))
    exchange.end()
    assert not any("END_STREAM" in frame.flags for frame in at.sent())
    at.frames(WindowUpdateFrame(0, window_increment=70000), WindowUpdateFrame(3, window_increment=70000))
    assert "END_STREAM" in at.sent()[-1].flags
    assert at.server.in_flight == 0


def behind(exchange: Exchange, piece: bytes) -> list[str]:
    """Send a piece that a caller does not take; what is called when it has."""
    called: list[str] = []
    assert not exchange.send(piece)
    exchange.on_ready = lambda: called.append("ready")
    assert not called
    return called


def test_who_has_caught_up_is_told_of_once(begun, begun_http2) -> None:
    """When the transport has taken all, or the windows."""
    at, exchange = begun
    at.transport.on_write = at.connection.pause_writing
    called = behind(exchange, b"a")
    at.transport.on_write = lambda: None
    at.connection.resume_writing()
    at.connection.resume_writing()
    assert called == ["ready"]
    at, exchange = begun_http2
    called = behind(exchange, bytes(70000))
    at.frames(WindowUpdateFrame(0, window_increment=70000))
    assert not called
    at.frames(WindowUpdateFrame(1, window_increment=70000))
    assert called == ["ready"]


@pytest.mark.parametrize("end", ["leaves", "end", "respond"])
def test_who_leaves_or_is_done_holds_nobody_up(begun, begun_http2, end: str) -> None:
    """Whatever waits for it need not."""
    at, exchange = begun
    at.transport.on_write = at.connection.pause_writing
    called = behind(exchange, b"a")
    _end(end, exchange, lambda: at.connection.connection_lost(None))
    assert called == ["ready"]
    at, exchange = begun_http2
    called = behind(exchange, bytes(70000))
    _end(end, exchange, lambda: at.frames(RstStreamFrame(1, 8)))
    assert called == ["ready"]
    assert exchange.send(b"a")


def _end(how: str, exchange: Exchange, leave: Any) -> None:
    if how == "leaves":
        leave()
    elif how == "end":
        exchange.end()
    else:
        exchange.respond(500, b"")


def test_who_takes_nothing_is_cut_off(begun, begun_http2) -> None:
    """After as long as for any answer."""
    at, exchange = begun
    left: list[str] = []
    exchange.on_leave = lambda: left.append("left")
    at.transport.on_write = at.connection.pause_writing
    behind(exchange, b"a")
    at.later(PROGRESS_S - 1)
    assert at.transport.ended == ""
    at.later(1)
    assert at.transport.ended == "aborted"
    at.connection.connection_lost(None)
    assert left == ["left"]
    at, exchange = begun_http2
    exchange.on_leave = lambda: left.append("left")
    behind(exchange, bytes(70000))
    at.later(PROGRESS_S)
    assert left == ["left", "left"]


def test_who_takes_a_little_of_much_is_not(begun) -> None:
    """Though more has come on top meanwhile."""
    at, exchange = begun
    at.transport.untaken_bytes = 100
    at.transport.on_write = at.connection.pause_writing
    behind(exchange, b"a")
    at.transport.on_write = lambda: None
    exchange.send(bytes(1000))
    at.transport.untaken_bytes = 1050
    at.later(PROGRESS_S)
    assert at.transport.ended == ""


def test_a_head_is_sent_once(begun_http2) -> None:
    """And nothing begins for who has left."""
    at, exchange = begun_http2
    at.frames(RstStreamFrame(1, 8))
    exchange.begin(200)
    exchange.send(b"a")
    exchange.end()
    assert not [frame for frame in at.sent() if isinstance(frame, HeadersFrame | DataFrame)]
