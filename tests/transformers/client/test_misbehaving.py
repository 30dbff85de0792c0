"""Predictors that misbehave, on raw sockets: what each becomes for the caller, and what is sent again."""

import asyncio

import numpy as np
import pytest
from torpor.predictors.errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    NotFound,
    PredictorFailed,
    QueueFull,
    TorporError,
    Unavailable,
)
from torpor.transformers.client import Backoff, InferRequest, PredictorClient
from torpor.transformers.client.connection import Connection
from torpor.transformers.client.pool import Pool

PATIENCE_S = 0.3
AT_ONCE = Backoff(first_s=0.0)


def client(predictor, **options) -> PredictorClient:
    return PredictorClient(predictor.address, "m", "v2-json", **{"backoff": AT_ONCE, "timeout_s": 30.0} | options)


async def error_of(asked, kind: type[TorporError]) -> str:
    with pytest.raises(kind) as caught:
        await asked
    assert type(caught.value) is kind
    return str(caught.value)


def always(answer: bytes):
    async def behave(caller) -> None:
        while True:
            await caller.request()
            await caller.send(answer)

    return behave


def closing_after(data: bytes):
    """Sends so much of an answer, then closes."""

    async def behave(caller) -> None:
        await caller.request()
        await caller.send(data)

    return behave


def test_one_connection_serves_request_after_request(run, predictor, small, ok) -> None:
    """It is kept, and so is the next caller's."""

    async def scenario() -> None:
        async with predictor(always(ok())) as server, client(server) as asking:
            for _ in range(5):
                response = await asking.infer(small)
                assert response.outputs["y"].tolist() == [5]
                assert (response.model_name, response.model_version) == ("m", "7")
            assert server.connections == 1

    run(scenario())


@pytest.mark.parametrize("size", [1, 7, 50])
@pytest.mark.parametrize("form", ["length", "chunked", "until the end", "after 100 Continue"])
def test_an_answer_may_come_in_any_pieces(run, predictor, small, ok, size: int, form: str) -> None:
    """By length, in chunks, to the connection's end, and after an interim answer; byte by byte too."""
    body = ok().partition(b"\r\n\r\n")[2]
    answers = {
        "length": ok(),
        "chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n%b\r\n%x;a=b\r\n%b\r\n0\r\nx: y\r\n\r\n"
        % (body[:5], len(body) - 5, body[5:]),
        "until the end": b"HTTP/1.1 200 OK\r\n\r\n" + body,
        "after 100 Continue": b"HTTP/1.1 100 Continue\r\n\r\n" + ok(),
    }

    async def behave(caller) -> None:
        for _ in range(2):
            await caller.request()
            answer = answers[form]
            for at in range(0, len(answer), size):
                await caller.send(answer[at : at + size])
                await asyncio.sleep(0)
            if form == "until the end":
                return

    async def scenario() -> None:
        async with predictor(behave) as server, client(server) as asking:
            for _ in range(2):
                assert (await asking.infer(small)).outputs["y"].tolist() == [5]
            assert server.connections == (2 if form == "until the end" else 1)

    run(scenario())


def test_connection_close_is_obeyed(run, predictor, small, ok) -> None:
    """A draining server says so with its last answer."""

    async def scenario() -> None:
        async with predictor(always(ok(b'{"error": "no"}', b"connection: close", status=b"404 Not Found"))) as server:
            async with client(server, max_connections=1) as asking:
                for _ in range(3):
                    assert await error_of(asking.infer(small), NotFound) == "no"
            assert server.connections == 3

    run(scenario())


def test_a_connection_that_was_closed_while_idle_costs_nobody_a_request(run, predictor, ok) -> None:
    """The request that came too late on it is sent again, at once and before those that wait: nobody can have read it."""
    bodies: list[bytes] = []

    async def scenario() -> None:
        others_wait = asyncio.Event()

        async def once(caller) -> None:
            await caller.request()
            await caller.send(ok())
            await caller.request()  # it has come, but as it were to nobody
            await others_wait.wait()
            caller.reset()

        async def after(caller) -> None:
            while True:
                bodies.append((await caller.request())[1])
                await caller.send(ok())

        requests = [InferRequest({"x": np.array([n])}) for n in range(3)]
        options = {"backoff": Backoff(retries=0), "max_connections": 1}
        async with predictor(once, after) as server, client(server, **options) as asking:
            await asking.infer(requests[0])
            tasks = [asyncio.create_task(asking.infer(request)) for request in requests]
            await asyncio.sleep(0)
            others_wait.set()
            assert [answer.outputs["y"].tolist() for answer in await asyncio.gather(*tasks)] == [[5]] * 3
            assert server.connections == 2
        assert [b'"data":[%d]' % n in body for n, body in enumerate(bodies)] == [True] * 3

    run(scenario())


