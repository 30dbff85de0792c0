"""The relays of `torpor up`, whatever way the bytes are cut, in whatever order both sides act.

Both sides of HTTP/2 are the library h2, which refuses what breaks the protocol, flow control among it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from relay_bench import End, RelayBench, run_relay

SLOW = settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
SIZES = st.sampled_from([0, 1, 7, 900, 70_000, 1_300_000])
"""Of bodies: within a packet, beyond a transport's bound, beyond what a relay holds of a request that waits."""


class Steps:
    """One of the things that can happen next, until nothing can."""

    def __init__(self, bench: RelayBench, data: st.DataObject) -> None:
        self._bench = bench
        self._data = data

    def size(self, most: int) -> int:
        """How many of so many bytes go in one piece; large bodies have not too many."""
        return min(most, max(self._data.draw(st.sampled_from([1, 2, 9, 300, 1 << 20])), most // 10))

    async def run(self, possible: Callable[[], Iterator[Callable[[], object]]]) -> None:
        idle = 0
        while idle < 3:
            await self._bench.settle()
            actions = [*possible()]
            if actions:
                idle = 0
                actions[self._data.draw(st.integers(0, len(actions) - 1))]()
            else:  # what the relay tries again in a moment
                idle += 1
                await self._bench.pause()


@dataclass
class Exchange:
    """An HTTP/1.1 request and its answer. wants: bytes of the request after which the answer begins."""

    request: bytes = field(repr=False)
    answer: bytes = field(repr=False)
    wants: int
    ends_connection: bool = False


@st.composite
def framed(draw: st.DrawFn, may_end: bool = False) -> tuple[bytes, bytes]:
    """Fields that frame a body, and the body in that frame."""
    body = (
        bytes(draw(SIZES))[:-2] + b"\r\n"
        if draw(st.booleans())
        else b"HTTP/1.1 200 OK\r\n\r\n" * draw(st.integers(0, 3))
    )
    match draw(st.sampled_from(["length", "chunks", *(["end"] if may_end else [])])):
        case "length":
            return b"content-length: %d\r\n" % len(body), body
        case "chunks":
            size = draw(st.sampled_from([1000, 60_000, 1 << 21]))
            pieces = [body[at : at + size] for at in range(0, len(body), size)]
            extension = draw(st.sampled_from([b"", b";a=b"]))
            trailers = draw(st.sampled_from([b"", b"x-trailer: 1\r\n"]))
            chunks = b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces)
            return b"transfer-encoding: chunked\r\n", chunks + b"0\r\n" + trailers + b"\r\n"
    return b"", body


@st.composite
def exchanges(draw: st.DrawFn) -> list[Exchange]:
    """What a caller sends over one connection."""
    made = []
    count = draw(st.integers(1, 4))
    for number in range(count):
        method = draw(st.sampled_from([b"GET", b"POST", b"HEAD"]))
        fields, body = (b"", b"") if method != b"POST" else draw(framed())
        head = b"%s /%d HTTP/1.1\r\nhost: a\r\n%s\r\n" % (method, number, fields)
        is_last = number == count - 1
        interim = draw(
            st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n"])
        )
        status = draw(st.sampled_from([b"200 OK", b"204 No Content", b"304 Not Modified", b"500 Oh"]))
        fields, answer = draw(framed(may_end=is_last))
        has_none = method == b"HEAD" or status[:3] in (b"204", b"304")
        answer = b"%sHTTP/1.1 %s\r\n%s\r\n%s" % (interim, status, fields, b"" if has_none else answer)
        ends_connection = not fields and not has_none
        is_early = draw(st.booleans()) and not ends_connection
        made.append(Exchange(head + body, answer, len(head) if is_early else len(head + body), ends_connection))
    return made


class Http1Story:
    """A caller that pipelines, and a component that answers one request after the other."""

    def __init__(self, bench: RelayBench, steps: Steps, exchanges: list[Exchange]) -> None:
        self.bench = bench
        self.steps = steps
        self.exchanges = exchanges
        self.to_send = bytearray(b"".join(one.request for one in exchanges))
        self.asked = bytearray()
        """What the component has got."""
        self.answered = bytearray()
        """What the caller has got."""
        self._pending = bytearray()
        self._begun = 0
        self._wanted = 0

    def possible(self) -> Iterator[Callable[[], object]]:
        caller, component = self.bench.caller, self.bench.component
        if not self.bench.subject.gate.is_open:
            yield self.bench.subject.wake
        yield from self.sends()
        if caller.held:
            yield lambda: self.answered.extend(caller.take(self.steps.size(caller.held)))
        if component is None:
            return
        if component.held:
            yield lambda: self._ask(component)
        if self._pending and component.reads:
            yield lambda: component.give(self._taken(self._pending))
        if self.exchanges[-1].ends_connection and self._has_answered() and not component.is_lost:
            yield component.lose

    def sends(self) -> Iterator[Callable[[], object]]:
        if self.to_send and self.bench.caller.reads:
            yield self._send

    def _has_answered(self) -> bool:
        return self._begun == len(self.exchanges) and not self._pending

    def _taken(self, source: bytearray) -> bytes:
        data = bytes(source[: self.steps.size(len(source))])
        del source[: len(data)]
        return data

    def _send(self) -> None:
        self.bench.caller.give(self._taken(self.to_send))

    def _ask(self, component: End) -> None:
        self.asked += component.take(self.steps.size(component.held))
        while self._begun < len(self.exchanges):
            one = self.exchanges[self._begun]
            if len(self.asked) < self._wanted + one.wants:
                return
            self._pending += one.answer
            self._wanted += len(one.request)
            self._begun += 1


@SLOW
@given(exchanges(), st.data())
def test_http1_bytes_go_through_as_they_are(given: list[Exchange], data: st.DataObject) -> None:
    """Whole, in order, once: requests to the component, answers to the caller."""

    async def scenario() -> None:
        bench = await RelayBench().started()
        story = Http1Story(bench, Steps(bench, data), given)
        await story.steps.run(story.possible)
        assert bytes(story.answered) == b"".join(one.answer for one in given)
        assert bytes(story.asked) == b"".join(one.request for one in given)
        assert bench.caller.is_closed is given[-1].ends_connection
        assert bench.subject.ended == [True] * len(given)
        assert len(bench.loop.behind) == 1
        assert bench.subject.gate.inside == bench.subject.gate.waiting == 0

    run_relay(scenario())


@SLOW
@given(st.sampled_from([0, 900, 70_000, 1_048_500, 1_300_000]), st.data())
def test_http1_a_connection_outlives_an_answer_of_the_relays_own(body: int, data: st.DataObject) -> None:
    """Who waits too long gets 504, and if the connection stays, which it does for a whole request, the next one is answered."""

    async def scenario() -> None:
        bench = await RelayBench(timeout_s=1.0).started()
        after = Exchange(b"GET /after HTTP/1.1\r\nhost: a\r\n\r\n", b"HTTP/1.1 204 No\r\n\r\n", 1)
        story = Http1Story(bench, Steps(bench, data), [after])
        story.to_send = bytearray(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % body + bytes(body))
        await story.steps.run(story.sends)
        is_whole = not story.to_send
        await bench.pause(1.0)
        assert bench.caller.take(1 << 20).startswith(b"HTTP/1.1 504 ")
        assert bench.subject.ended == [False]
        await bench.pause(2.0)  # who still sends has had the time to read
        assert bench.caller.is_closed is not is_whole
        if is_whole:
            story.to_send = bytearray(after.request)
            await story.steps.run(story.possible)
            assert bytes(story.answered) == after.answer

    run_relay(scenario())


@SLOW
@given(exchanges(), st.data(), st.booleans())
def test_http1_who_leaves_is_known_to_the_other_side(
    given: list[Exchange], data: st.DataObject, caller_leaves: bool
) -> None:
    """At any moment: a caller that leaves frees its place; of a component that dies no answer looks whole that is not."""

    async def scenario() -> None:
        bench = await RelayBench().started()
        story = Http1Story(bench, Steps(bench, data), given)
        left: list[End] = []

        def leave() -> None:
            one = bench.caller if caller_leaves else bench.component
            assert one is not None
            left.append(one)
            if not caller_leaves:
                bench.loop.may_connect = False
                bench.subject.die()
            one.lose()

        def possible() -> Iterator[Callable[[], object]]:
            if not left:
                yield from story.possible()
                if (caller_leaves and not bench.caller.is_lost) or (bench.component and not bench.component.is_lost):
                    yield leave
            elif bench.caller.held:
                yield lambda: story.answered.extend(bench.caller.take(1 << 22))

        await story.steps.run(possible)
        if not left:
            return
        if caller_leaves:
            assert bench.component is None or bench.component.is_closed
            assert bench.subject.gate.inside == bench.subject.gate.waiting == 0
            return
        rest = bytes(story.answered)
        for one in given:
            if not rest.startswith(one.answer) or (one.ends_connection and rest == one.answer):
                break
            rest = rest[len(one.answer) :]
        else:
            assert rest == b""
            return
        own = b"HTTP/1.1 502 "
        at = rest.find(own)
        if at >= 0:  # behind interim answers at most
            assert all(
                part.startswith(b"HTTP/1.1 1") for part in rest[:at].split(b"\r\n\r\n") if part.startswith(b"HTTP")
            )
        else:
            assert one.answer.startswith(rest)

    run_relay(scenario())


@pytest.mark.parametrize(
    ("request_", "has_unread", "status"),
    [
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", True, b"200"),  # by the next instance
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", False, b"502"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nb", True, b"503"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nb", False, b"502"),
    ],
)
def test_http1_what_came_after_the_end_of_a_connection_is_not_lost(
    request_: bytes, has_unread: bool, status: bytes
) -> None:
    """It was reset, so it has not been read; what was read and not answered is lost."""

    async def scenario() -> None:
        bench = await RelayBench().started()
        bench.subject.wake()
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
        for one in (b"GET /kept HTTP/1.1\r\nhost: a\r\n\r\n", request_):
            bench.caller.give(one)
            await bench.settle()
            assert bench.component is not None
            assert bench.component.take(1 << 20) == one
            if one is not request_:
                bench.component.give(answer)
                assert bench.caller.take(1 << 20) == answer
        bench.component.lose(has_unread)
        await bench.settle()
        if status == b"200":
            assert bench.component.take(1 << 20) == request_
            bench.component.give(answer)
        assert bench.caller.take(1 << 20).startswith(b"HTTP/1.1 " + status)
        assert bench.subject.gate.inside == 0

    run_relay(scenario())


@dataclass
class Planned:
    """An HTTP/2 stream. Sizes are of bodies. leaves: who resets it in its middle, "caller", "component" or nobody."""

    fields: list[tuple[bytes, bytes]]
    asks: int
    answers: int
    asks_trailers: bool
    has_trailers: bool
    leaves: str
    number: int = 0
    asked: bytearray = field(default_factory=bytearray, repr=False)
    answered: bytearray = field(default_factory=bytearray, repr=False)
    seen_by: set[str] = field(default_factory=set)
    """What each side has seen of it: "asked", "ended", "reset", "status 200", "trailers", …"""


BODY_SIZES = st.sampled_from([0, 1, 500, 20_000, 150_000])
FIELDS = st.lists(
    st.tuples(st.sampled_from([b"x-a", b"x-b"]), st.sampled_from([b"1", b"2" * 70, b"3" * 9000])), max_size=3
)
PLANNED = st.builds(
    Planned,
    FIELDS,
    BODY_SIZES,
    BODY_SIZES,
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "", "", "caller", "component"]),
)
CODES = h2.settings.SettingCodes
COMPONENT = st.fixed_dictionaries(
    {},
    optional={
        CODES.HEADER_TABLE_SIZE: st.sampled_from([0, 100, 8192]),
        CODES.INITIAL_WINDOW_SIZE: st.sampled_from([2000, 1 << 20]),
        CODES.MAX_CONCURRENT_STREAMS: st.sampled_from([1, 2]),
        CODES.MAX_FRAME_SIZE: st.just(65_536),
    },
)
CALLER = st.fixed_dictionaries(
    {},
    optional={
        CODES.HEADER_TABLE_SIZE: st.sampled_from([0, 100, 8192]),
        CODES.INITIAL_WINDOW_SIZE: st.sampled_from([2000, 1 << 20]),
        CODES.MAX_FRAME_SIZE: st.just(65_536),
    },
)


