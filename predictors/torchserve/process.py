"""One worker process: started with an archive's folder, asked over a socket pair, killed when it hangs.

It answers a batch, or two where one is prepared while its device works on the other (`worker/overlap.py`). Whatever ends it,
the owner hears once, by `on_end`, with the reason.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..serving.tasks import Tasks
from . import frames
from .beginning import Begun, begin
from .handler_metrics import Update
from .manifest import ArchiveError

logger = logging.getLogger("torpor.torchserve")

Done = Callable[[Sequence[dict[str, Any]], Sequence[Sequence[memoryview]]], None]
"""Gets the replies, and the blobs of each."""


OnPiece = Callable[[dict[str, Any], memoryview], None]
"""Gets what is said of a piece of an answer, and the piece."""


OnEnd = Callable[["WorkerProcess", str, int], None]
"""Gets the reason, and how many batches of those that it was asked last it had not begun with."""


OnMetrics = Callable[[Sequence[Update]], None]
"""Gets what its handler has counted."""


class _Asked(NamedTuple):
    """Who waits for a batch."""

    done: Done
    on_piece: OnPiece


class WorkerProcess(asyncio.Protocol):
    """Belongs to one event loop. It is the `Flow` of its answers' pieces: who holds one piece up, holds up all that it does.

    at_once: how many batches it takes, once it is loaded.
    """

    def __init__(self, name: str, number: int, on_end: OnEnd, on_metrics: OnMetrics) -> None:
        """number: among all of its model's, in the order of their starts. on_end: called when it ends after it was loaded."""
        self.name = f"{name} worker {number}"
        self.number = number
        self.began_s = time.monotonic()
        self.at_once = 1
        self._on_end = on_end
        self._on_metrics = on_metrics
        self._loop = asyncio.get_running_loop()
        self._parser = frames.Parser()
        self._process: asyncio.subprocess.Process | None = None
        self._transport: asyncio.Transport | None = None
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._asked: dict[int, _Asked] = {}
        self._batches = 0
        self._timeout_s = 0.0
        self._holders: set[object] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._reason = ""
        self._unread = 0
        """Batches that it was given and has not read, the last ones."""
        self._ending = Tasks()

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    async def load(
        self,
        options: Mapping[str, Any],
        environment: Mapping[str, str],
        startup_timeout_s: float,
        begun: Begun | None = None,
    ) -> None:
        """Start it, if it has not begun, and let it load the handler.

        Raises ArchiveError with what it says, and then it is no more.
        """
        try:
            begun = begun or await begin(environment)
        except OSError as error:
            raise ArchiveError(f"{self.name}: cannot be started: {error}") from None
        self._process = begun.process
        self._transport, _ = await self._loop.create_unix_connection(lambda: self, sock=begun.link)
        self._send({"load": options})
        try:
            await asyncio.wait_for(asyncio.shield(self._loaded), startup_timeout_s)
        except TimeoutError:
            self._loaded.cancel()
            raise ArchiveError(f"{self.name}: the handler took more than {startup_timeout_s:g} s to load") from None
        finally:
            if self._loaded.cancelled() or self._loaded.exception() is not None:
                await self.stop()

    def run(
        self, head: dict[str, Any], parts: Sequence[Sequence[bytes]], done: Done, on_piece: OnPiece, timeout_s: float
    ) -> None:
        """Let it answer a batch, a part each call. `done`, or `on_end` if it ends before, is called later.

        timeout_s: it is killed when nothing has come from it for so long, neither an answer nor a piece of one.
        """
        assert self._transport is not None
        self._batches += 1
        self._asked[self._batches] = _Asked(done, on_piece)
        # A process that has just ended is told of by `_end`, later; nobody reads what it is sent meanwhile.
        if self._transport.is_closing():
            self._unread += 1
            return
        self._timeout_s = timeout_s
        if self._timer is None:
            self._watch()
        self._send({"batch": self._batches, **head}, parts)

    def hold(self, by: object) -> None:
        self._holders.add(by)
        if self._transport is not None:
            self._transport.pause_reading()
        self._stop_timer()  # it is not its handler that is slow

    def let_go(self, by: object) -> None:
        self._holders.discard(by)
        if not self._holders and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._watch()

    async def stop(self) -> None:
        """End it, and wait until it has gone."""
        self._on_end = lambda process, reason, unread: None
        if self._transport is not None:
            self._transport.close()
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), _LEAVING_S)
            except TimeoutError:
                self.kill()
                await self._process.wait()

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def data_received(self, data: bytes) -> None:
        for head, parts in self._parser.feed(data):
            self._receive(head, parts)

    def connection_lost(self, error: Exception | None) -> None:
        """Its end of the socket closes when it ends, and not before."""
        # A Unix socket whose peer goes without having read all of it is reset (unix(7)); one that has is at its end.
        self._unread += 0 if error is None else 1
        self._stop_timer()
        assert self._process is not None
        self._ending.start(self._end(self._process), f"end of {self.name}")

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        try:
            status = await asyncio.wait_for(process.wait(), _LEAVING_S)
        except TimeoutError:  # a handler may have closed its descriptors
            self.kill()
            status = await process.wait()
        how = f"signal {-status}" if status < 0 else f"status {status}"
        reason = self._reason or f"the handler ended its process with {how}"
        if not self._loaded.done():
            self._loaded.set_exception(ArchiveError(f"{self.name}: {reason} while it was loaded"))
        elif not self._loaded.cancelled() and self._loaded.exception() is None:
            self._on_end(self, reason, self._unread)

    def _receive(self, head: dict[str, Any], parts: list[list[memoryview]]) -> None:
        asked = self._asked.get(head.get("batch", 0))
        if asked is not None and "piece" in head:
            asked.on_piece(head, parts[0][0])
            self._watch()
        elif asked is not None:
            if head["metrics"]:
                self._on_metrics(head["metrics"])
            del self._asked[head["batch"]]
            self._watch()
            asked.done(head["replies"], parts)
        elif self._loaded.done():
            logger.error("%s: an unexpected message from its worker", self.name)
        elif "loaded" in head:
            self.at_once = head["loaded"]
            self._loaded.set_result(None)
        else:
            self._loaded.set_exception(ArchiveError(f"{self.name}: {head.get('failed')}"))

    def _send(self, head: dict[str, Any], parts: Sequence[Sequence[bytes]] = ()) -> None:
        assert self._transport is not None
        self._transport.writelines(frames.pack(head, parts))

    def _watch(self) -> None:
        """Give it its time anew, while it has something to answer and nobody holds it up."""
        self._stop_timer()
        if self._asked and not self._holders:
            self._timer = self._loop.call_later(self._timeout_s, self._expire)

    def _expire(self) -> None:
        self._reason = f"the handler took more than {self._timeout_s:g} s"
        logger.error("%s: %s, its process is killed", self.name, self._reason)
        self.kill()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_LEAVING_S = 5.0
"""For a handler that is at work when its server leaves; its callers have been answered."""
