"""The ASGI application: gRPC goes one way, everything else is REST; neither knows which HTTP version it came by."""

import asyncio
import re

from .data_plane import DataPlane
from .exchange import Exchange, Message, Receive, Send
from .grpc_wire import Grpc
from .rest import Rest

_GRPC = re.compile(rb"application/grpc(?![\w-])")  # +proto may follow; grpc-web is another protocol


class App:
    """A plain ASGI callable over a data plane. Counts the exchanges in flight, for draining."""

    def __init__(self, data_plane: DataPlane, max_body_bytes: int) -> None:
        self._data_plane = data_plane
        self._max_body_bytes = max_body_bytes
        self._rest = Rest(data_plane)
        self._grpc = Grpc(data_plane)
        self.in_flight = 0
        self.last_request_s = 0.0
        self._time = asyncio.get_running_loop().time

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"scope type {scope['type']} is not served")
        exchange = Exchange(scope, receive, send, self._max_body_bytes, self._data_plane.is_draining)
        is_grpc = scope["http_version"] == "2" and _GRPC.match(exchange.headers.get(b"content-type", b""))
        if is_grpc and self._grpc.is_stream(exchange.path):
            await self._grpc.answer(exchange)  # a watch lasts as long as its caller: draining does not wait for it
            return
        self.in_flight += 1
        try:
            await (self._grpc if is_grpc else self._rest).answer(exchange)
        finally:
            self.in_flight -= 1
            self.last_request_s = self._time()