class Side:
    """One side's h2, what it has yet to send, and what it does with what comes."""

    def __init__(self, is_client: bool, own: dict[Any, int]) -> None:
        config = h2.config.H2Configuration(client_side=is_client, header_encoding=None)
        self.state = h2.connection.H2Connection(config)
        # What the first SETTINGS say holds at once: the relay reads the component's before it sends a request.
        values = {**self.state.local_settings, CODES.ENABLE_PUSH: 0, **own}
        self.state.local_settings = h2.settings.Settings(client=is_client, initial_values=values)
        self.state.max_inbound_frame_size = self.state.local_settings.max_frame_size
        self.state.decoder.max_allowed_table_size = self.state.local_settings.header_table_size
        self.state.initiate_connection()
        self.out = bytearray()
        self.unacknowledged: list[tuple[int, int]] = []
        self.missing: dict[int, int] = {}
        """Bytes that it has yet to send, by stream."""

    def flush(self) -> None:
        self.out += self.state.data_to_send()


class Http2Story:
    """A caller with several streams, and a component that answers each when its body has come."""

    def __init__(self, bench: RelayBench, steps: Steps, planned: list[Planned], own: dict[str, dict[Any, int]]) -> None:
        self.bench = bench
        self.steps = steps
        self.planned = planned
        self.later = {code: value for code, value in own["later"].items() if code is not CODES.MAX_FRAME_SIZE}
        self.caller = Side(True, own["caller"])
        self.component = Side(False, own["component"])
        self.by_number: dict[int, Planned] = {}
        self.to_open = [*planned]
        self.pings = 2

    # What can happen.

    def possible(self) -> Iterator[Callable[[], object]]:
        for side in (self.caller, self.component):
            side.flush()
        if not self.bench.subject.gate.is_open:
            yield self.bench.subject.wake
        most = self.caller.state.remote_settings.max_concurrent_streams
        if self.to_open and self.caller.state.open_outbound_streams < most:
            yield self._open
        if self.pings:
            yield self._ping
        if self.later:
            yield self._change_settings
        yield from self._moves(self.caller, self.bench.caller)
        for number, one in self.by_number.items():
            if one.leaves == "caller" and "reset by caller" not in one.seen_by and "answer ended" not in one.seen_by:
                yield lambda number=number: self._reset(self.caller, number, "caller")
            if (
                one.leaves == "component"
                and "asked" in one.seen_by
                and not one.seen_by & {"reset by component", "reset by caller seen", "sent all"}
            ):
                yield lambda number=number: self._reset(self.component, number, "component")
        component = self.bench.component
        if component is not None:
            yield from self._moves(self.component, component)

    def _moves(self, side: Side, end: End) -> Iterator[Callable[[], object]]:
        if side.out and end.reads:
            yield lambda: self._give(side, end)
        if end.held:
            yield lambda: self._take(side, end)
        if side.unacknowledged:
            yield lambda: self._acknowledge(side)
        for number, missing in [*side.missing.items()]:
            if not missing or side.state.local_flow_control_window(number) > 0:
                yield lambda number=number: self._send(side, number)

    # What happens.

    def _open(self) -> None:
        one = self.to_open.pop(0)
        one.number = self.caller.state.get_next_available_stream_id()
        self.by_number[one.number] = one
        fields = [(b":method", b"POST"), (b":path", b"/"), (b":scheme", b"http"), (b":authority", b"a"), *one.fields]
        has_more = one.asks > 0 or one.asks_trailers
        self.caller.state.send_headers(one.number, fields, end_stream=not has_more)
        if has_more:
            self.caller.missing[one.number] = one.asks

    def _ping(self) -> None:
        self.pings -= 1
        self.caller.state.ping(b"12345678")

    def _change_settings(self) -> None:
        self.caller.state.update_settings(self.later)
        self.later = {}

    def _give(self, side: Side, end: End) -> None:
        size = self.steps.size(len(side.out))
        data = bytes(side.out[:size])
        del side.out[:size]
        end.give(data)

    def _take(self, side: Side, end: End) -> None:
        events = side.state.receive_data(end.take(self.steps.size(end.held)))
        resets = {event.stream_id for event in events if isinstance(event, h2.events.StreamReset)}
        for event in events:
            if isinstance(event, h2.events.StreamEnded) and event.stream_id in resets:
                continue  # over by now
            (self._asked if side is self.component else self._answered)(event)

    def _acknowledge(self, side: Side) -> None:
        number, size = side.unacknowledged.pop(0)
        side.state.acknowledge_received_data(size, number)

    def _send(self, side: Side, number: int) -> None:
        missing = side.missing[number]
        room = min(missing, side.state.local_flow_control_window(number), side.state.max_outbound_frame_size)
        is_last = room == missing
        one = self.by_number[number]
        trailers = one.has_trailers if side is self.component else one.asks_trailers
        side.state.send_data(number, bytes(room), end_stream=is_last and not trailers)
        side.missing[number] -= room
        if is_last:
            del side.missing[number]
            if trailers:
                side.state.send_headers(number, [(b"x-trailer", b"1")], end_stream=True)
            if side is self.component:
                self.by_number[number].seen_by.add("sent all")

    def _reset(self, side: Side, number: int, name: str) -> None:
        side.missing.pop(number, None)
        side.state.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
        self.by_number[number].seen_by.add(f"reset by {name}")

    def _asked(self, event: h2.events.Event) -> None:
        """The component has got something."""
        one = self.by_number.get(getattr(event, "stream_id", None) or 0)
        if one is None:
            return
        match event:
            case h2.events.RequestReceived():
                assert [pair for pair in event.headers if not pair[0].startswith(b":")] == one.fields
                one.seen_by.add("asked")
            case h2.events.DataReceived():
                one.asked += event.data
                self.component.unacknowledged.append((event.stream_id, event.flow_controlled_length))
            case h2.events.TrailersReceived():
                one.seen_by.add("request's trailers")
            case h2.events.StreamReset():
                self.component.missing.pop(event.stream_id, None)
                one.seen_by.add("reset by caller seen")
            case h2.events.StreamEnded() if "reset by component" not in one.seen_by:
                one.seen_by.add("asked to the end")
                self.component.state.send_headers(event.stream_id, [(b":status", b"200"), *one.fields])
                self.component.missing[event.stream_id] = one.answers

    def _answered(self, event: h2.events.Event) -> None:
        """The caller has got something."""
        if isinstance(event, h2.events.ConnectionTerminated):
            for number, one in self.by_number.items():
                if number > (event.last_stream_id or 0):
                    one.seen_by.add("refused")
            return
        one = self.by_number.get(getattr(event, "stream_id", None) or 0)
        if one is None or "reset by caller" in one.seen_by:
            if isinstance(event, h2.events.DataReceived):
                self.caller.unacknowledged.append((event.stream_id, event.flow_controlled_length))
            return
        match event:
            case h2.events.ResponseReceived():
                one.seen_by.add(f"status {dict(event.headers)[b':status'].decode()}")
            case h2.events.DataReceived():
                one.answered += event.data
                self.caller.unacknowledged.append((event.stream_id, event.flow_controlled_length))
            case h2.events.TrailersReceived():
                one.seen_by.add("trailers")
            case h2.events.StreamReset():
                self.caller.missing.pop(event.stream_id, None)
                one.seen_by.add("reset seen by caller")
            case h2.events.StreamEnded():
                one.seen_by.add("answer ended")


