"""One HTTP/2 connection without a socket: what it gives back, what it holds, and what it is asked for nothing, to the frame."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from connection_bench import Bench
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from torpor.predictors.errors import InvalidInput, PayloadTooLarge
from torpor.predictors.serving.http1 import IDLE_S, LINGER_S, PROGRESS_S
from torpor.predictors.serving.http2 import ROUND_TRIP_S, Http2, Stream
from torpor.predictors.serving.http2_fields import encode_field, status_field

TIMEOUT_S = 10
CLOSED, FLOW, SIZE, REFUSED, CALM = 5, 3, 6, 7, 11
ENDS = ["END_STREAM"]
FRAME_BYTES = 16384
STREAM_WINDOW = 1 << 20
HALF_CONNECTION_WINDOW = 8 << 20
CREDIT = 1000
"""Frames that bring nothing; the caller's first settings are one of them."""
CREDIT_PER_S = 100

MOST_WINDOW = (1 << 31) - 1
FIRST_WINDOW = 65535

BREAK = b"\0\0\x08\x06\0\0\0\0\1" + bytes(8)
"""A PING of a stream."""


def data(stream: int, size: int, *, padding: int | None = None, ends: bool = False) -> DataFrame:
    """DATA of so many bytes, its padding among them."""
    flags = [*(ENDS if ends else []), *([] if padding is None else ["PADDED"])]
    body = bytes(size - (0 if padding is None else padding + 1))
    return DataFrame(stream, body, pad_length=padding or 0, flags=flags)


def window(size: int) -> SettingsFrame:
    return SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: size})


def malformed(stream: int) -> HeadersFrame:
    """The head of a request whose body goes on, and that is none."""
    return HeadersFrame(stream, encode_field(b"x-note", b"1"), flags=["END_HEADERS"])


def resets(frames: list[Frame]) -> list[tuple[int, int]]:
    return [(frame.stream_id, frame.error_code) for frame in frames if isinstance(frame, RstStreamFrame)]


def updates(frames: list[Frame]) -> list[tuple[int, int]]:
    return [(frame.stream_id, frame.window_increment) for frame in frames if isinstance(frame, WindowUpdateFrame)]


def body(frames: list[Frame], stream: int) -> bytes:
    return b"".join(frame.data for frame in frames if isinstance(frame, DataFrame) and frame.stream_id == stream)


@pytest.fixture
def at(bench) -> Bench:
    """A connection that has exchanged its settings."""
    at = bench(Http2)
    at.sent()
    return at


def watch(at: Bench, stream: int = 1) -> Stream:
    """A streaming call that has begun."""
    at.frames(at.post(stream, b"/watch"))
    call = at.app.asked.pop()
    assert isinstance(call, Stream)
    call.start_grpc()
    return call


def run(at: Bench, work: Any) -> Any:
    return at.server.loop.run_until_complete(asyncio.wait_for(work, TIMEOUT_S))


# Windows


