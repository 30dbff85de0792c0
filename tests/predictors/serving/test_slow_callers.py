"""Callers that are too slow, with the time in hand: what each is given, and how it is told that it is over."""

from unittest.mock import Mock

import pytest
from connection_bench import Bench, Transport
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from torpor.predictors.errors import InvalidInput
from torpor.predictors.serving import http1
from torpor.predictors.serving.http1 import HEAD_S, IDLE_S, LINGER_S, PROGRESS_S, Http1
from torpor.predictors.serving.http2 import ROUND_TRIP_S, Http2
from torpor.predictors.serving.http2_fields import encode_field
from torpor.predictors.serving.server import PATIENCE_S

MOST = 2**31 - 1

HEAD = b"POST /%b HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n"


def test_an_idle_connection_is_kept_for_minutes_and_then_closed(bench) -> None:
    """No answer: there is no question."""
    at = bench(Http1)
    assert at.later(IDLE_S - 1).transport.ended == ""
    assert at.later(2).transport.ended == "closed"
    assert not at.written()


def test_a_head_has_its_time_from_its_first_byte(bench) -> None:
    """Bytes that trickle in do not buy any: 408, and the end."""
    at = bench(Http1)
    at.later(100)
    at.say(b"GET / HT")
    at.later(HEAD_S - 1)
    at.say(b"TP/1.1\r\n")
    assert not at.written()
    assert at.later(1).written().startswith(b"HTTP/1.1 408 ")
    assert at.transport.ended == "half"
    assert at.later(LINGER_S).transport.ended == "aborted"


def test_a_body_must_go_on(bench) -> None:
    """Each piece buys time; without one 408, and what comes then is not listened to."""
    at = bench(Http1)
    at.say(HEAD % b"echo" + b"abc")
    for _ in range(3):
        at.later(PROGRESS_S - 1)
        at.say(b"d")
    assert not at.written()
    answer = at.later(PROGRESS_S).written()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer
    at.say(b"efghij" + HEAD % b"echo")
    assert not at.written()
    assert at.server.in_flight == 0


@pytest.mark.parametrize("version", [Http1, Http2])
def test_the_time_that_a_caller_gives_begins_with_its_head(bench, monkeypatch, version: type[Http1 | Http2]) -> None:
    """Not when the last of its body has come."""
    now_s = 100.0
    monkeypatch.setattr("torpor.predictors.serving.exchange.monotonic", lambda: now_s)
    at = bench(version)
    if version is Http1:
        at.say((HEAD % b"model").replace(b"Host", b"grpc-timeout: 9S\r\nHost") + b"012")
    else:
        head = at.post(1, b"/model")
        head.data += encode_field(b"grpc-timeout", b"9S")
        at.frames(head, DataFrame(1, b"012"))
    now_s += 4
    at.say(b"3456789") if version is Http1 else at.frames(DataFrame(1, b"3456789", flags=["END_STREAM"]))
    now_s += 2
    (asked,) = at.app.asked
    assert (asked.body, asked.timeout_s) == (b"0123456789", 3.0)


def test_who_waits_for_the_model_waits_as_long_as_it_takes(bench) -> None:
    """An hour, and then the answer; afterwards the connection is idle."""
    at = bench(Http1)
    at.say(HEAD % b"model" + b"0123456789")
    at.later(3600)
    assert at.transport.ended == ""
    at.app.asked[0].respond(200, b"yes")
    assert at.written().endswith(b"\r\n\r\nyes")
    assert at.later(IDLE_S - 1).transport.ended == ""
    assert at.later(1).transport.ended == "closed"


def test_who_does_not_take_its_answer_is_cut_off(bench) -> None:
    """Its next request is not begun before; nobody waits for it for ever."""
    at = bench(Http1)
    at.connection.pause_writing()
    at.say(HEAD % b"echo" + b"0123456789")
    assert not at.written()
    assert at.later(PROGRESS_S - 1).transport.ended == ""
    at.connection.resume_writing()
    assert at.written().endswith(b"0123456789")
    at.connection.pause_writing()
    assert at.later(PROGRESS_S).transport.ended == "aborted"