OWN = st.fixed_dictionaries({"caller": CALLER, "component": COMPONENT, "later": CALLER})


@settings(SLOW, max_examples=20)
@given(st.lists(PLANNED, min_size=1, max_size=6), OWN, st.sampled_from([0, 1, 2]), st.data())
def test_http2_streams_go_through_whole_or_reset(
    planned: list[Planned], own: dict[str, dict[Any, int]], concurrency: int, data: st.DataObject
) -> None:
    """Fields, bodies and trailers arrive, resets reach the other side, and neither side sees the protocol broken."""

    async def scenario() -> None:
        bench = await RelayBench(concurrency).started()
        story = Http2Story(bench, Steps(bench, data), planned, own)
        await story.steps.run(story.possible)
        for one in planned:
            if "reset by caller" in one.seen_by:
                assert "asked" not in one.seen_by or one.seen_by & {
                    "reset by caller seen",
                    "sent all",
                    "reset by component",
                }, one
            elif "reset by component" in one.seen_by:
                assert "reset seen by caller" in one.seen_by, one
            else:
                assert one.seen_by >= {"asked to the end", "status 200", "answer ended"}, one
                assert (len(one.asked), len(one.answered)) == (one.asks, one.answers)
                assert ("trailers" in one.seen_by) is one.has_trailers
                assert ("request's trailers" in one.seen_by) is one.asks_trailers
        assert not bench.caller.is_closed
        assert bench.subject.gate.inside == bench.subject.gate.waiting == 0

    run_relay(scenario())