def test_a_restarted_server_costs_nobody_a_request(run, predictor, small, ok) -> None:
    """All idle connections are stale at once."""

    async def scenario() -> None:
        gate = asyncio.Event()

        async def until_gate(caller) -> None:
            await caller.request()
            await caller.send(ok())
            await gate.wait()

        behaviours = [until_gate] * 4 + [always(ok())]
        async with predictor(*behaviours) as server, client(server, backoff=Backoff(retries=0)) as asking:
            await asyncio.gather(*(asking.infer(small) for _ in range(4)))
            assert server.connections == 4
            gate.set()
            for _ in range(5):
                await asking.infer(small)

    run(scenario())


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"", r"http://\S+ closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", "in the middle of its answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", "in the middle of its answer"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{", "in the middle of its answer"),
        (b"hello there\r\n\r\n", "is no HTTP/1.1"),
        (b"HTTP/1.1 OK\r\n\r\n", "is no HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "is no HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}", "is no HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n{}", "is no HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", "is no HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\n" + b"".join(b"h%d: v\r\n" % n for n in range(10_000)) + b"\r\n", "more than 256 header fields"),
        (b"HTTP/1.1 200 OK\r\n" + b"h: v\r\n" * 10_000 + b"\r\n", "more than 256 header fields"),
        (b"HTTP/1.1 200 OK\r\nlong: " + b"v" * (1 << 20), r"head = \d+ bytes or more, must be in \[0, 65536\]"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 4000, r"head = \d+ bytes or more"),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "is no HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "outputs must be a non-empty list"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n{", r"body = 1001 bytes, must be in \[0, 1000\]"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: " + b"9" * 30 + b"\r\n\r\n{", "is no HTTP/1.1|bytes, must be in"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 1001, r"body = 1001 or more bytes"),
        (b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", "the predictor answered 302"),
    ],
)  # fmt: skip
def test_garbage_is_the_predictors_failure_and_never_sent_again(
    run, predictor, small, sent: bytes, message: str
) -> None:
    """It may have run the request: the caller learns precisely what came instead of an answer."""

    async def scenario() -> None:
        async with predictor(closing_after(sent)) as server, client(server, max_answer_bytes=1000) as asking:
            text = await error_of(asking.infer(small), PredictorFailed)
            assert server.connections == 1
            with pytest.raises(AssertionError, match=message):
                raise AssertionError(text)

    run(scenario())


def test_a_reset_in_the_middle_is_the_predictors_failure(run, predictor, small) -> None:
    """Like an end, only ruder."""

    async def behave(caller) -> None:
        await caller.request()
        await caller.send(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{")
        caller.reset()

    async def scenario() -> None:
        async with predictor(behave) as server, client(server) as asking:
            assert "closed the connection" in await error_of(asking.infer(small), PredictorFailed)
            assert server.connections == 1

    run(scenario())


@pytest.mark.parametrize("surplus", [b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"x", b"\r\n\r\nabc"])
def test_a_longer_answer_than_it_says_ends_the_connection(run, predictor, small, ok, surplus: bytes) -> None:
    """What follows an answer would be the next caller's: the connection is not used again."""

    async def scenario() -> None:
        async with predictor(always(ok() + surplus)) as server, client(server) as asking:
            for _ in range(3):
                assert (await asking.infer(small)).outputs["y"].tolist() == [5]
            assert server.connections == 3

    run(scenario())


def test_an_interim_answers_head_is_not_taken_for_the_answers(run, predictor, small, ok) -> None:
    """Though heads are kept by their bytes, and what follows it is as long as the kept one's body."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    second = ok(b'{"error": "no"}'.ljust(200), status=b"404 Not Found")
    first = ok(ok().partition(b"\r\n\r\n")[2].ljust(len(second)))

    async def behave(caller) -> None:
        for answer in (first, second):
            await caller.request()
            await caller.send(interim + answer)

    async def scenario() -> None:
        async with predictor(behave) as server, client(server) as asking:
            assert (await asking.infer(small)).outputs["y"].tolist() == [5]
            assert await error_of(asking.infer(small), NotFound) == "no"

    run(scenario())


def test_what_comes_unasked_ends_the_connection(run, predictor, small, ok) -> None:
    """An answer that comes on an idle connection is nobody's."""

    async def scenario() -> None:
        answered, left = asyncio.Event(), asyncio.Event()

        async def behave(caller) -> None:
            await caller.request()
            await caller.send(ok())
            await answered.wait()
            await caller.send(ok(b"{}"))
            await caller.left()
            left.set()

        async with predictor(behave, always(ok())) as server, client(server) as asking:
            await asking.infer(small)
            answered.set()
            await left.wait()
            assert (await asking.infer(small)).outputs["y"].tolist() == [5]
            assert server.connections == 2

    run(scenario())


def test_a_predictor_that_is_slow_is_left_at_the_deadline(run, predictor, small) -> None:
    """The connection is closed, so that it learns of it; the deadline went with the request."""

    async def scenario() -> None:
        heads, left = [], asyncio.Event()

        async def silent(caller) -> None:
            heads.append((await caller.request())[0])
            await caller.left()
            left.set()

        async with predictor(silent) as server, client(server) as asking:
            await error_of(asking.infer(small, {"Traceparent": "00-1", "cookie": "no"}, PATIENCE_S), DeadlineExceeded)
            await left.wait()
        assert b"\r\ntraceparent: 00-1\r\ngrpc-timeout: 2" in heads[0]
        assert b"cookie" not in heads[0]

    run(scenario())


def test_a_caller_that_leaves_is_seen_to_leave(run, predictor, small) -> None:
    """A cancelled coroutine closes its connection and nobody else's."""

    async def scenario() -> None:
        asked, left = asyncio.Event(), asyncio.Event()

        async def silent(caller) -> None:
            await caller.request()
            asked.set()
            await caller.left()
            left.set()

        async with predictor(silent) as server, client(server) as asking:
            task = asyncio.create_task(asking.infer(small))
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await left.wait()

    run(scenario())


@pytest.mark.parametrize(
    ("status", "fields", "kind", "tries"),
    [
        (b"400 Bad Request", (), InvalidInput, 1),
        (b"422 Unprocessable Content", (), InvalidInput, 1),
        (b"404 Not Found", (), NotFound, 1),
        (b"500 Internal Server Error", (), ModelFailed, 1),
        (b"503 Service Unavailable", (), Unavailable, 1),
        (b"503 Service Unavailable", (b"retry-after: 0",), QueueFull, 3),
        (b"429 Too Many Requests", (b"retry-after: 0",), QueueFull, 3),
        (b"504 Gateway Timeout", (), DeadlineExceeded, 1),
        (b"502 Bad Gateway", (), PredictorFailed, 1),
        (b"418 I'm a teapot", (), InvalidInput, 1),
    ],
)
def test_a_refusal_keeps_its_meaning_and_its_text(run, predictor, small, ok, status, fields, kind, tries) -> None:
    """Only one that says when to come again says that nothing has begun; it alone is sent again."""
    asked = []

    async def refuse(caller) -> None:
        while True:
            asked.append(await caller.request())
            await caller.send(ok(b'{"error": "because"}', *fields, status=status))

    async def scenario() -> None:
        async with predictor(refuse) as server, client(server, backoff=Backoff(2, 0.0)) as asking:
            assert "because" in await error_of(asking.infer(small), kind)
            assert len(asked) == tries

    run(scenario())


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"detail": [{"loc": ["inputs"]}]}', '[{"loc":["inputs"]}]'),
        (b"upstream connect error\n", "upstream connect error"),
        (b"", "the predictor answered 400 without a text"),
        (b"[1, 2]", "[1, 2]"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"x" * 5000, "x" * 500),
    ],
)
def test_any_error_body_has_a_text(run, predictor, small, ok, body: bytes, text: str) -> None:
    """FastAPI's form, a proxy's plain text, nothing at all."""

    async def scenario() -> None:
        async with predictor(always(ok(body, status=b"400 Bad Request"))) as server, client(server) as asking:
            assert await error_of(asking.infer(small), InvalidInput) == text

    run(scenario())