def test_who_takes_its_answer_slowly_gets_all_of_it(bench) -> None:
    """A large one over a slow line: what was taken buys time, once."""
    at = bench(Http1)
    at.transport.on_write = at.connection.pause_writing
    at.transport.untaken_bytes = 1 << 20
    at.say(HEAD % b"echo" + b"0123456789")
    for untaken in (1 << 19, 1 << 18):
        at.transport.untaken_bytes = untaken
        assert at.later(PROGRESS_S).transport.ended == ""
    assert at.later(PROGRESS_S - 1).transport.ended == ""
    assert at.later(1).transport.ended == "aborted"


def test_who_took_its_answer_late_is_idle_afterwards(bench) -> None:
    """From then on, as if it had taken it at once; who has not taken it is not idle."""
    at, other = bench(Http1), bench(Http1)
    for one in (at, other):
        one.transport.on_write = one.connection.pause_writing
        one.transport.untaken_bytes = 9
        one.say(HEAD % b"echo" + b"0123456789")
        one.later(PROGRESS_S - 1)
    at.transport.untaken_bytes = 0
    at.connection.resume_writing()
    assert at.later(IDLE_S - 1).transport.ended == ""
    assert at.later(1).transport.ended == "closed"
    assert other.later(1).transport.ended == "aborted"


def test_a_body_that_came_whole_is_kept_once(bench) -> None:
    """Its pieces are gone while it waits for the model, and its time to come is over."""
    at = bench(Http1)
    at.say(HEAD % b"model" + b"012")
    at.say(b"3456789")
    assert at.app.asked[0].body == b"0123456789"
    assert not at.connection._body
    assert not at.later(3600).written()


def test_each_body_may_be_as_large_as_allowed(bench) -> None:
    """Those before it on the connection do not count."""
    at = bench(Http1)
    body = bytes(at.server.max_body_bytes)
    for _ in range(2):
        at.say((HEAD % b"echo").replace(b"10", b"%d" % len(body)) + body[:9])
        at.say(body[9:])
        assert at.written().startswith(b"HTTP/1.1 200 ")


def test_who_leaves_is_told_of_once_and_only_unanswered(bench) -> None:
    """What is answered afterwards goes nowhere, and what was pipelined behind it is begun for nobody."""
    left: list[int] = []
    at, answered = bench(Http1), refused(bench(Http1), HEAD % b"model" + b"012")
    at.say((HEAD % b"model" + b"0123456789") * 2)
    at.app.asked[0].on_leave = lambda: left.append(1)
    for one in (at, answered):
        one.connection.connection_lost(None)
        one.connection.resume_writing()
        assert not one.server.connections
        assert (one.server.in_flight, one.server.unfinished_bytes) == (0, 0)
    at.app.asked[0].respond(200, b"late")
    assert not at.written()
    assert (left, len(at.app.asked)) == ([1], 1)


def test_an_answer_is_the_only_one(bench) -> None:
    """Whoever answers second answers nobody."""
    at = bench(Http1)
    at.say(HEAD % b"model" + b"0123456789")
    for body in (b"yes", b"no"):
        at.app.asked[0].respond(200, body)
    assert at.written().endswith(b"\r\n\r\nyes")
    assert at.server.in_flight == 0


def test_who_is_told_late_to_continue_has_its_time_from_then_on(bench) -> None:
    """For the body; for the model it waits as long as it takes."""
    expect = (HEAD % b"model").replace(b"Host", b"Expect: 100-continue\r\nHost")
    stopped, whole = bench(Http1), bench(Http1)
    for at in (stopped, whole):
        at.transport.on_write = at.connection.pause_writing
        at.say(expect)
        assert at.written() == b"HTTP/1.1 100 Continue\r\n\r\n"
        at.later(PROGRESS_S - 1)
    stopped.connection.resume_writing()
    assert not stopped.later(PROGRESS_S - 1).written()
    assert stopped.later(1).written().startswith(b"HTTP/1.1 408 ")
    whole.say(b"0123456789")
    whole.connection.resume_writing()
    assert not whole.later(3600).written()