def test_what_came_is_given_back_by_half_windows(at) -> None:
    """Padding included, and what comes for streams that this side has ended: else the connection would dry up."""
    at.frames(malformed(1))
    assert resets(at.sent()) == [(1, 1)]
    for _ in range(2):
        for _ in range(HALF_CONNECTION_WINDOW // FRAME_BYTES - 1):
            at.frames(data(1, FRAME_BYTES, padding=9))
        assert not at.sent()
        at.frames(data(1, FRAME_BYTES))
        assert updates(at.sent()) == [(0, HALF_CONNECTION_WINDOW)]


def test_a_body_that_is_kept_is_given_back_to_its_stream(at) -> None:
    """Padding included: a body of the largest size with padding is more than the first window."""
    at.frames(at.post(1))
    for _ in range(2):
        for _ in range(STREAM_WINDOW // 2 // FRAME_BYTES - 1):
            at.frames(data(1, FRAME_BYTES, padding=255))
        assert not at.sent()
        at.frames(data(1, FRAME_BYTES, padding=255))
        assert updates(at.sent()) == [(1, STREAM_WINDOW // 2)]


def test_a_streaming_call_may_send_a_window_beyond_what_was_read(at) -> None:
    """Not one byte more, padding included; what is read is given back once."""
    call = watch(at)
    at.sent()
    for _ in range(2):
        for _ in range(STREAM_WINDOW // FRAME_BYTES):
            at.frames(data(1, FRAME_BYTES, padding=99))
        assert not at.sent()
        content, more = run(at, call.chunk())
        assert (len(content), more) == (STREAM_WINDOW // FRAME_BYTES * (FRAME_BYTES - 100), True)
        assert updates(at.sent()) == [(1, STREAM_WINDOW)]
    at.frames(data(1, 5))
    assert run(at, call.chunk()) == (bytes(5), True)
    assert not at.sent()
    for _ in range(STREAM_WINDOW // FRAME_BYTES - 1):
        at.frames(data(1, FRAME_BYTES))
    at.frames(data(1, FRAME_BYTES - 5))
    assert not resets(at.sent())
    at.frames(data(1, 1))
    assert resets(at.sent()) == [(1, FLOW)]


def test_answers_share_the_window_of_the_connection(at) -> None:
    """Those that go out whole count like those that go in pieces."""
    for stream in range(1, 15, 2):
        at.frames(at.post(stream), data(stream, 10_000, ends=True))
    sent = at.sent()
    assert sum(len(frame.data) for frame in sent if isinstance(frame, DataFrame)) == 65535
    at.frames(WindowUpdateFrame(0, 5000))
    assert sum(len(body(at.sent(), stream)) for stream in (13,)) == 70_000 - 65535


def test_frames_are_as_large_as_the_caller_allows(at) -> None:
    """One instead of four."""
    at.frames(SettingsFrame(0, {SettingsFrame.MAX_FRAME_SIZE: 1 << 16}), at.post(1, b"/model", ends=True))
    at.sent()
    at.app.asked[0].respond(200, bytes(60_000))
    assert [len(frame.data) for frame in at.sent() if isinstance(frame, DataFrame)] == [60_000]


def test_an_answer_goes_out_as_fast_as_it_is_taken(at) -> None:
    """A caller that does not read gets no more than a piece of it, and the rest when it reads again."""
    at.frames(window(1 << 30), WindowUpdateFrame(0, 1 << 30), at.post(1, b"/model", ends=True))
    at.sent()
    at.transport.on_write = at.connection.pause_writing
    at.app.asked[0].respond(200, bytes(2 << 20))
    first = len(body(at.sent(), 1))
    assert 0 < first < 1 << 20
    at.transport.on_write = lambda: None
    at.connection.resume_writing()
    assert first + len(body(at.sent(), 1)) == 2 << 20


@pytest.mark.parametrize("stream", [0, 1])
def test_a_larger_window_buys_a_body_no_time(at, stream: int) -> None:
    """It is for the answer: a body that has stopped is refused in its time."""
    at.frames(at.post(1), data(1, 5))
    at.later(PROGRESS_S - 1)
    at.frames(WindowUpdateFrame(stream, 9))
    assert not at.sent()
    assert b"408" in at.later(1).sent()[0].data


@pytest.mark.parametrize("way", ["connection", "stream", "setting"])
def test_a_window_has_2_gib_less_a_byte_at_most(at, way: str) -> None:
    """So much is allowed; a byte more is an error of what the window belongs to."""
    at.frames(at.post(1, b"/model", ends=True))
    at.sent()
    stream = 0 if way == "connection" else 1
    at.frames(window(MOST_WINDOW) if way == "setting" else WindowUpdateFrame(stream, MOST_WINDOW - FIRST_WINDOW))
    assert not [frame for frame in at.sent() if not isinstance(frame, SettingsFrame)]
    at.frames(WindowUpdateFrame(stream, 1))
    (error,) = at.sent()
    assert isinstance(error, RstStreamFrame if stream else GoAwayFrame)
    assert error.error_code == FLOW


# Streams


@pytest.mark.parametrize("cut", [0, None], ids=["alone in the first frame", "before the fields"])
def test_a_priority_is_passed_over(at, cut: int | None) -> None:
    """Nothing here is served before anything else."""
    block, flags = at.post(1).data, ["PRIORITY", *ENDS]
    if cut is None:
        at.frames(HeadersFrame(1, block, depends_on=0, stream_weight=15, flags=[*flags, "END_HEADERS"]))
    else:
        at.frames(HeadersFrame(1, block[:cut], depends_on=0, stream_weight=15, flags=flags))
        at.frames(ContinuationFrame(1, block[cut:], flags=["END_HEADERS"]))
    (answer,) = at.sent()
    assert answer.data.startswith(status_field(200))


@pytest.mark.parametrize("size", [4, 6])
def test_a_priority_of_a_wrong_size_is_an_error_of_its_stream(at, size: int) -> None:
    """Unless that has not been opened: then there is nothing to reset (RFC 9113, 5.1)."""
    at.frames(at.post(1))
    at.say(bytes([0, 0, size, PriorityFrame.type, 0, 0, 0, 0, 1, *bytes(size)]))
    assert resets(at.sent()) == [(1, SIZE)]
    at.say(bytes([0, 0, size, PriorityFrame.type, 0, 0, 0, 0, 3, *bytes(size)]))
    (goaway,) = at.sent()
    assert isinstance(goaway, GoAwayFrame)
    assert goaway.error_code == SIZE


@pytest.mark.parametrize(("size", "first"), [(4095, b"\x20"), (4096, b""), (1 << 16, b"")])
def test_a_smaller_table_is_confirmed_once(at, size: int, first: bytes) -> None:
    """At the next block (RFC 7541, 4.2); there is nothing to confirm of one that is as large as before, or larger."""
    at.frames(SettingsFrame(0, {SettingsFrame.HEADER_TABLE_SIZE: size}), at.post(1, ends=True), at.post(3, ends=True))
    blocks = [frame.data for frame in at.sent() if isinstance(frame, HeadersFrame)]
    assert blocks[0] == first + blocks[1]
    assert blocks[1].startswith(status_field(200))


def test_an_answer_that_has_no_body_has_no_length(at) -> None:
    """RFC 9110, 8.6."""
    at.frames(at.post(1, b"/model", ends=True))
    at.sent()
    at.app.asked[0].respond(204, b"")
    (headers,) = at.sent()
    assert headers.data.startswith(status_field(204))
    assert "END_STREAM" in headers.flags
    assert encode_field(b"content-length", b"0") not in headers.data


def test_an_announced_body_that_is_too_large_is_refused_at_its_head(at) -> None:
    """Nothing of it is waited for."""
    length = encode_field(b"content-length", b"%d" % (at.server.max_body_bytes + 1))
    at.frames(HeadersFrame(1, at.post(1).data + length, flags=["END_HEADERS"]))
    headers, _, reset = at.sent()
    assert b"413" in headers.data
    assert (reset.stream_id, reset.error_code) == (1, 0)


def test_data_of_a_stream_that_has_ended_is_an_error_of_it(at) -> None:
    """Of both sides: its caller had said itself that no more comes."""
    at.frames(at.post(1, ends=True))
    at.sent()
    at.frames(data(1, 1))
    assert resets(at.sent()) == [(1, CLOSED)]


def test_trailers_of_a_stream_that_was_ended_early_are_passed_over(at) -> None:
    """Its caller sent them before it read the answer."""
    at.frames(at.post(1, b"/model"))
    at.app.refuse(at.connection._streams[1], InvalidInput("no"))
    assert resets(at.sent()) == [(1, 0)]
    at.frames(data(1, 100), HeadersFrame(1, encode_field(b"x-sum", b"1"), flags=["END_HEADERS", *ENDS]))
    assert not at.sent()


def test_trailers_in_pieces_stop_no_clock_but_their_own(at) -> None:
    """The model takes as long as it takes, although a block of fields has seconds."""
    at.frames(at.post(1, b"/model"), data(1, 3))
    at.frames(HeadersFrame(1, b"\0", flags=ENDS), ContinuationFrame(1, b"\1a\1b", flags=["END_HEADERS"]))
    assert not at.later(3600).sent()
    assert at.app.asked[0].body == bytes(3)


def test_a_body_that_came_whole_is_kept_once(at) -> None:
    """Its pieces are gone while it waits for the model, and its time to come is over."""
    at.frames(at.post(1, b"/model"), data(1, 3), data(1, 4, ends=True))
    (exchange,) = at.app.asked
    assert (exchange.body, exchange.pieces) == (bytes(7), [])
    assert not at.later(3600).sent()


def test_a_byte_more_than_announced_ends_its_stream_at_once(at) -> None:
    """Before the body ends."""
    at.frames(
        HeadersFrame(1, at.post(1).data + encode_field(b"content-length", b"5"), flags=["END_HEADERS"]), data(1, 6)
    )
    assert resets(at.sent()) == [(1, 1)]


@pytest.mark.parametrize("announced", [False, True])
@pytest.mark.parametrize(("more", "statuses"), [(0, []), (1, [413])])
def test_a_body_may_be_as_large_as_allowed(at, announced: bool, more: int, statuses: list[int]) -> None:
    """Not one byte larger, whether its length was announced or not."""
    refused: list[int] = []
    refuse = at.app.refuse
    at.app.refuse = lambda exchange, error: (refused.append(error.http_status), refuse(exchange, error))
    size = at.server.max_body_bytes + more
    fields = encode_field(b"content-length", b"%d" % size) if announced else b""
    at.frames(HeadersFrame(1, at.post(1, b"/model").data + fields, flags=["END_HEADERS"]))
    for _ in range(size // FRAME_BYTES):
        at.frames(data(1, FRAME_BYTES))
    at.frames(data(1, size % FRAME_BYTES, ends=True))
    assert refused == statuses
    assert [len(exchange.body) for exchange in at.app.asked] == ([] if more else [size])
    assert at.server.unfinished_bytes == 0


@pytest.mark.parametrize("ends", [False, True])
def test_what_comes_for_a_refused_request_is_dropped(at, ends: bool) -> None:
    """While its refusal waits for the window: it is not kept, and the model does not get it."""
    at.frames(window(0), at.post(1, b"/model"), data(1, 100))
    at.sent()
    stream = at.connection._streams[1]
    at.app.refuse(stream, PayloadTooLarge("no"))
    assert (stream.pieces, at.server.unfinished_bytes) == ([], 0)
    at.frames(data(1, 100, ends=ends))
    assert (stream.pieces, at.server.unfinished_bytes) == ([], 0)
    at.frames(WindowUpdateFrame(1, 9))
    assert body(at.sent(), 1) == b"no"
    assert not at.app.asked


def test_fields_of_a_stream_that_is_refused_are_in_the_table(at) -> None:
    """Later blocks of the connection name them by their index."""
    at.frames(at.post(1, b"/model"), at.post(3, b"/model"), data(3, 0, ends=True))
    at.connection.shutdown()
    at.later(ROUND_TRIP_S).sent()
    at.frames(HeadersFrame(5, b"\x83\x86\x84\x40\x06x-user\x05alice", flags=["END_HEADERS", *ENDS]))
    assert resets(at.sent()) == [(5, REFUSED)]
    at.frames(HeadersFrame(1, b"\xbe", flags=["END_HEADERS", *ENDS]))
    assert not at.sent()
    assert len(at.app.asked) == 2


def test_an_answer_is_the_only_one(at) -> None:
    """Whoever answers second, or after the caller has left, answers nobody."""
    at.frames(at.post(1, b"/model", ends=True), at.post(3, b"/model", ends=True), RstStreamFrame(3, 8))
    for exchange in at.app.asked:
        exchange.respond(200, b"yes")
        exchange.respond(200, b"no")
        exchange.respond_grpc(b"no", ())
    sent = at.sent()
    assert [frame.stream_id for frame in sent] == [1, 1]
    assert body(sent, 1) == b"yes"


def test_who_leaves_is_told_of_once_and_only_unanswered(at) -> None:
    """There is nothing left to cancel for a request that has its answer."""
    left: list[int] = []
    at.frames(window(0))
    for stream in (1, 3):
        at.frames(at.post(stream, b"/model", ends=True))
        at.app.asked[-1].on_leave = lambda stream=stream: left.append(stream)
    at.app.asked[0].respond(200, b"yes")
    at.frames(RstStreamFrame(1, 8), RstStreamFrame(3, 8))
    assert left == [3]
    assert at.server.in_flight == 0


def test_a_request_that_is_answered_as_another_leaves_ends_once(at) -> None:
    """Room in the queue may be what its answer waited for, when the connection that both are on is lost."""
    at.frames(at.post(1, b"/model", ends=True), at.post(3, b"/model", ends=True))
    first, second = at.app.asked
    first.on_leave = lambda: second.respond(200, b"yes")
    at.connection.connection_lost(None)
    assert at.server.in_flight == 0


def test_who_breaks_the_connection_takes_its_requests_along(at) -> None:
    """At once, however long it takes until the goodbye has been read; nothing behind the break is listened to."""
    at.frames(at.post(1, b"/model", ends=True))
    at.say(BREAK + at.post(3, b"/model", ends=True).serialize())
    assert len(at.app.asked) == 1
    assert at.server.in_flight == 0
    at.frames(at.post(5, b"/model", ends=True))
    assert len(at.app.asked) == 1


@pytest.mark.parametrize("within", ["nothing", "a request", "a block of fields"])
def test_a_broken_connection_is_gone_soon(at, within: str) -> None:
    """Although its caller does not read the goodbye, and whatever it had begun."""
    if within == "a request":
        at.frames(at.post(1, b"/model", ends=True))
    elif within == "a block of fields":
        at.frames(HeadersFrame(1, b"\0"))
    at.say(BREAK)
    assert at.later(LINGER_S - 1).transport.ended == "closed"
    assert at.later(1).transport.ended == "aborted"


def test_a_streaming_call_is_counted_until_it_begins(at) -> None:
    """The end of the server does not wait for it; its own end takes nothing away from others."""
    at.frames(at.post(1, b"/model", ends=True))
    watch(at, 3)
    assert at.server.in_flight == 1
    at.frames(RstStreamFrame(3, 8))
    assert at.server.in_flight == 1


def test_a_streaming_call_lasts_as_long_as_its_messages_are_taken(at) -> None:
    """A message that was taken leaves no deadline behind."""
    call = watch(at)
    at.sent()
    run(at, call.send_message(b"first"))
    assert body(at.later(3600).sent(), 1) == b"first"
    run(at, call.send_message(b"second"))
    call.respond_grpc(b"", ((b"grpc-status", b"0"),))
    *_, trailers, reset = at.sent()
    assert "END_STREAM" in trailers.flags
    assert (reset.stream_id, reset.error_code) == (1, 0)


def test_a_message_has_been_sent_when_all_of_it_has(at) -> None:
    """So that a call makes no second one for a caller that has not taken the first, though it goes on talking."""
    at.frames(window(3))
    call = watch(at)
    task = at.server.loop.create_task(call.send_message(b"message"))
    for more, rest in ((3, b"mes"), (3, b"sag"), (3, b"e")):
        assert body(at.sent(), 1) == rest
        assert not task.done() or rest == b"e"
        at.frames(data(1, 1), WindowUpdateFrame(1, more))
    run(at, task)


def test_what_comes_together_wakes_its_call_once(at) -> None:
    """Which finds all of it."""
    call = watch(at)
    task = at.server.loop.create_task(call.chunk())
    at.sent()
    at.frames(data(1, 5), data(1, 6))
    assert run(at, task) == (bytes(11), True)


def test_a_call_that_says_nothing_has_ended(at) -> None:
    """Its head was all of it: nothing is waited for."""
    at.frames(at.post(1, b"/watch", ends=True))
    (call,) = at.app.asked
    assert run(at, call.chunk()) == (b"", False)


# What brings nothing


def test_a_block_of_fields_has_64_kib_at_most(at) -> None:
    """Its first frame counts like the others; a byte more, and its end is not waited for."""
    at.frames(HeadersFrame(1, bytes(FRAME_BYTES)), *(ContinuationFrame(1, bytes(FRAME_BYTES)) for _ in range(3)))
    assert not at.sent()
    at.frames(ContinuationFrame(1, bytes(1)))
    assert at.sent()[-1].error_code == CALM
    assert at.transport.ended == "closed"


FOR_NOTHING: dict[str, Callable[[int, Bench], list[Frame]]] = {
    "settings": lambda stream, at: [SettingsFrame(0)],
    "priorities": lambda stream, at: [PriorityFrame(stream, depends_on=0)],
    "empty DATA": lambda stream, at: [*([at.post(1)] if stream == 1 else []), data(1, 0)],
    "DATA of no stream": lambda stream, at: [*([at.post(3, ends=True)] if stream == 1 else []), data(1, 1)],
    "malformed requests": lambda stream, at: [malformed(stream)],
    "reset requests": lambda stream, at: [at.post(stream, b"/model", ends=True), RstStreamFrame(stream, 8)],
    "empty CONTINUATION": lambda stream, at: [HeadersFrame(1) if stream == 1 else ContinuationFrame(1)],
}


@pytest.mark.parametrize("make", FOR_NOTHING.values(), ids=FOR_NOTHING)
def test_so_much_is_done_for_nothing_and_no_more(at, make: Callable[[int, Bench], list[Frame]]) -> None:
    """Beyond a thousand frames that bring nothing the connection ends, and the caller is told to calm down."""
    for stream in range(1, 2 * CREDIT - 4, 2):
        at.frames(*make(stream, at))
    assert at.transport.ended == ""
    for stream in range(2 * CREDIT - 3, 2 * CREDIT + 5, 2):
        at.frames(*make(stream, at))
    assert at.transport.ended == "closed"
    assert at.sent()[-1].error_code == CALM


def test_refused_streams_are_for_nothing(at) -> None:
    """A caller that opens streams after the goodbye must stop at some time."""
    at.frames(at.post(1, b"/model"))
    at.connection.shutdown()
    at.later(ROUND_TRIP_S)
    most = CREDIT + int(CREDIT_PER_S * ROUND_TRIP_S)
    for stream in range(3, 2 * most - 3, 2):
        at.frames(at.post(stream))
    assert at.transport.ended == ""
    for stream in range(2 * most - 3, 2 * most + 5, 2):
        at.frames(at.post(stream))
    assert at.sent()[-1].error_code == CALM


def test_an_end_of_a_body_without_content_is_for_something(at) -> None:
    """It is how many clients end each of their bodies."""
    for stream in range(1, 2 * CREDIT + 20, 2):
        at.frames(at.post(stream, b"/model"), data(stream, 3), data(stream, 0, ends=True))
    assert at.transport.ended == ""


def test_a_head_in_a_thousand_pieces_is_for_something(at) -> None:
    """It is within its bound; a body may follow it."""
    block = at.post(1).data + encode_field(b"x-note", b"a" * CREDIT)
    first, *more, last = [block[at : at + 1] for at in range(len(block))]
    at.frames(HeadersFrame(1, first), *(ContinuationFrame(1, piece) for piece in more))
    at.frames(ContinuationFrame(1, last, flags=["END_HEADERS"]), data(1, 3, ends=True))
    assert body(at.sent(), 1) == bytes(3)


def spend(at: Bench, frames: int) -> bool:
    """Send so many frames that bring nothing; whether the connection goes on."""
    for _ in range(frames):
        at.frames(SettingsFrame(0))
    return at.transport.ended == ""


@pytest.mark.parametrize(("idle_s", "more"), [(0.5, 50), (100, 1000)])
def test_the_credit_refills_with_time(at, idle_s: float, more: int) -> None:
    """A hundred frames a second, once, and never more than in the beginning."""
    assert spend(at, CREDIT - 1)
    at.server.now_s += idle_s
    assert spend(at, more)
    assert not spend(at, 2)


def test_who_takes_answers_may_give_up_on_as_many_more(at) -> None:
    """Within the credit of the beginning."""
    at.frames(at.post(1, ends=True), at.post(3, ends=True))
    assert spend(at, CREDIT)
    at.frames(at.post(5, ends=True))
    assert spend(at, 1)
    assert not spend(at, 1)


# The end


def test_the_settings_that_came_make_the_connection_idle(at) -> None:
    """It has minutes from then on, and not the seconds that its beginning had."""
    assert not at.later(IDLE_S - 1).sent()


def test_nothing_is_said_or_heard_behind_the_last_goodbye(at) -> None:
    """A caller's frames that were under way are read, for a reset would destroy its answers, and not answered."""
    at.connection.shutdown()
    at.later(ROUND_TRIP_S).sent()
    assert at.transport.ended == "half"
    at.frames(PingFrame(0, b"12345678"), at.post(1))
    assert not at.sent()
    at.connection.pause_writing()
    at.connection.resume_writing()
    assert at.later(PROGRESS_S).transport.ended == "aborted"


def test_a_lost_connection_is_not_ended_again(at) -> None:
    """What was to be said goes nowhere."""
    at.frames(at.post(1, b"/model", ends=True), GoAwayFrame(0))
    at.app.asked[0].respond(200, b"late")
    at.connection.connection_lost(None)
    at.written()
    assert not at.server.connections
    assert at.transport.ended == ""
    at.connection.resume_writing()


def test_nothing_is_written_to_a_transport_that_closes(at) -> None:
    """It would warn of it in the log."""
    at.frames(at.post(1, b"/model", ends=True))
    at.sent()
    at.connection.abort()
    at.app.asked[0].respond(200, b"late")
    assert not at.written()


def test_the_end_of_the_server_ends_streaming_calls_and_no_others(at) -> None:
    """They would go on for ever."""
    at.frames(at.post(1, b"/model", ends=True))
    watch(at, 3)
    at.sent()
    at.connection.shutdown()
    assert resets(at.sent()) == [(3, 8)]
    at.app.asked[0].respond(200, b"yes")
    assert body(at.sent(), 1) == b"yes"


def test_a_goodbye_is_said_once(at) -> None:
    """However often there is a reason; but an error behind it is told."""
    at.frames(at.post(1, b"/model", ends=True))
    at.sent()
    at.connection.shutdown()
    at.connection.shutdown()
    assert len(at.sent()) == 1
    at.later(ROUND_TRIP_S)
    at.later(1)
    at.frames(GoAwayFrame(0))
    at.connection.shutdown()
    assert len(at.later(ROUND_TRIP_S).sent()) == 1
    at.say(BREAK)
    (goaway,) = at.sent()
    assert (goaway.last_stream_id, goaway.error_code) == (1, 1)


def test_who_says_goodbye_first_is_not_offered_more_streams(at) -> None:
    """A GOAWAY must not name a later stream than the one before it (RFC 9113, 6.8)."""
    at.frames(at.post(1, b"/model", ends=True), GoAwayFrame(0))
    (goaway,) = at.sent()
    assert goaway.last_stream_id == 1
    at.connection.shutdown()
    assert not at.later(ROUND_TRIP_S).sent()


def test_a_connection_that_says_goodbye_is_not_let_go_again(at) -> None:
    """It ends anyway, and is none of those that end because there are too many."""
    at.frames(at.post(1, b"/model", ends=True))
    at.connection.shutdown()
    at.server._listener.most_connections = 0
    at.app.asked[0].respond(200, b"yes")
    assert not at.server._parting


def test_a_goodbye_without_halves_closes_both(at) -> None:
    """As over TLS."""
    at.transport.has_halves = False
    at.connection.shutdown()
    assert at.later(ROUND_TRIP_S).transport.ended == "closed"


def test_a_ping_is_answered_once_and_its_acknowledgement_never(at: Bench) -> None:
    """Else two peers would go on for ever (RFC 9113, 6.7)."""
    at.frames(PingFrame(0, b"nobody's", flags=["ACK"]), PingFrame(0, b"tell me."))
    assert [(type(frame), frame.flags, frame.opaque_data) for frame in at.sent()] == [(PingFrame, {"ACK"}, b"tell me.")]


def test_trailers_end_an_answer_that_a_window_has_held_back(at: Bench) -> None:
    """The DATA before them do not (RFC 9113, 8.1)."""
    at.frames(window(0), at.post(1, b"/call", ends=True))
    at.sent()
    (call,) = at.app.asked
    assert isinstance(call, Stream)
    call.respond_grpc(b"message", ((b"grpc-status", b"0"),))
    at.sent()
    at.frames(WindowUpdateFrame(1, 100))
    message, trailers = at.sent()
    assert (type(message), message.flags) == (DataFrame, set())
    assert (type(trailers), trailers.flags) == (HeadersFrame, {"END_HEADERS", "END_STREAM"})


def test_who_sends_messages_goes_on_when_the_window_has_taken_them(at: Bench) -> None:
    at.frames(window(0))
    call = watch(at)
    sending = at.server.loop.create_task(call.send_message(b"message"))
    at.sent()
    assert not sending.done()
    at.frames(WindowUpdateFrame(1, 100))
    assert body(at.sent(), 1) == b"message"
    at.sent()
    assert sending.done()