def test_a_predictor_that_is_absent_is_tried_again_and_then_said_to_be(run, small, unused_address) -> None:
    """Nobody listens: nothing can have begun."""

    async def scenario() -> None:
        tries = []
        backoff = Backoff(2, 0.0, random=lambda: tries.append(1) or 0.0)
        async with PredictorClient(unused_address, "m", "v2-json", backoff=backoff) as asking:
            text = await error_of(asking.infer(small), Unavailable)
            assert text.startswith(f"http://{unused_address} cannot be reached: ")
            assert len(tries) == 2
            assert not await asking.is_ready()

    run(scenario())


def test_a_server_that_closes_at_once_does_not_make_the_client_spin(run, predictor, small) -> None:
    """Each try is one connection."""

    async def scenario() -> None:
        async def nobody(caller) -> None:
            caller.reset()

        async with predictor(nobody) as server, client(server, backoff=Backoff(2, 0.01)) as asking:
            with pytest.raises((Unavailable, PredictorFailed)):
                await asking.infer(small)
            assert server.connections <= 3

    run(scenario())


def test_a_connection_that_closes_as_it_opens_is_none(run, small, monkeypatch) -> None:
    """Nothing has been sent on it, so that is as if nobody had listened."""

    async def closed(pool: Pool) -> Connection:
        connection = Connection(pool, 1)
        connection.is_closed = True
        return connection

    async def scenario() -> None:
        monkeypatch.setattr(Pool, "_connect", closed)
        async with PredictorClient("a:1", "m", "v2-json", backoff=Backoff(0)) as asking:
            assert "closes connections at once" in await error_of(asking.infer(small), Unavailable)

    run(scenario())