def test_the_last_answer_has_as_much_time_as_any(bench) -> None:
    """Its caller's time to stop sending begins when it has been taken, in both versions."""
    first, second, third = bench(Http1), bench(Http1), bench(Http2)
    closing = CLOSING.replace(b"model", b"echo") + b"0123456789"
    third.frames(third.post(1, b"/model", ends=True))
    third.connection.shutdown()
    third.later(ROUND_TRIP_S).sent()
    for at in (first, second, third):
        at.transport.on_write = at.connection.pause_writing
    first.say(closing)
    second.say(closing)
    third.app.asked[0].respond(200, b"yes")
    assert third.written()
    for at in (second, third):
        assert at.later(PROGRESS_S - 1).transport.ended == "half"
        at.connection.resume_writing()
        assert at.later(LINGER_S - 1).transport.ended == "half"
        assert at.later(1).transport.ended == "aborted"
    assert first.later(PROGRESS_S - 1).transport.ended == "half"
    assert first.later(1).transport.ended == "aborted"


def refused(at: Bench, head: bytes) -> Bench:
    """A request that is refused when a part of its body may have come."""
    at.say(head)
    assert isinstance(at.connection, Http1)
    assert at.connection._exchange is not None
    at.app.refuse(at.connection._exchange, InvalidInput("no"))
    assert b"HTTP/1.1 400 " in at.written()
    assert at.server.unfinished_bytes == 0
    return at


def test_the_rest_of_a_refused_body_has_its_time(bench) -> None:
    """It is read for the sake of the next request; if it stops coming, there is none, and nothing is left to say."""
    at = refused(bench(Http1), HEAD % b"model" + b"012")
    for _ in range(2):
        assert at.later(PROGRESS_S - 1).transport.ended == ""
        at.say(b"3")
    assert at.later(PROGRESS_S).transport.ended == "half"
    assert at.later(LINGER_S).transport.ended == "aborted"
    assert not at.written()


def test_nothing_of_a_refused_body_is_in_the_next(bench) -> None:
    """Nor of its rest."""
    at = refused(bench(Http1), HEAD % b"model" + b"012")
    at.say(b"3456789" + HEAD % b"echo" + b"abc")
    at.say(b"defghij")
    assert at.written().endswith(b"\r\n\r\nabcdefghij")


def test_the_rest_of_a_refused_body_does_not_hold_up_the_end(bench) -> None:
    """Its answer is written: a server that ends does not wait for it."""
    at = refused(bench(Http1), HEAD % b"model" + b"012")
    at.connection.shutdown()
    assert at.transport.ended == "half"


def test_what_is_answered_is_answered_before_the_end(bench) -> None:
    """A connection that the server closes ends at once if it is idle, else when its answer is written."""
    at = bench(Http1)
    at.say(HEAD % b"model" + b"0123456789")
    at.connection.shutdown()
    assert at.transport.ended == ""
    at.server.is_shutting_down = True
    at.app.asked[0].respond(200, b"yes")
    assert at.written().endswith(b"yes")
    assert at.transport.ended == "closed"
    idle = bench(Http1)
    idle.connection.shutdown()
    assert idle.transport.ended == "closed"
    idle.say(HEAD % b"echo" + b"0123456789")
    assert not idle.written()


def test_an_answer_that_is_on_its_way_is_not_cut_off_by_the_end(bench) -> None:
    """A connection that lingers has been ended already."""
    at = bench(Http1)
    at.say(b"GET word HTTP/1.1\r\nHost: h\r\n\r\n")
    assert at.transport.ended == "half"
    at.connection.shutdown()
    assert at.transport.ended == "half"
    at.connection.abort()
    assert at.transport.ended == "aborted"


def test_pipelined_requests_wait_for_who_reads_slowly(bench) -> None:
    """The next is begun when the answer before it has been taken."""
    at = bench(Http1)
    at.transport.on_write = at.connection.pause_writing
    at.say((HEAD % b"echo" + b"0123456789") * 3)
    for _ in range(3):
        assert at.written().count(b"HTTP/1.1 200 ") == 1
        at.connection.resume_writing()
    assert not at.written()


