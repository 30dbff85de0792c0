"""What sends events, at the end of a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from torpor.transformers.events import Event
from torpor.transformers.events.delivery import Failed, deliver_once
from torpor.transformers.events.destination import Destination
from torpor.transformers.events.http_caller import HttpCaller

EVENT = Event({"specversion": "1.0", "id": "1", "source": "/me", "type": "ask"}, b"data")
TAKEN = b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\nx: y\r\n\r\nok"


class Receiver:
    """Gives each request the next of `answers`, and after an empty one nothing; `connections` holds the heads of each."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = [*answers]
        self.connections: list[list[bytes]] = []
        self.left = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads: list[bytes] = []
        self.connections.append(heads)
        try:
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                await reader.readexactly(4)
                writer.write(self._answers.pop(0))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            self.left.set()


@asynccontextmanager
async def receiving(*answers: bytes) -> AsyncIterator[tuple[Receiver, HttpCaller]]:
    receiver, caller = Receiver(*answers), HttpCaller()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield receiver, caller
    finally:
        await caller.close()
        await asyncio.wait_for(receiver.left.wait(), 10)
        server.close()


def test_all_paths_of_an_address_share_its_connections() -> None:
    """A broker has one for each namespace; the request's line, fields and body arrive as they were given."""

    async def scenario() -> None:
        async with receiving(TAKEN, TAKEN) as (receiver, caller):
            for target in ("/a%20b?c=d", "/"):
                reply = await caller.post(
                    Destination.parse("sink", receiver.url + target), {b"ce-id": b"1"}, b"data", 10.0
                )
                assert (reply.status, reply.headers[b"x"], reply.body) == (202, b"y", b"ok")
            (heads,) = receiver.connections
            host = receiver.url.removeprefix("http://").encode()
            expected = b"POST %b HTTP/1.1\r\nhost: " + host + b"\r\ncontent-length: 4\r\nce-id: 1\r\n\r\n"
            assert heads == [expected % b"/a%20b?c=d", expected % b"/"]

    asyncio.run(scenario())


def test_an_answer_that_is_late_is_not_waited_for() -> None:
    """The receiver sees it: the connection is closed, and its late answer can be nobody else's."""

    async def scenario() -> None:
        async with receiving(b"") as (receiver, caller):
            with pytest.raises(TimeoutError):
                await caller.post(Destination.parse("sink", receiver.url), {}, b"data", 0.1)
            await asyncio.wait_for(receiver.left.wait(), 10)  # before the caller is closed

    asyncio.run(scenario())


def test_what_is_no_answer_is_a_failure_that_comes_again() -> None:
    """With the address and what was wrong, for the dead letter."""

    async def scenario() -> None:
        async with receiving(b"hello there\r\n\r\n") as (receiver, caller):
            outcome = await deliver_once(caller, Destination.parse("sink", receiver.url), EVENT, 10.0)
            assert isinstance(outcome, Failed)
            assert (outcome.is_final, outcome.code) == (False, 500)
            assert outcome.data.startswith(f"the answer of {receiver.url} is no HTTP/1.1".encode())

    asyncio.run(scenario())