def test_connections_are_bounded_and_the_oldest_caller_comes_first(run, predictor, small, ok) -> None:
    """Two connections for many callers; who waits too long is dropped from the queue, and it has an end."""

    async def scenario() -> None:
        gate, both = asyncio.Event(), asyncio.Event()
        rows: list[float] = []

        async def gated(caller) -> None:
            while True:
                _, body = await caller.request()
                rows.append(float(body.partition(b'"data":[')[2].partition(b"]")[0]))
                if len(rows) == 2:
                    both.set()
                await gate.wait()
                await caller.send(ok())

        def number(n: int) -> InferRequest:
            return InferRequest({"x": np.array([n], np.float32)})

        async with predictor(gated) as server, client(server, max_connections=2, max_waiting=3) as asking:
            tasks = [asyncio.create_task(asking.infer(number(n))) for n in range(2)]
            await both.wait()
            tasks.append(asyncio.create_task(asking.infer(number(2), timeout_s=0.01)))
            tasks += [asyncio.create_task(asking.infer(number(n))) for n in range(3, 5)]
            await asyncio.sleep(0)
            assert "must stay below 3" in await error_of(asking.infer(number(5)), QueueFull)
            await error_of(tasks[2], DeadlineExceeded)
            gate.set()
            await asyncio.gather(*(tasks[n] for n in (0, 1, 3, 4)))
            assert server.connections == 2
            assert rows in ([0, 1, 3, 4], [1, 0, 3, 4])

    run(scenario())


def test_an_idle_connection_is_closed_after_a_while(run, predictor, small, ok) -> None:
    """A server must not hold what nobody uses."""

    async def scenario() -> None:
        left = asyncio.Event()

        async def behave(caller) -> None:
            await caller.request()
            await caller.send(ok())
            await caller.left()
            left.set()

        async with predictor(behave) as server, client(server, idle_s=0.02) as asking:
            await asking.infer(small)
            await left.wait()

    run(scenario())


def test_closing_ends_what_is_under_way(run, predictor, small) -> None:
    """Nobody is left waiting, and nothing can be asked any more."""

    async def scenario() -> None:
        asked = asyncio.Event()

        async def silent(caller) -> None:
            await caller.request()
            asked.set()
            await caller.left()

        async with predictor(silent) as server:
            asking = client(server, max_connections=1)
            tasks = [asyncio.create_task(asking.infer(small)) for _ in range(2)]
            await asked.wait()
            await asking.close()
            for task in (*tasks, asking.infer(small)):
                assert await error_of(task, Unavailable) == "the client has been closed"

    run(scenario())


def test_a_request_larger_than_a_write_arrives_whole(run, predictor, ok) -> None:
    """In pieces, without a copy of the tensor."""
    array = np.arange(1 << 20, dtype=np.float32)
    got = []

    async def behave(caller) -> None:
        got.append((await caller.request())[1])
        await caller.send(ok())

    async def scenario() -> None:
        async with predictor(behave) as server, PredictorClient(server.address, "m", "v2-binary") as asking:
            await asking.infer(InferRequest({"x": array}))
        assert got[0].endswith(array.tobytes())

    run(scenario())