def test_what_is_pipelined_is_read_up_to_a_bound(bench) -> None:
    """A byte more than the bound, and nothing is read until the answer before it is written."""
    at = bench(Http1)
    at.say(HEAD % b"model" + b"0123456789" + (HEAD % b"model")[:-2])
    at.say(b"x" * (http1._MOST_PIPELINED_BYTES - len(HEAD % b"model") + 2))
    assert not at.transport.is_paused
    at.say(b"x")
    assert at.transport.is_paused
    at.app.asked[0].respond(200, b"yes")
    assert not at.transport.is_paused


def test_who_pipelined_up_to_the_bound_is_read_again(bench) -> None:
    """When what it sent has its answers."""
    at = bench(Http1)
    echo = HEAD % b"echo" + b"0123456789"
    count = http1._MOST_PIPELINED_BYTES // len(echo) + 1
    at.say(HEAD % b"model" + b"0123456789" + echo[:9])
    at.say(echo[9:] + echo * (count - 1))
    assert at.transport.is_paused
    at.app.asked[0].respond(200, b"yes")
    assert at.written().count(b"HTTP/1.1 200 ") == 1 + count
    assert not at.transport.is_paused


def test_who_reads_no_answers_is_read_up_to_the_same_bound(bench) -> None:
    """Its requests wait for it to read, those beyond the bound in its own buffers."""
    at = bench(Http1)
    at.connection.pause_writing()
    at.say(b"G")
    at.say(b"x" * http1._MOST_PIPELINED_BYTES)
    assert at.transport.is_paused


@pytest.mark.parametrize(
    ("line", "head_bytes", "is_kept"),
    [
        (b"x-other: 1", 1024, True),
        (b"x-other: 1", 1025, False),
        (b"Authorization: Bearer 1", 200, False),
        (b"cookie: a=1", 200, False),
        (b"Proxy-Authorization: Basic 1", 200, False),
        (b"ce-specversion: 1.0", 200, False),
    ],
)
def test_short_heads_without_secrets_are_kept(bench, line: bytes, head_bytes: int, is_kept: bool) -> None:
    """For all connections, so nothing in them may be anybody's alone, nor take much memory; an event's comes once."""
    block = b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n" + line + b"\r\nx-filler: "
    block = block.ljust(head_bytes - 4, b"-") + b"\r\n\r\n"
    at = bench(Http1)
    at.say(block)
    assert at.written().startswith(b"HTTP/1.1 200 ")
    assert (block in http1._HEADS) is is_kept


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("more", "status"), [(0, b"200"), (1, b"431")])
def test_a_head_has_64_kib_at_most(bench, more: int, status: bytes, apart: bool) -> None:
    """The last byte that is allowed is allowed, at once or after the others; not one more."""
    block = b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nx-filler: ".ljust((64 << 10) - 4 + more, b"-")
    block += b"\r\n\r\n"
    at = bench(Http1)
    if apart:
        at.say(block[:-1])
        assert bool(at.transport.written) is bool(more)  # so much without an end will be no head
        at.say(block[-1:])
    else:
        at.say(block)
    assert at.written().startswith(b"HTTP/1.1 " + status)


CHUNKED = b"POST /model HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(("size", "ended"), [(http1._MOST_SKIPPED_BYTES, ""), (http1._MOST_SKIPPED_BYTES + 1, "half")])
def test_of_a_refused_body_in_chunks_so_much_is_read(bench, size: int, ended: str) -> None:
    """Nobody knows how long it is: beyond a bound the connection is given up."""
    at = refused(bench(Http1), CHUNKED)
    at.say(b"fffff\r\n" + b" " * size)
    assert at.transport.ended == ended


def test_a_refused_body_that_breaks_off_its_chunks_ends_the_connection(bench) -> None:
    """It has its answer, and where the next request begins is not known."""
    at = refused(bench(Http1), CHUNKED)
    at.say(b"no size\r\n" + HEAD % b"echo" + b"0123456789")
    assert at.transport.ended == "half"
    assert not at.written()


