"""A worker's side of `--processes`: its connections come from the supervisor, and what concerns all goes through it."""

import asyncio
import contextlib
import logging
import math
import socket
import ssl
from collections.abc import Callable
from typing import Any

from ..errors import Unavailable
from .channel import Channel
from .http1 import HEAD_S
from .merged_metrics import merged
from .metrics import ServerMetrics
from .repository import Repository
from .supervisor import CLOSED, MISSED, TAKEN

logger = logging.getLogger("torpor")

_PAUSE_S = 0.02


class Colleagues:
    """All processes of this server, its own among them, through their supervisor."""

    def __init__(self, repository: Repository, metrics: ServerMetrics) -> None:
        self._repository = repository
        self.most_connections = math.inf
        """Of this process: who has more than its share lets go of the others."""

        async def render(_: Any) -> str:
            return metrics.render().decode()

        async def prepare(change: tuple[str, bool]) -> None:
            await repository.prepare(*change)

        async def commit(change: tuple[str, bool]) -> None:
            repository.commit(*change)

        async def abort(name: str) -> None:
            repository.abort(name)

        async def limit(most: int | None) -> None:
            self.most_connections = math.inf if most is None else most

        async def live(_: Any) -> None:
            """The answer is all that is asked for."""

        self.channel = Channel(
            {"metrics": render, "prepare": prepare, "commit": commit, "abort": abort, "limit": limit, "live": live}
        )

    async def metrics(self) -> bytes:
        """The metrics of all as one text."""
        return merged(await self.channel.call("metrics")).encode()

    async def changes(self) -> dict[str, bool]:
        """Which models the others have loaded and unloaded since the server's start."""
        changes: dict[str, bool] = await self.channel.call("changes")
        return changes

    async def change(self, name: str, is_loaded: bool) -> None:
        await self.channel.call("change", [name, is_loaded])

    async def become_ready(self) -> None:
        """Have connections handed down from now on; what others changed meanwhile is followed first."""
        while changes := await self.channel.call("ready", self._repository.changes):
            for name, is_loaded in changes.items():
                await self._repository.change(name, is_loaded)


class HandedDown:
    """A listener whose connections the supervisor has accepted (`supervisor.py`)."""

    def __init__(
        self, handover: socket.socket, colleagues: Colleagues, number: int, tls: ssl.SSLContext | None
    ) -> None:
        self._handover = handover
        self._tls = tls
        self._colleagues = colleagues
        self._channel = colleagues.channel
        self._number = number
        self._loop = asyncio.get_running_loop()
        self._protocol: Callable[[], asyncio.Protocol] = asyncio.Protocol
        self._opening: set[asyncio.Task[Any]] = set()
        self._news = b""
        """What the supervisor has not been told yet."""
        self._ended = asyncio.Event()

    @property
    def most_connections(self) -> float:
        return self._colleagues.most_connections

    async def start(self, protocol: Callable[[], asyncio.Protocol]) -> str:
        self._protocol = protocol
        self._handover.setblocking(False)
        await self._colleagues.become_ready()
        self._loop.add_reader(self._handover, self._receive)
        return f"worker {self._number}"

    def released(self) -> None:
        self._note(CLOSED)

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
            if not descriptors:  # none was left for it here (recvmsg(2), MSG_CTRUNC)
                self._note(MISSED)
            for descriptor in descriptors:
                self._note(TAKEN)
                connection = socket.socket(fileno=descriptor)
                connection.setblocking(False)
                opening = self._loop.connect_accepted_socket(
                    self._protocol, connection, ssl=self._tls, ssl_handshake_timeout=HEAD_S if self._tls else None
                )
                task = self._loop.create_task(opening)
                self._opening.add(task)
                task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[Any]) -> None:
        self._opening.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.warning("a connection did not open: %s", error)
            self.released()

    def _note(self, news: bytes) -> None:
        if not self._news:
            self._loop.call_soon(self._tell)
        self._news += news

    def _tell(self) -> None:
        try:
            self._news = self._news[self._handover.send(self._news) :]
        except BlockingIOError:
            pass
        except OSError:  # the supervisor has gone
            self._news = b""
        if self._news:  # it does not read just now
            self._loop.call_later(_PAUSE_S, self._tell)
