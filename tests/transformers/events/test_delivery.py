"""What an answer to a delivery means, and when the next try comes: pure rules, and waits in virtual time."""

import asyncio
import json
from base64 import b64decode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.predictors.errors import Unavailable
from torpor.transformers.client.address import Address
from torpor.transformers.client.message import Reply
from torpor.transformers.events import Event
from torpor.transformers.events.delivery import Backoff, Delivered, Failed, deliver, deliver_once, judged
from torpor.transformers.events.destination import Destination
from torpor.transformers.events.http_caller import HttpCaller
from torpor.transformers.events.sink import HttpSink, read_overrides
from virtual_time import run_virtually

EVENT = Event({"specversion": "1.0", "id": "1", "source": "/me", "type": "ask"}, b"data")
THERE = Destination(Address("127.0.0.1", 80), "/")
REPLY = {b"ce-specversion": b"1.0", b"ce-id": b"r", b"ce-source": b"/you", b"ce-type": b"told"}


@pytest.mark.parametrize("status", [404, 408, 409, 429, 500, 501, 502, 503, 504, 507])
def test_statuses_that_come_again(status: int) -> None:
    """As a Knative broker has it."""
    assert judged(Reply(status, {}, b"why")) == Failed(False, status, b"why")


@pytest.mark.parametrize("status", [301, 400, 401, 403, 405, 410, 413, 415, 418, 422, 425])
def test_statuses_that_are_final(status: int) -> None:
    """The same event would fail again."""
    assert judged(Reply(status, REPLY, b"")) == Failed(True, status, b"")


@pytest.mark.parametrize("status", [200, 202, 204])
def test_an_empty_success_ends_a_delivery(status: int) -> None:
    """Whatever the status' own meaning."""
    assert judged(Reply(status, {b"content-type": b"application/json"}, b"")) == Delivered()


def test_a_success_with_an_event_is_the_reply() -> None:
    """In any mode but batched."""
    expected = Event({"specversion": "1.0", "id": "r", "source": "/you", "type": "told"})
    assert judged(Reply(202, REPLY, b"")) == Delivered(expected)
    batch = Reply(200, {b"content-type": b"application/cloudevents-batch+json"}, b"[]")
    assert judged(batch) == Failed(False, 502, b"the reply is a batch, must be one event")


def test_a_success_with_anything_else_is_a_failure() -> None:
    """Knative's brokers send it again: a subscriber that answers plain JSON is set up wrongly."""
    outcome = judged(Reply(200, {b"content-type": b"application/json"}, b'{"predictions": []}'))
    assert outcome == Failed(False, 502, b'the reply is no event: {"predictions": []}')
    wrong = judged(Reply(200, {b"ce-id": b"1"}, b""))
    assert isinstance(wrong, Failed)
    assert not wrong.is_final


def test_gaps_of_both_policies() -> None:
    """Those that were seen on a cluster: linear by 0.5 s and exponential from 0.2 s on."""
    linear, exponential = Backoff(4, "linear", 0.5), Backoff(4, "exponential", 0.2)
    assert [linear.wait_s(tries) for tries in range(1, 6)] == [0.5, 1.0, 1.5, 2.0, None]
    assert [exponential.wait_s(tries) for tries in range(1, 6)] == pytest.approx([0.2, 0.4, 0.8, 1.6, None])
    assert Backoff(1000, "exponential", 1.0, most_s=9.0).wait_s(1000) == 9.0


@given(st.binary(max_size=3000), st.integers(100, 599))
def test_notes_of_a_dead_letter_fit_knatives_limit(data: bytes, code: int) -> None:
    """At most 1024 characters, an exact beginning, and the event itself unchanged."""
    letter = Failed(True, code, data).noted_on(EVENT, "http://there/")
    assert letter.data == EVENT.data
    assert (letter.attributes["knativeerrordest"], letter.attributes["knativeerrorcode"]) == (
        "http://there/",
        str(code),
    )
    noted = letter.attributes.get("knativeerrordata", "")
    assert len(noted) <= 1024
    assert data.startswith(b64decode(noted))
    assert bool(noted) == bool(data)


class Scripted:
    """Answers with statuses in turn, the last for ever; None takes longer than anyone waits. `times_s`: of each try."""

    def __init__(self, *statuses: int | None) -> None:
        self._statuses = [*statuses]
        self.times_s: list[float] = []
        self.sent: list[tuple[Destination, dict[bytes, bytes]]] = []

    async def post(self, destination: Destination, headers: Any, body: bytes, timeout_s: float) -> Reply:
        self.times_s.append(asyncio.get_running_loop().time() - 100.0)
        self.sent.append((destination, dict(headers)))
        status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        if status is None:
            await asyncio.sleep(timeout_s)
            raise TimeoutError
        return Reply(status, {}, b"" if status < 300 else b"no")


