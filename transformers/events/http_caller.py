"""Requests over HTTP/1.1 to any address, on kept connections: what deliveries, sinks and the command line send with."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

_MOST_KEPT = 64
"""Idle connections that are kept to one address."""

_MOST_BODY_BYTES = 64 << 20


class Response(NamedTuple):
    """headers: by lower-case name; a repeated one's last value."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Address(NamedTuple):
    """Where a URL leads. target: path and query."""

    host: str
    port: int
    is_tls: bool
    target: str

    @classmethod
    def parse(cls, name: str, url: str) -> "Address":
        """name: of what has the URL, for the error. Raises ValueError."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.username is not None:
            raise ValueError(f"{name} = {url!r}, must be http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH]")
        is_tls = parts.scheme == "https"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not (url.isascii() and url.isprintable()) or " " in url:
            raise ValueError(f"{name} = {url!r}, must be percent-encoded")
        return cls(parts.hostname, port or (443 if is_tls else 80), is_tls, target)

    @property
    def authority(self) -> str:
        """The value of the Host field."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"


_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HttpCaller:
    """Belongs to one event loop. Redirects are answers like any other."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int, bool], list[_Connection]] = {}
        self._tls: ssl.SSLContext | None = None

    async def post(self, address: Address, headers: Mapping[bytes, bytes], body: bytes, timeout_s: float) -> Response:
        """Send a request and give its answer. Raises OSError, and TimeoutError after timeout_s."""
        lines = [b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\n" % (
            address.target.encode(), address.authority.encode(), len(body)
        )]  # fmt: skip
        lines += [b"%b: %b\r\n" % field for field in headers.items()]
        request = b"".join([*lines, b"\r\n", body])
        async with asyncio.timeout(timeout_s):
            return await self._exchange(address, request)

    async def _exchange(self, address: Address, request: bytes) -> Response:
        kept = self._idle.setdefault(address[:3], [])
        while True:
            is_kept = bool(kept)
            reader, writer = kept.pop() if is_kept else await self._open(address)
            keeps = False
            try:
                writer.write(request)
                try:
                    first = await reader.readline()
                    if is_kept and not first:
                        continue  # it was closed while idle: nobody has read the request
                except ConnectionError:
                    if is_kept:
                        continue
                    raise
                response, keeps = await _response(reader, first)
                return response
            finally:
                if keeps and len(kept) < _MOST_KEPT:
                    kept.append((reader, writer))
                else:
                    writer.transport.abort()

    async def _open(self, address: Address) -> _Connection:
        if address.is_tls and self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        return await asyncio.open_connection(
            address.host, address.port, ssl=self._tls if address.is_tls else None, limit=1 << 16
        )

    def close(self) -> None:
        """Close what is idle."""
        for kept in self._idle.values():
            for _, writer in kept:
                writer.transport.abort()
            kept.clear()


async def _response(reader: asyncio.StreamReader, first: bytes) -> tuple[Response, bool]:
    """The answer whose first line this is, and whether the connection can take another request. Raises OSError."""
    try:
        while True:
            version, status, *_ = first.split(None, 2)
            headers = await _headers(reader)
            if int(status) >= 200:
                break
            first = await reader.readline()
        if not version.startswith(b"HTTP/1."):
            raise ValueError(version)
        keeps = version != b"HTTP/1.0" and b"close" not in headers.get(b"connection", b"").lower()
        if int(status) in (204, 304):
            body = b""
        elif b"chunked" in headers.get(b"transfer-encoding", b"").lower():
            body = await _chunks(reader)
        elif b"content-length" in headers:
            body = await reader.readexactly(_bounded(int(headers[b"content-length"])))
        else:
            body, keeps = await reader.read(_MOST_BODY_BYTES), False
    except (ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise ConnectionError(f"no answer in HTTP/1.1: {error}") from error
    return Response(int(status), headers, body), keeps


async def _headers(reader: asyncio.StreamReader) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    while (line := await reader.readline()) not in (b"\r\n", b"\n"):
        name, colon, value = line.partition(b":")
        if not colon or len(headers) > 256:
            raise ValueError(f"header {line[:40]!r}")
        headers[name.lower()] = value.strip()
    return headers


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    pieces: list[bytes] = []
    total = 0
    while size := int((await reader.readline()).partition(b";")[0], 16):
        total = _bounded(total + size)
        pieces.append((await reader.readexactly(size + 2))[:-2])
    await _headers(reader)
    return b"".join(pieces)


def _bounded(size: int) -> int:
    if not 0 <= size <= _MOST_BODY_BYTES:
        raise ValueError(f"body = {size} bytes, must be in [0, {_MOST_BODY_BYTES}]")
    return size
