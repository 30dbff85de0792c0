"""Calls between a supervisor and a worker: each gets an answer or an error, whatever becomes of the other end."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from torpor.predictors.errors import ModelFailed, NotFound, Unavailable
from torpor.predictors.serving.channel import Channel, Handler

TIMEOUT_S = 10


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, TIMEOUT_S))


@asynccontextmanager
async def running(connection: socket.socket, **handlers: Handler) -> AsyncIterator[tuple[Channel, asyncio.Task[None]]]:
    """A channel over this end of a connection, and what runs it."""
    channel = Channel(handlers)
    await channel.open(connection)
    task = asyncio.create_task(channel.run())
    try:
        yield channel, task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_a_call_gets_its_result_or_the_error_of_the_other_end() -> None:
    """A TorporError keeps its class and words; anything else is the model's failure. Results may be long."""

    async def twice(argument: str) -> str:
        return argument * 2

    async def refuse(_: Any) -> None:
        raise NotFound("model 'm' is unknown")

    async def fail(_: Any) -> None:
        raise ZeroDivisionError

    async def story() -> None:
        ours, its = socket.socketpair()
        async with running(ours) as (channel, _), running(its, twice=twice, refuse=refuse, fail=fail):
            assert await channel.call("twice", "x" * 100_000) == "x" * 200_000
            with pytest.raises(NotFound, match=r"^model 'm' is unknown$"):
                await channel.call("refuse")
            with pytest.raises(ModelFailed, match=r"^fail raised ZeroDivisionError$"):
                await channel.call("fail")

    run(story())


def test_who_asks_an_end_that_goes_is_told() -> None:
    """Before its going, of which the reading end learns by a reset, and after it; the channel ends without an error."""

    async def story() -> None:
        ours, its = socket.socketpair()
        async with running(ours) as (channel, task):
            asked = asyncio.create_task(channel.call("metrics"))
            await asyncio.sleep(0)
            its.close()  # what it was asked is unread
            with pytest.raises(Unavailable):
                await asked
            await task
            with pytest.raises(Unavailable):
                await channel.call("metrics")

    run(story())


def test_an_end_that_dies_in_the_middle_of_a_line_has_gone() -> None:
    """A worker may be killed while it tells its metrics: that ends its channel, and not its supervisor."""

    async def story() -> None:
        ours, its = socket.socketpair()
        async with running(ours) as (_, task):
            its.send(json.dumps({"answer": 1, "result": "torpor_requests_total 1"}).encode()[:20])
            its.close()
            await task

    run(story())


def test_an_answer_that_nobody_waits_for_any_more_is_dropped() -> None:
    """Whoever asked has left; the next call is answered."""

    async def story() -> None:
        late = asyncio.Event()

        async def wait(_: Any) -> None:
            await late.wait()

        async def echo(argument: str) -> str:
            late.set()
            return argument

        ours, its = socket.socketpair()
        async with running(ours) as (channel, _), running(its, wait=wait, echo=echo):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(channel.call("wait"), 0)
            asked = asyncio.create_task(channel.call("wait"))
            await asyncio.sleep(0)
            asked.cancel()
            assert [await channel.call("echo", word) for word in ("a", "b")] == ["a", "b"]

    run(story())


def test_a_call_and_its_channel_may_be_cancelled_at_once() -> None:
    """As all tasks are when a process ends."""

    async def story() -> None:
        ours, its = socket.socketpair()
        with its:
            async with running(ours) as (channel, task):
                asked = asyncio.create_task(channel.call("metrics"))
                await asyncio.sleep(0)
                task.cancel()
                asked.cancel()
                for cancelled in (task, asked):
                    with pytest.raises(asyncio.CancelledError):
                        await cancelled

    run(story())


def test_an_answer_for_an_end_that_has_gone_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """Its handler took longer than whoever asked lived."""

    async def story() -> None:
        asked, gone = asyncio.Event(), asyncio.Event()

        async def wait(_: Any) -> None:
            asked.set()
            await gone.wait()

        ours, its = socket.socketpair()
        async with running(ours, wait=wait) as (channel, task):
            its.send(b'{"call": 1, "name": "wait", "argument": null}\n')
            await asked.wait()
            its.close()
            await task
            gone.set()
            await channel._answering.ended()

    run(story())
    assert not caplog.records
