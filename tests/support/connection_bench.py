"""A connection in the test's own process, without a socket: its transport, its application and its clock are the test's."""

import asyncio
from collections.abc import Callable

from hyperframe.frame import Frame, HeadersFrame, SettingsFrame
from torpor.predictors.errors import TorporError
from torpor.predictors.serving.exchange import Application, Exchange, Fields
from torpor.predictors.serving.http1 import Http1
from torpor.predictors.serving.http2 import Http2
from torpor.predictors.serving.http2_fields import encode_field
from torpor.predictors.serving.server import HttpServer, Port


class Transport:
    """Remembers what was written and how it ended."""

    def __init__(self) -> None:
        self.written = b""
        self.ended = ""
        self.is_paused = False
        self.has_halves = True
        """Whether one side can be ended alone, which TLS cannot."""
        self.on_write: Callable[[], object] = lambda: None
        self.untaken_bytes = 0
        """What the caller has not read."""

    def get_write_buffer_size(self) -> int:
        return self.untaken_bytes

    def write(self, data: bytes) -> None:
        self.written += data
        self.on_write()

    def can_write_eof(self) -> bool:
        return self.has_halves

    def write_eof(self) -> None:
        self.ended = "half"

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"

    def is_closing(self) -> bool:
        return self.ended in ("closed", "aborted")

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class App:
    """Keeps what it is asked, to be answered by the test; `/echo` is answered at once, `/watch` reads for itself."""

    def __init__(self) -> None:
        self.asked: list[Exchange] = []

    def open(self, exchange: Exchange) -> bool:
        if exchange.head.path == "/watch":
            self.asked.append(exchange)
            return False
        exchange.handler = self.asked.append
        if exchange.head.path == "/echo":
            exchange.handler = lambda exchange: exchange.respond(200, exchange.body)
        return True

    def answer(self, exchange: Exchange) -> None:
        assert exchange.handler is not None
        exchange.handler(exchange)

    def refuse(self, exchange: Exchange, error: TorporError) -> None:
        exchange.respond(error.http_status, str(error).encode())

    def malformed(self, error: TorporError) -> tuple[bytes, Fields]:
        return str(error).encode(), ()


class Bench:
    """A connection of either version to a server whose clock the test moves. application: in place of `app`."""

    def __init__(self, protocol: type[Http1] | type[Http2], application: Application | None = None) -> None:
        self.app = App()
        self.server = HttpServer(application or self.app, Port("", 0, None), 1 << 20, 1 << 30)
        self.server.now_s = 1000.0
        self.transport = Transport()
        self.connection = protocol(self.server)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]
        if protocol is Http2:
            self.frames(SettingsFrame(0))

    def say(self, data: bytes) -> None:
        self.connection.data_received(data)

    def frames(self, *frames: Frame) -> None:
        self.say(b"".join(frame.serialize() for frame in frames))

    def post(self, stream: int, path: bytes = b"/echo", *, ends: bool = False) -> HeadersFrame:
        names = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path)]
        block = b"".join(encode_field(name, value) for name, value in names)
        return HeadersFrame(stream, block, flags=["END_HEADERS", *(["END_STREAM"] if ends else [])])

    def later(self, seconds: float) -> "Bench":
        """The server looks after so many seconds."""
        self.server.now_s += seconds
        for connection in [*self.server.connections]:
            connection.sweep()
        return self

    def written(self) -> bytes:
        self.server.loop.run_until_complete(asyncio.sleep(0))  # what is due at the end of an iteration
        data, self.transport.written = self.transport.written, b""
        return data

    def sent(self) -> list[Frame]:
        """The frames that were written since the last look."""
        data, frames = self.written(), []
        while data:
            frame, length = Frame.parse_frame_header(memoryview(data[:9]))
            frame.parse_body(memoryview(data[9 : 9 + length]))
            frames.append(frame)
            data = data[9 + length :]
        return frames