def test_tries_wait_as_the_policy_says_with_jitter() -> None:
    """Each wait lies in its upper half, where the draw puts it."""
    caller = Scripted(503, 429, None, 202)
    work = deliver(caller, THERE, EVENT, 2.0, Backoff(5, "exponential", 1.0), 60.0, drawn=lambda: 0.5)
    assert run_virtually(work) == Delivered()
    assert caller.times_s == pytest.approx([0.0, 0.75, 2.25, 4.25 + 3.0])


def test_tries_end_at_the_last_or_when_time_is_up() -> None:
    """Never later than within_s, not even by a slow answer."""
    caller = Scripted(500)
    outcome = run_virtually(deliver(caller, THERE, EVENT, 2.0, Backoff(2, "linear", 0.1), 60.0))
    assert (outcome, len(caller.times_s)) == (Failed(False, 500, b"no"), 3)
    slow = Scripted(None)

    async def timed() -> tuple[object, float]:
        outcome = await deliver(slow, THERE, EVENT, 4.0, Backoff(99, "linear", 1.0), 10.0, drawn=lambda: 0.99)
        return outcome, asyncio.get_running_loop().time() - 100.0

    outcome, took_s = run_virtually(timed())
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.is_final) == (504, False)
    assert took_s <= 10.0


def test_a_final_answer_is_not_tried_again() -> None:
    """Once is enough to learn it."""
    caller = Scripted(400)
    assert run_virtually(deliver(caller, THERE, EVENT, 1.0, Backoff(), 60.0)) == Failed(True, 400, b"no")
    assert len(caller.times_s) == 1


def test_nobody_there_is_a_retriable_500() -> None:
    """As Knative notes a refused connection."""
    outcome = asyncio.run(deliver_once(HttpCaller(), Destination.parse("there", "http://127.0.0.1:1/"), EVENT, 5.0))
    assert isinstance(outcome, Failed)
    assert (outcome.is_final, outcome.code) == (False, 500)
    assert b"Connect" in outcome.data


def test_a_sink_gives_its_extensions_and_its_failures() -> None:
    """K_CE_OVERRIDES go on each event; what fails for good goes to the dead letters with the reason."""
    overrides = read_overrides('{"extensions": {"site": "edge1"}}')
    caller = Scripted(400, 202)
    run_virtually(HttpSink(caller, "http://sink/", "http://dead/letters", overrides).deliver(EVENT))
    (first, headers), (second, letter) = caller.sent
    assert (first.address.host, second.address.host, second.target) == ("sink", "dead", "/letters")
    assert headers[b"ce-site"] == letter[b"ce-site"] == b"edge1"
    assert (letter[b"ce-knativeerrorcode"], letter[b"ce-knativeerrordest"]) == (b"400", b"http://sink/")


def test_a_sink_without_dead_letters_leaves_the_event_with_its_sender() -> None:
    """503: whoever sent the request comes again."""
    caller = Scripted(503)
    with pytest.raises(Unavailable, match="the sink did not take the answer: 503 no"):
        run_virtually(HttpSink(caller, "http://sink/", "", {}).deliver(EVENT))
    assert caller.times_s[-1] <= 30.0
    assert len(caller.times_s) > 3


@pytest.mark.parametrize("text", ["{", "[]", '{"extensions": {"Not-A-Name": "x"}}', '{"extensions": 1}'])
def test_wrong_overrides_are_refused(text: str) -> None:
    """At the start, not with the first event."""
    with pytest.raises(ValueError, match="K_CE_OVERRIDES"):
        read_overrides(text)


def test_no_overrides_are_none() -> None:
    """A SinkBinding without them sets the variable all the same, empty."""
    assert read_overrides("") == read_overrides(json.dumps({"extensions": None})) == {}


@pytest.mark.parametrize(
    "url",
    ["there", "there:80", "ftp://x/", "http://", "http://x:99999/", "http://x:0/", "http://[::1/", "http://a b/",
     "http://u:p@x/", "http://x/ä"],
)  # fmt: skip
def test_destinations_that_are_none(url: str) -> None:
    """The error names what was set, and how it must look."""
    with pytest.raises(ValueError, match="sink = "):
        Destination.parse("sink", url)


@pytest.mark.parametrize(
    ("url", "destination"),
    [
        ("http://sink", Destination(Address("sink", 80), "/")),
        ("http://sink:81/a%20b/?c=d", Destination(Address("sink", 81), "/a%20b/?c=d")),
        ("https://[::1]/x", Destination(Address("::1", 443, is_tls=True), "/x")),
    ],
)
def test_a_destination_is_an_address_and_a_target_as_written(url: str, destination: Destination) -> None:
    """A broker's path ends in a slash or not, and both mean something."""
    assert Destination.parse("sink", url) == destination