@pytest.mark.parametrize(
    ("head", "ended"),
    [
        (b"Content-Length: %d" % http1._MOST_SKIPPED_BYTES, ""),
        (b"Content-Length: %d" % (http1._MOST_SKIPPED_BYTES + 1), "half"),
        (b"Content-Length: 10\r\nExpect: 100-continue", "half"),
    ],
)
def test_a_refused_body_is_skipped_if_it_is_short_and_sure_to_come(bench, head: bytes, ended: str) -> None:
    """Who was told no instead of to continue may send it or not."""
    at = refused(bench(Http1), b"POST /model HTTP/1.1\r\nHost: h\r\n" + head + b"\r\n\r\n")
    assert at.transport.ended == ended


def test_who_sends_its_body_at_once_is_not_told_to_continue(bench) -> None:
    """It has not waited for it."""
    at = bench(Http1)
    at.say(b"POST /model HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n1")
    assert not at.written()


def test_who_has_no_body_is_not_told_to_continue(bench) -> None:
    """There is nothing that it could go on with."""
    at = bench(Http1)
    at.say(b"POST /model HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\n")
    assert len(at.app.asked) == 1
    assert not at.written()


def test_an_answer_that_has_no_body_has_no_length(bench) -> None:
    """RFC 9110, 8.6."""
    at = bench(Http1)
    at.say(HEAD % b"model" + b"0123456789")
    at.app.asked[0].respond(204, b"")
    assert at.written() == b"HTTP/1.1 204 No Content\r\ndate: \r\n\r\n"


def test_a_status_may_have_no_phrase(bench) -> None:
    """An event's answer may have any; nobody reads the words (RFC 9112, 4)."""
    at = bench(Http1)
    at.say(HEAD % b"model" + b"0123456789")
    at.app.asked[0].respond(299, b"yes")
    assert at.written().startswith(b"HTTP/1.1 299 \r\n")


def test_a_server_that_drains_keeps_no_connection(bench) -> None:
    """Its callers are told with their answers, and go elsewhere."""
    at = bench(Http1)
    at.server.is_draining = True
    at.say(HEAD % b"echo" + b"0123456789")
    assert b"\r\nconnection: close\r\n" in at.written()
    assert at.transport.ended == "half"


CLOSING = (HEAD % b"model").replace(b"Host", b"Connection: close\r\nHost")


def test_what_follows_the_last_request_is_read_until_its_caller_ends(bench) -> None:
    """Unread, it would turn the end into a reset, and that destroy the answer on its way."""
    at = bench(Http1)
    at.say(CLOSING + b"0123456789G")
    at.say(b"x" * http1._MOST_PIPELINED_BYTES)
    assert at.transport.is_paused
    at.app.asked[0].respond(200, b"yes")
    assert at.transport.ended == "half"
    assert not at.transport.is_paused


def test_over_tls_both_sides_end_with_the_last_answer(bench) -> None:
    """Unless a body is still on its way here: then its caller has some time to see the answer and stop."""
    at, early, broken = bench(Http1), bench(Http1), bench(Http1)
    at.transport.has_halves = early.transport.has_halves = broken.transport.has_halves = False
    at.say(CLOSING + b"0123456789")
    at.app.asked[0].respond(200, b"yes")
    assert at.transport.ended == "closed"
    refused(early, CLOSING + b"012")
    assert early.transport.ended == ""
    assert early.later(LINGER_S).transport.ended == "aborted"
    broken.say(CHUNKED + b"no size\r\n")
    assert broken.written().startswith(b"HTTP/1.1 400 ")
    assert broken.transport.ended == ""


def test_lines_without_cr_are_refused_at_once(bench) -> None:
    """Their end would be waited for in vain."""
    at = bench(Http1)
    at.say(b"GET /echo HTTP/1.1\nHost: h\n\n")
    answer = at.written()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nconnection: close\r\n" in answer


