"""One HTTP exchange: a request as its connection received it, and the way to answer it, whatever the HTTP version."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from ..errors import TorporError
from .request_options import NO_OPTIONS, Options

Headers = dict[bytes, bytes]
Field = tuple[bytes, bytes]
Fields = Iterable[Field]


@dataclass(frozen=True, slots=True)
class Head:
    """What precedes a request's body. Requests of equal heads share one, so that it is read and checked once.

    path: percent-encoded, without the query. headers: by lower-case name; a repeated one's values joined by commas.
    length: of the body in bytes, None if the head does not say. options: what the headers ask for.
    keeps_alive, awaits_continue, reads_chunks: HTTP/1's. query: what follows the path's `?`, "" without.
    """

    method: str
    path: str
    headers: Headers
    length: int | None
    is_grpc: bool = False
    options: Options = NO_OPTIONS
    keeps_alive: bool = True
    awaits_continue: bool = False
    query: str = ""
    reads_chunks: bool = True

    def __str__(self) -> str:
        """The request in the log."""
        trace = self.options.trace
        return f"{self.method} {self.path[:200]}" + (f" of trace {trace.trace_id}" if trace else "")

    def text_headers(self) -> dict[str, str]:
        """The headers as a user's class sees them."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers.items()}


def add_field(headers: Headers, name: bytes, value: bytes) -> None:
    """Take a field up into the headers: a repeated one's values are one list (RFC 9110, 5.3; RFC 9113, 8.2.3)."""
    if name in headers:
        value = headers[name] + (b"; " if name == b"cookie" else b", ") + value
    headers[name] = value


def path_and_query(target: bytes) -> tuple[str, str]:
    """Those of an ASCII target, without its fragment."""
    path, _, query = target.partition(b"#")[0].decode("ascii").partition("?")
    return path, query


class Exchange:
    """A request and its answer; a connection has its own kind. All of it happens on the event loop.

    body: whole when the handler is called. handler: what the application wants called then.
    on_leave: called if the caller leaves before it is answered; what is answered afterwards goes nowhere.

    An answer is one `respond`, or pieces: `begin`, any number of `send`, and `end`.
    has_begun: whether it is one in pieces. on_ready: called once when nothing is waiting any more for a caller that was behind.
    """

    __slots__ = ("__weakref__", "_began_s", "body", "handler", "has_begun", "head", "on_leave", "on_ready")

    def __init__(self, head: Head) -> None:
        self.head = head
        self.body = b""
        self.handler: Callable[[Exchange], None] | None = None
        self.on_leave: Callable[[], object] | None = None
        self.has_begun = False
        self.on_ready: Callable[[], object] | None = None
        self._begin()

    def _begin(self) -> None:
        """Note when the head had come, if its caller gives it so long from then on."""
        if self.head.options.timeout_s is not None:
            self._began_s = monotonic()

    @property
    def timeout_s(self) -> float | None:
        """What is left of the seconds that the head gives it: the body took some of them. None if it does not say."""
        timeout_s = self.head.options.timeout_s
        return None if timeout_s is None else timeout_s - (monotonic() - self._began_s)

    def respond(self, status: int, body: bytes, fields: Fields = ()) -> None:
        """Answer with the whole body at once. An answer that has begun breaks off: its caller sees that it is not whole."""
        raise NotImplementedError

    def begin(self, status: int, fields: Fields = ()) -> None:
        """Begin an answer in pieces."""
        raise NotImplementedError

    def send(self, data: bytes) -> bool:
        """The next piece. False if the caller is behind: until `on_ready` is called, what is sent waits in memory."""
        raise NotImplementedError

    def end(self) -> None:
        """The answer in pieces is whole."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Nothing waits for the caller any more, since it has taken it or has left."""
        on_ready, self.on_ready = self.on_ready, None
        if on_ready is not None:
            on_ready()


class Application(Protocol):
    """What a connection asks of the application: `serving.app.App`."""

    def open(self, exchange: Exchange) -> bool:
        """A head has come. Whether the body is wanted: else the exchange has been answered, or reads for itself."""

    def answer(self, exchange: Exchange) -> None:
        """The body has come."""

    def refuse(self, exchange: Exchange, error: TorporError) -> None:
        """Answer with an error that the connection found."""

    def malformed(self, error: TorporError) -> tuple[bytes, Fields]:
        """Body and fields of the answer to a caller whose head could not be read."""
