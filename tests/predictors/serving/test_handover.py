"""The handover of connections to workers: what a worker had no descriptor for is not lost."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from torpor.predictors.errors import Unavailable
from torpor.predictors.serving.supervisor import CLOSED, GIVEN, MISSED, TAKEN, Worker
from torpor.predictors.serving.worker import HandedDown

TIMEOUT_S = 10


@contextmanager
def given(count: int) -> Iterator[tuple[Worker, socket.socket, list[socket.socket], list[socket.socket]]]:
    """A worker, as its supervisor sees it, with so many connections on their way to it; its own end; those taken back."""
    with ExitStack() as stack:
        ours, its = (stack.enter_context(one) for one in socket.socketpair())
        ours.setblocking(False)
        taken_back: list[socket.socket] = []
        worker = Worker(1, lambda _: {}, taken_back.append)
        worker._handover = ours
        connections = [stack.enter_context(socket.socket()) for _ in range(count)]
        assert all(worker.give(connection) for connection in connections)
        yield worker, its, connections, taken_back


def test_a_connection_that_was_missed_comes_back() -> None:
    """The oldest of those that were not taken; the worker counts as full until one of its own has ended."""

    async def story() -> None:
        with given(3) as (worker, its, connections, taken_back):
            its.send(TAKEN + MISSED)
            assert worker._hear()
            assert taken_back == [connections[1]]
            assert (worker.connections, worker.is_full, list(worker.untaken)) == (2, True, [connections[2]])
            its.send(TAKEN + CLOSED)
            assert worker._hear()
            assert (worker.connections, worker.is_full) == (1, False)

    asyncio.run(story())


def test_a_worker_is_full_with_a_single_connection() -> None:
    """Its end makes room for the one that was missed."""

    async def story() -> None:
        with given(2) as (worker, its, _, _):
            its.send(TAKEN + MISSED)
            assert worker._hear()
            assert (worker.connections, worker.is_full) == (1, True)

    asyncio.run(story())


def test_a_worker_that_ends_with_connections_on_their_way_says_no_more() -> None:
    """What it has not read makes its end a reset, and that is heard once."""

    async def story() -> None:
        with given(1) as (worker, its, connections, _):
            loop = asyncio.get_running_loop()
            loop.add_reader(worker._handover, worker._hear)
            its.close()
            assert not worker._hear()
            assert not loop.remove_reader(worker._handover)
            assert list(worker.untaken) == connections

    asyncio.run(story())


def test_a_worker_without_connections_is_not_full() -> None:
    """Nothing of its own can end: it is tried again."""

    async def story() -> None:
        with given(1) as (worker, its, _, taken_back):
            its.send(MISSED)
            assert worker._hear()
            assert (worker.connections, worker.is_full, len(taken_back)) == (0, False, 1)

    asyncio.run(story())


def test_a_worker_says_that_it_missed_a_connection() -> None:
    """The system drops a descriptor that does not fit into the worker's table, and passes on the byte that went with it."""

    async def story() -> bytes:
        ours, its = socket.socketpair()
        with ours, its:
            its.setblocking(False)
            colleagues: Any = SimpleNamespace(channel=None)
            listener = HandedDown(its, colleagues, 1, None)
            ours.send(GIVEN)
            listener._receive()
            await asyncio.sleep(0)
            return ours.recv(16)

    assert asyncio.run(story()) == MISSED


Listening = tuple[HandedDown, socket.socket, list[asyncio.Protocol]]


@contextmanager
def listening(
    call: Callable[[str], Awaitable[object]] | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[Listening]:
    """A worker's listener, the supervisor's end, and the connections that have opened. call: of the supervisor."""
    ours, its = socket.socketpair()
    with ours, its:
        its.setblocking(False)
        colleagues: Any = SimpleNamespace(channel=SimpleNamespace(call=call))
        listener = HandedDown(its, colleagues, 1, tls)
        opened: list[asyncio.Protocol] = []

        class Opening(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                transport.abort()
                opened.append(self)

        listener._protocol = Opening
        asyncio.get_running_loop().add_reader(its, listener._receive)
        yield listener, ours, opened
        asyncio.get_running_loop().remove_reader(its)


def test_a_worker_that_leaves_opens_what_had_been_sent_to_it() -> None:
    """The supervisor may have passed connections on before it knew."""

    async def story() -> None:
        async def leave(name: str) -> None:
            assert name == "leave"
            for connection in socket.socketpair():
                with connection:
                    socket.send_fds(ours, [GIVEN], [connection.fileno()])
            ours.shutdown(socket.SHUT_WR)

        with listening(leave) as (listener, ours, opened):
            await asyncio.wait_for(listener.close(), TIMEOUT_S)
            assert len(opened) == 2
            assert not asyncio.get_running_loop().remove_reader(listener._handover)  # its end would be news for ever

    asyncio.run(story())


def test_a_worker_leaves_also_when_its_supervisor_has_died(caplog: pytest.LogCaptureFixture) -> None:
    """What the supervisor had not read of it makes that a reset."""

    async def story() -> None:
        async def gone(name: str) -> None:
            raise Unavailable("it has ended")

        with listening(gone) as (listener, ours, _):
            listener._note(TAKEN)
            await asyncio.sleep(0)
            ours.close()
            await listener.drain()
            await asyncio.wait_for(listener.close(), TIMEOUT_S)
            listener._note(CLOSED)
            await asyncio.sleep(0)
            assert not listener._news

    asyncio.run(story())
    assert [record.getMessage()[:40] for record in caplog.records] == ["no more connections from the supervisor:"]


def test_a_connection_that_does_not_open_has_closed(caplog: pytest.LogCaptureFixture) -> None:
    """Here its caller speaks no TLS. Else the worker would count as busier than it is, for ever."""

    async def story() -> None:
        with listening(tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) as (_, ours, _):
            ours.setblocking(False)
            caller, connection = socket.socketpair()
            with caller, connection:
                caller.send(b"GET / HTTP/1.1\r\n\r\n")
                socket.send_fds(ours, [GIVEN], [connection.fileno()])
                assert await heard(ours, 2) == TAKEN + CLOSED

    asyncio.run(story())
    assert "a connection did not open" in caplog.text


async def heard(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await asyncio.wait_for(asyncio.get_running_loop().sock_recv(end, 1 << 20), TIMEOUT_S)
    return data


def test_news_for_a_supervisor_that_does_not_read_is_kept() -> None:
    """As much as goes is sent, the rest later, nothing twice."""

    async def story() -> None:
        with listening() as (listener, ours, _):
            ours.setblocking(False)
            size = 4 * ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            listener._note(TAKEN * size)
            listener._note(CLOSED)
            await asyncio.sleep(0)
            assert 0 < len(listener._news) < size
            listener._tell()  # when there is no room at all
            assert await heard(ours, size + 1) == TAKEN * size + CLOSED
            assert not listener._news

    asyncio.run(story())
