"""One HTTP exchange over ASGI: the request's headers and body, limits included, and one response."""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from ..errors import InvalidInput, PayloadTooLarge

Headers = dict[bytes, bytes]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class CallerLeft(Exception):
    """The caller closed the connection while its body was still coming; there is nobody to answer."""


class Exchange:
    """A request and the way to answer it. `headers` by lower-case name; of a repeated one the last."""

    __slots__ = ("_receive", "_send", "closing", "headers", "max_body_bytes", "method", "path")

    def __init__(self, scope: Message, receive: Receive, send: Send, max_body_bytes: int, closing: bool) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: Headers = dict(scope["headers"])
        self.max_body_bytes = max_body_bytes
        # The server takes no more requests on this connection; HTTP/2 has GOAWAY for it and forbids the header.
        self.closing = closing and scope["http_version"] == "1.1"
        self._receive = receive
        self._send = send

    def text_headers(self) -> dict[str, str]:
        """The headers as a user's class sees them."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers.items()}

    async def body(self) -> bytes:
        """The whole body. Raises PayloadTooLarge, before the body is read where its length is announced."""
        length = self.headers.get(b"content-length")
        if length is not None and int(length) > self.max_body_bytes:
            raise self._too_large(int(length))
        body, more = await self.chunk()
        size = len(body)
        pieces = [body]
        while more:
            piece, more = await self.chunk()
            pieces.append(piece)
            size += len(piece)
            if size > self.max_body_bytes:
                raise self._too_large(size)
        if size > self.max_body_bytes:
            raise self._too_large(size)
        if len(pieces) == 1:
            return body
        if length is not None and size != int(length):
            raise InvalidInput(f"Content-Length = {int(length)}, the body has {size} bytes")
        return b"".join(pieces)

    async def chunk(self) -> tuple[bytes, bool]:
        """The next piece of a streamed body, and whether more comes."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise CallerLeft
        return message.get("body", b""), message.get("more_body", False)

    async def respond(self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Answer with the whole body at once."""
        head = [(b"content-length", b"%d" % len(body)), *headers]
        if self.closing:
            head.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        await self._send({"type": "http.response.body", "body": body})

    async def start_grpc(self) -> None:
        """Begin a gRPC response; messages and `end_grpc` follow."""
        await self._send({
            "type": "http.response.start", "status": 200, "trailers": True,
            "headers": [(b"content-type", b"application/grpc")],
        })  # fmt: skip

    async def send_message(self, frame: bytes) -> None:
        await self._send({"type": "http.response.body", "body": frame, "more_body": True})

    async def end_grpc(self, trailers: list[tuple[bytes, bytes]], frame: bytes = b"") -> None:
        """The last message, if any, and the status as trailers."""
        await self._send({"type": "http.response.body", "body": frame})
        await self._send({"type": "http.response.trailers", "headers": trailers})

    def _too_large(self, size: int) -> PayloadTooLarge:
        return PayloadTooLarge(f"body = {size} bytes, must be in [0, {self.max_body_bytes}]")