@settings(SLOW, max_examples=20)
@given(st.lists(PLANNED, min_size=1, max_size=6), OWN, st.sampled_from([0, 1, 2]), st.data())
def test_http2_a_component_that_dies_is_told_to_each_stream(
    planned: list[Planned], own: dict[str, dict[Any, int]], concurrency: int, data: st.DataObject
) -> None:
    """What it has not seen may be sent again, and says so; of the rest nothing looks whole that is not; the connection ends."""

    async def scenario() -> None:
        bench = await RelayBench(concurrency).started()
        story = Http2Story(bench, Steps(bench, data), planned, own)
        has_died = False

        def die() -> None:
            nonlocal has_died
            has_died = True
            assert bench.component is not None
            bench.loop.may_connect = False
            bench.subject.die()
            bench.component.lose()

        def possible() -> Iterator[Callable[[], object]]:
            if not has_died:
                yield from story.possible()
                if bench.component is not None:
                    yield die
            elif bench.caller.held:
                yield lambda: story._take(story.caller, bench.caller)

        await story.steps.run(possible)
        if not has_died:
            return
        assert bench.caller.is_closed
        assert bench.subject.gate.inside == bench.subject.gate.waiting == 0
        for one in story.by_number.values():
            if "refused" in one.seen_by:
                assert "asked" not in one.seen_by, one
            elif not one.seen_by & {"asked", "reset by caller"}:
                assert "status 502" in one.seen_by, one  # it was on its way to the component
            if one.seen_by >= {"status 200", "answer ended"}:
                assert len(one.answered) == one.answers, one

    run_relay(scenario())