def test_nothing_but_line_ends_is_no_request(bench) -> None:
    """One empty line is skipped, two are refused at once."""
    at = bench(Http1)
    at.say(b"\r\n\r\n")
    assert at.written().startswith(b"HTTP/1.1 400 ")


def test_http2_settings_have_their_time(bench) -> None:
    """A preface without the settings that must follow."""
    at = bench(Http2)
    fresh = Http2(at.server)
    transport = Transport()
    fresh.connection_made(transport)  # type: ignore[arg-type]
    at.server.now_s += HEAD_S
    fresh.sweep()
    assert transport.ended == "closed"


@pytest.mark.parametrize("beside", ["nothing", "an answer"])
def test_a_head_in_pieces_has_its_time(bench, beside: str) -> None:
    """From its first frame to its last, whatever else the connection does."""
    at = bench(Http2)
    if beside == "an answer":
        at.frames(at.post(1, b"/model", ends=True))
    head = at.post(3, ends=True)
    at.frames(HeadersFrame(3, head.data[:5], flags=["END_STREAM"]))
    at.later(HEAD_S - 1)
    for exchange in at.app.asked:
        exchange.respond(200, b"yes")
    at.frames(ContinuationFrame(3, head.data[5:9]))
    assert at.transport.ended == ""
    assert at.later(1).transport.ended == "closed"


def test_a_head_that_begins_as_the_idle_time_ends_has_its_own(bench) -> None:
    """Its caller could not know."""
    at = bench(Http2)
    at.sent()
    at.later(IDLE_S - 1)
    head = at.post(1, ends=True)
    at.frames(HeadersFrame(1, head.data[:5], flags=["END_STREAM"]))
    at.later(HEAD_S - 1)
    at.frames(ContinuationFrame(1, head.data[5:], flags=["END_HEADERS"]))
    assert [frame.stream_id for frame in at.sent()] == [1]


def test_a_head_in_pieces_that_comes_whole_is_a_request(bench) -> None:
    """Its time is over with it; the model takes as long as it takes, and then the connection is idle."""
    at = bench(Http2)
    head = at.post(1, b"/model", ends=True)
    at.frames(HeadersFrame(1, head.data[:5], flags=["END_STREAM"]))
    at.later(HEAD_S - 1)
    at.frames(ContinuationFrame(1, head.data[5:], flags=["END_HEADERS"]))
    at.sent()
    assert not at.later(3600).sent()
    at.app.asked[0].respond(200, b"yes")
    assert [frame.stream_id for frame in at.sent()] == [1, 1]


def test_an_idle_http2_connection_is_told_goodbye(bench) -> None:
    """GOAWAY without an error, twice: what the caller sends before it reads the first is answered."""
    at = bench(Http2)
    at.frames(at.post(1, ends=True))
    at.sent()
    assert not at.later(IDLE_S - 1).sent()
    (goaway,) = at.later(1).sent()
    assert (goaway.last_stream_id, goaway.error_code) == (MOST, 0)
    at.frames(at.post(3), DataFrame(3, b"late", flags=["END_STREAM"]))
    assert [f.data for f in at.sent() if isinstance(f, DataFrame)] == [b"late"]
    assert at.transport.ended == ""
    (goaway,) = at.later(ROUND_TRIP_S).sent()
    assert (goaway.last_stream_id, goaway.error_code) == (3, 0)


def test_an_http2_connection_ends_in_halves(bench) -> None:
    """Bytes that come behind the last GOAWAY must not make the kernel throw away answers that are on their way."""
    at = bench(Http2)
    at.connection.shutdown()
    assert at.later(ROUND_TRIP_S).transport.ended == "half"
    at.frames(PingFrame(0, b"12345678"))
    assert at.later(LINGER_S - 1).transport.ended == "half"
    assert at.later(1).transport.ended == "aborted"


def test_only_requests_keep_a_connection(bench) -> None:
    """Else one that nobody uses would stay for as long as its client asks whether it is still there."""
    at = bench(Http2)
    at.sent()
    at.later(IDLE_S - 1)
    at.frames(PingFrame(0, b"12345678"), SettingsFrame(0), WindowUpdateFrame(0, 1))
    at.sent()
    assert [type(frame) for frame in at.later(1).sent()] == [GoAwayFrame]


