"""HTTP entrances for events: what a broker, or whoever prints events, has in place of a model's data plane."""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence

from torpor.predictors.errors import (
    InvalidInput,
    MethodNotAllowed,
    NotFound,
    TorporError,
    Unavailable,
    UnsupportedMedia,
)
from torpor.predictors.serving.exchange import Exchange, Fields, Head
from torpor.predictors.serving.rest import JSON, error_body
from torpor.predictors.serving.tasks import Tasks

from . import Event, decode, is_event

logger = logging.getLogger("torpor.events")

_ACCEPTED = 202
_TEXT = ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),)


class Ingress:
    """The application of a `serving.server.HttpServer`: `POST /` with events.

    take: return when the events are somebody else's; raises a TorporError. Gets the request's head, too.
    """

    def __init__(
        self,
        take: Callable[[Head, Sequence[Event]], Awaitable[None]],
        is_ready: Callable[[], bool],
        metrics: Callable[[], Awaitable[str]],
    ) -> None:
        self._take = take
        self._is_ready = is_ready
        self._metrics = metrics
        self._tasks = Tasks()

    def open(self, exchange: Exchange) -> bool:
        try:
            exchange.handler = self._route(exchange)
        except TorporError as error:
            self.refuse(exchange, error)
        return exchange.handler is not None

    def _route(self, exchange: Exchange) -> Callable[[Exchange], None] | None:
        head = exchange.head
        if head.path == "/":
            if head.method != "POST":
                raise MethodNotAllowed(f"{head.method} / is not here, must be POST / with an event")
            if head.headers.get(b"content-encoding", b"identity") != b"identity":
                raise UnsupportedMedia("Content-Encoding must be identity")
            return self._receive
        if head.method == "GET" and head.path in ("/healthz", "/readyz"):
            if not self._is_ready():
                raise Unavailable("there is no NATS server")
            exchange.respond(200, b"ok", _TEXT)
            return None
        if head.method == "GET" and head.path == "/metrics":
            return self._measure
        raise NotFound(f"{head.method} {head.path[:80]} is not here, must be POST /, GET /readyz or GET /metrics")

    def answer(self, exchange: Exchange) -> None:
        assert exchange.handler is not None
        try:
            exchange.handler(exchange)
        except TorporError as error:
            self.refuse(exchange, error)

    def refuse(self, exchange: Exchange, error: TorporError) -> None:
        fields = [*JSON, (b"retry-after", b"1")] if error.retryable else [*JSON]
        exchange.respond(error.http_status, error_body(str(error)), fields)

    def malformed(self, error: TorporError) -> tuple[bytes, Fields]:
        return error_body(str(error)), JSON

    def _receive(self, exchange: Exchange) -> None:
        headers = exchange.head.headers
        if not is_event(headers):
            raise InvalidInput("the request is no event, must have the headers ce-specversion, ce-id, ce-source and "
                               "ce-type, or Content-Type application/cloudevents+json")  # fmt: skip
        events = decode(headers, exchange.body)
        self._tasks.start(self._pass_on(exchange, [events] if isinstance(events, Event) else events), "ingress")

    def _measure(self, exchange: Exchange) -> None:
        self._tasks.start(self._tell(exchange), "metrics")

    async def _pass_on(self, exchange: Exchange, events: Sequence[Event]) -> None:
        with self._refusing(exchange):
            await self._take(exchange.head, events)
            exchange.respond(_ACCEPTED, b"")

    async def _tell(self, exchange: Exchange) -> None:
        with self._refusing(exchange):
            exchange.respond(200, (await self._metrics()).encode(), _TEXT)

    @contextlib.contextmanager
    def _refusing(self, exchange: Exchange) -> Iterator[None]:
        try:
            yield
        except TorporError as error:
            self.refuse(exchange, error)
        except Exception:
            logger.exception("%s %s failed", exchange.head.method, exchange.head.path)
            exchange.respond(500, error_body("internal error; the log has the details"), JSON)
