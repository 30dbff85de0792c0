"""The handover of connections to workers: what a worker had no descriptor for is not lost."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

from torpor.predictors.serving.supervisor import CLOSED, GIVEN, MISSED, TAKEN, Worker
from torpor.predictors.serving.worker import HandedDown


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