def drain(at) -> None:
    at.server.loop.run_until_complete(at.server.drain())
    at.server.parting_s = at.server.now_s + PATIENCE_S  # by the test's clock
    at.sent()


def test_a_drain_ends_an_http2_connection_with_its_last_answer(bench) -> None:
    """A Service's connections stay with a pod until it says goodbye; while others wait it does not, for h2 drops them."""
    at = bench(Http2)
    drain(at)
    assert not at.later(1).sent()
    at.frames(at.post(1, b"/model", ends=True), at.post(3, ends=True))
    assert not [frame for frame in at.sent() if isinstance(frame, GoAwayFrame)]
    at.app.asked[0].respond(200, b"yes")
    *answer, goaway = at.sent()
    assert [frame.stream_id for frame in answer] == [1, 1]
    assert (goaway.last_stream_id, goaway.error_code) == (MOST, 0)


def test_a_connection_too_many_is_let_go_with_its_next_answer(bench) -> None:
    """One connection where none is to be kept."""
    first = bench(Http1)
    first.server._listener.most_connections = 0
    request = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    first.say(request)
    assert b"connection: close" in first.written()
    second = bench(Http2)
    second.server._listener.most_connections = 0
    second.frames(second.post(1, ends=True), second.post(3, ends=True))
    assert [type(frame) for frame in second.sent()[-2:]] == [GoAwayFrame, HeadersFrame]


def test_only_connections_too_many_are_let_go(bench) -> None:
    """Those that are on their way out count no more, however long that takes; whoever has gone makes no more room."""
    server = bench(Http1).server
    server._listener.most_connections = 2
    first, second, third = [Mock() for _ in range(3)]
    server.connections = {first, second, third}
    assert server.lets_go(first)
    assert not server.lets_go(second)
    server.closed(first)
    assert not server.lets_go(second)
    server.opened(first)
    assert server.lets_go(third)


def test_a_drain_ends_an_http2_connection_that_is_never_idle(bench) -> None:
    """It would stay until the end, and lose what is under way then; streams begun meanwhile are answered."""
    at = bench(Http2)
    drain(at)
    at.frames(at.post(1, b"/model", ends=True))
    assert not at.later(PATIENCE_S - 1).sent()
    (goaway,) = at.later(1).sent()
    assert (goaway.last_stream_id, goaway.error_code) == (MOST, 0)
    at.frames(at.post(3, b"/model", ends=True))
    (goaway,) = at.later(ROUND_TRIP_S).sent()
    assert (goaway.last_stream_id, goaway.error_code) == (3, 0)
    for exchange in at.app.asked:
        exchange.respond(200, b"yes")
    assert [frame.stream_id for frame in at.sent()] == [1, 1, 3, 3]
    assert at.transport.ended == "half"


def test_a_body_that_stops_ends_its_own_stream(bench) -> None:
    """408 on that stream and RST_STREAM without an error; the other stream and the connection go on."""
    at = bench(Http2)
    at.frames(at.post(1), at.post(3, b"/model", ends=True))
    at.sent()
    at.later(PROGRESS_S - 1)
    at.frames(DataFrame(1, b"abc"))
    assert not at.later(PROGRESS_S - 1).sent()
    headers, data, reset = at.later(1).sent()
    assert b"408" in headers.data
    assert b"stopped coming" in data.data
    assert (reset.stream_id, reset.error_code) == (1, 0)
    at.app.asked[0].respond(200, b"yes")
    at.frames(PingFrame(0, b"12345678"))
    assert [frame.stream_id for frame in at.sent()] == [3, 3, 0]


def test_a_body_that_never_begins_ends_its_own_stream(bench) -> None:
    """Its time begins with the head."""
    at = bench(Http2)
    at.frames(at.post(1))
    at.sent()
    assert not at.later(PROGRESS_S - 1).sent()
    assert b"408" in at.later(1).sent()[0].data


