"""From open port to empty process.

The port opens when every model is loaded and warm: KServe and Knative probe with TCP unless told otherwise, and a wake
must not let requests in before there is somebody to answer. At SIGTERM the server turns unready but goes on accepting:
endpoints are removed late, and SIGTERM may come in the middle of a request. Connections end with their next answer
(`Connection: close`; GOAWAY, `http2.py`): those through a Service know of no endpoints. When no request has come for
`drain_quiet_s` (or at `drain_timeout_s`) the port closes and what is in flight finishes, for what is left of
`drain_timeout_s` and FINISH_S: with its default the whole is as long as Kubernetes waits (terminationGracePeriodSeconds).
SIGINT skips the quiet.

A model that hangs, or whose device is broken, cannot be mended in this process: it ends in the same way, with a status
that makes whoever runs it (the kubelet, `supervisor.py`) start it anew.
"""

import asyncio
import logging
import signal
from collections.abc import Mapping
from types import MappingProxyType

from ..errors import ModelBroken
from ..settings import SettingError
from .data_plane import DataPlane
from .server import FINISH_S, HttpServer

logger = logging.getLogger("torpor")


class Lifecycle:
    """Runs a server over models that are loaded, and ends it on a signal. beside: servers that are there as long, by name."""

    def __init__(
        self,
        data_plane: DataPlane,
        server: HttpServer,
        drain_quiet_s: float,
        drain_timeout_s: float,
        beside: Mapping[str, HttpServer] = MappingProxyType({}),
    ) -> None:
        self._data_plane = data_plane
        self._server = server
        self._beside = beside
        self._drain_quiet_s = drain_quiet_s
        self._drain_timeout_s = drain_timeout_s
        self._stop: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._status = 0
        data_plane.on_broken.append(self._fail)

    async def run(self, started_message: str) -> int:
        """Serve until SIGTERM or SIGINT; `started_message` gets the address for its `{address}`. The exit status.

        Raises OSError for the server's address, SettingError for that of one beside it.
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop, self._drain_quiet_s)
        loop.add_signal_handler(signal.SIGINT, self.stop, 0.0)
        for name, server in self._beside.items():
            try:
                logger.info("%s on %s", name, await server.start())
            except OSError as error:
                raise SettingError(f"{name}: {error}") from None
        address = await self._server.start()
        await self._data_plane.set_ready(True)
        logger.info(started_message.format(address=address))
        quiet_s = await self._stop
        end_s = loop.time() + self._drain_timeout_s
        await self._drain(quiet_s, end_s)
        left_s = max(0.0, end_s - loop.time()) + FINISH_S
        await asyncio.gather(*(server.shutdown(left_s) for server in (self._server, *self._beside.values())))
        await asyncio.gather(*(model.end() for model in self._data_plane.models()))
        logger.info("stopped")
        return self._status

    def stop(self, quiet_s: float) -> None:
        """Begin to drain; a second call changes nothing."""
        if not self._stop.done():
            self._stop.set_result(quiet_s)

    def _fail(self, error: ModelBroken) -> None:
        logger.error("ending, so that a new process can take over: %s", error)
        self._status = 1
        self.stop(self._drain_quiet_s)

    async def _drain(self, quiet_s: float, end_s: float) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        self._data_plane.is_draining = True
        await self._data_plane.set_ready(False)
        await self._server.drain()
        logger.info(
            "draining: unready, still answering until quiet for %g s, at most %g s", quiet_s, self._drain_timeout_s
        )
        for model in self._data_plane.models():
            model.flush()
        while (now := loop.time()) < end_s:
            quiet_since_s = max(began_s, self._server.last_request_s)
            if not self._server.in_flight and now >= quiet_since_s + quiet_s:
                return
            await asyncio.sleep(min(0.05, end_s - now))
        for model in self._data_plane.models():
            model.abandon()
