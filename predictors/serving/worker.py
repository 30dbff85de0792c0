"""A worker's side of `--processes`: its connections come from the supervisor, and its metrics go to all who ask."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any

from ..errors import Unavailable
from .channel import Channel
from .merged_metrics import merged

logger = logging.getLogger("torpor")


class Colleagues:
    """All processes of this server, its own among them, through their supervisor."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def metrics(self) -> bytes:
        """The metrics of all as one text."""
        return merged(await self._channel.call("metrics")).encode()


class HandedDown:
    """A listener whose connections the supervisor has accepted (`supervisor.py`)."""

    def __init__(self, handover: socket.socket, channel: Channel, number: int) -> None:
        self._handover = handover
        self._channel = channel
        self._number = number
        self._loop = asyncio.get_running_loop()
        self._protocol: Callable[[], asyncio.Protocol] = asyncio.Protocol
        self._opening: set[asyncio.Task[Any]] = set()
        self._released = 0
        self._is_telling = False
        self._ended = asyncio.Event()

    async def start(self, protocol: Callable[[], asyncio.Protocol]) -> str:
        self._protocol = protocol
        self._handover.setblocking(False)
        await self._channel.call("ready")
        self._loop.add_reader(self._handover, self._receive)
        return f"worker {self._number}"

    def released(self) -> None:
        self._released += 1
        if not self._is_telling:
            self._is_telling = True
            self._loop.call_soon(self._tell)

    async def drain(self) -> None:
        with contextlib.suppress(Unavailable):  # the supervisor has died
            await self._channel.call("drain")

    async def close(self) -> None:
        """Tell the supervisor, and take what it had sent before it knew."""
        with contextlib.suppress(Unavailable):
            await self._channel.call("leave")
        await self._ended.wait()
        if self._opening:
            await asyncio.wait(self._opening)

    def _receive(self) -> None:
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._handover, 1, 1)
            except BlockingIOError:
                return
            except OSError as error:
                logger.warning("no more connections from the supervisor: %s", error)
                data, descriptors = b"", []
            if not data:
                self._loop.remove_reader(self._handover)
                self._ended.set()
                return
            for descriptor in descriptors:
                connection = socket.socket(fileno=descriptor)
                connection.setblocking(False)
                task = self._loop.create_task(self._loop.connect_accepted_socket(self._protocol, connection))
                self._opening.add(task)
                task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[Any]) -> None:
        self._opening.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.warning("a connection did not open: %s", error)
            self.released()

    def _tell(self) -> None:
        """One byte for each connection that has closed."""
        self._is_telling = False
        try:
            self._released -= self._handover.send(b"x" * self._released)
        except BlockingIOError:  # the supervisor does not read just now: with the next one that closes
            pass
        except OSError:  # it has gone
            self._released = 0