def test_an_answer_that_is_not_taken_ends_its_own_stream(bench) -> None:
    """A closed window has its time; DATA that goes out buys more."""
    at = bench(Http2)
    at.frames(SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 4}))
    at.frames(at.post(1), DataFrame(1, b"0123456789", flags=["END_STREAM"]), at.post(3, b"/model", ends=True))
    assert [f.data for f in at.sent() if isinstance(f, DataFrame)] == [b"0123"]
    at.later(PROGRESS_S - 1)
    at.frames(WindowUpdateFrame(1, 1))
    assert [f.data for f in at.sent()] == [b"4"]
    assert not at.later(PROGRESS_S - 1).sent()
    (reset,) = at.later(1).sent()
    assert (reset.stream_id, reset.error_code) == (1, 8)
    at.app.asked[0].respond(200, b"yes")
    assert at.server.in_flight == 0
    at.sent()
    assert [type(frame) for frame in at.later(IDLE_S).sent()] == [GoAwayFrame]


def test_a_message_that_is_not_taken_ends_its_call(bench) -> None:
    """Its answer has begun, so that only a reset can say so; who sends it learns that the caller is gone."""
    at = bench(Http2)
    at.frames(SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 0}), at.post(1, b"/watch"))
    (call,) = at.app.asked
    call.start_grpc()
    task = at.server.loop.create_task(call.send_message(b"message"))
    call.on_leave = task.cancel
    at.sent()
    assert not at.later(PROGRESS_S - 1).sent()
    (reset,) = at.later(1).sent()
    assert (reset.stream_id, reset.error_code) == (1, 8)
    assert not at.sent()
    assert task.cancelled()


def test_a_caller_that_does_not_read_is_cut_off(bench) -> None:
    """Nothing is read from it either, so that its frames cannot pile up answers."""
    at = bench(Http2)
    at.connection.pause_writing()
    assert at.later(PROGRESS_S - 1).transport.ended == ""
    assert at.later(1).transport.ended == "aborted"


def test_who_does_not_read_is_cut_off_whatever_it_began(bench) -> None:
    """A request behind what filled its buffers buys no time."""
    at = bench(Http2)
    at.frames(at.post(1, b"/model", ends=True), WindowUpdateFrame(0, 1 << 20))
    at.app.asked[0].respond(200, bytes(1 << 20))
    at.sent()
    at.transport.on_write = at.connection.pause_writing
    at.frames(WindowUpdateFrame(1, 1 << 20), at.post(3, b"/model", ends=True))
    assert at.later(PROGRESS_S - 1).transport.ended == ""
    assert at.later(1).transport.ended == "aborted"


def test_answers_that_come_meanwhile_buy_no_time(bench) -> None:
    """They are not taken either."""
    at = bench(Http2)
    at.frames(at.post(1, b"/model", ends=True))
    at.sent()
    at.connection.pause_writing()
    at.later(PROGRESS_S - 1)
    at.app.asked[0].respond(200, b"yes")
    assert at.later(1).transport.ended == "aborted"


def test_who_reads_again_is_served_again(bench) -> None:
    """What was held back meanwhile goes out, what it sent is read, and its connection is idle from then on."""
    at = bench(Http2)
    at.frames(at.post(1, b"/model", ends=True))
    at.sent()
    at.connection.pause_writing()
    assert at.transport.is_paused
    at.app.asked[0].respond(200, b"yes")
    at.connection.resume_writing()
    assert not at.transport.is_paused
    assert [frame.stream_id for frame in at.sent()] == [1, 1]
    assert not at.later(IDLE_S - 1).sent()
    assert [type(frame) for frame in at.later(1).sent()] == [GoAwayFrame]


def test_a_goodbye_that_is_not_taken_is_cut_off(bench) -> None:
    """A connection that was closed is gone soon, even if its caller reads no more."""
    at = bench(Http2)
    assert at.later(IDLE_S).later(ROUND_TRIP_S).transport.ended == "half"
    assert at.later(PROGRESS_S).transport.ended == "aborted"
