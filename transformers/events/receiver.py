"""Events as requests: `POST /`, or a model's own predict and infer paths, with an event as the message.

    message ─► decode ─► content ─► model.start ─► reply ─► [store] ─► the answer's message | [sink] and 202

Events and requests share everything from `model.start` on. What the statuses make a Knative broker do: 200 with an event
sends that on; 202 and 204 end the delivery; 400, 413, 415 go to the dead letter sink at once; 404, 429 and 5xx are
delivered again.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from torpor.predictors.errors import InvalidInput, ModelFailed, NotFound, TorporError
from torpor.predictors.protocol.inference import NO_TERMS, InferResponse
from torpor.predictors.serving.batcher import Outputs
from torpor.predictors.serving.data_plane import DataPlane, Served
from torpor.predictors.serving.exchange import Exchange
from torpor.predictors.serving.settling import settling
from torpor.predictors.serving.tasks import Tasks
from torpor.predictors.serving.together import Together

from . import Event, Mode, decode, encode, encode_batch, mode_of
from .content import LENGTH, Asked, read
from .http_binding import Message
from .json_format import decode as decode_stored
from .json_format import encode as encode_stored
from .reply import Identity
from .store import MOST_BYTES, Store

logger = logging.getLogger("torpor.events")

Replied = Callable[[Event | TorporError | None], None]
"""Called with the answer; with None for an event that wants none."""

Fail = Callable[[Exchange, Exception], None]

_ACCEPTED = 202


class Sink(Protocol):
    """Where answers go that do not go back with the response."""

    async def deliver(self, event: Event) -> None:
        """Return when the event is somebody else's. Raises Unavailable."""
        ...


class Receiver:
    """Answers events. Without a store nothing is kept; without a sink the answer is the response."""

    def __init__(
        self,
        data_plane: DataPlane,
        fail: Fail,
        source: str,
        event_type: str,
        store: Store | None = None,
        sink: Sink | None = None,
    ) -> None:
        """fail: answers an exchange with an error. source: of replies, "" for one by the model's name."""
        self._data_plane = data_plane
        self._fail = fail
        self._source = source
        self._type = event_type
        self._store = store
        self._sink = sink
        self._identities: dict[str, Identity] = {}
        self._repeats: dict[str, list[Replied]] = {}
        """Of events that are being answered: who else waits for the same answer."""
        self._tasks = Tasks()

    def handler(self, model: Served | None, version: str = "") -> Callable[[Exchange], None]:
        """What answers an exchange when its body has come.

        model: that the path names, or None, and then version: of the only model, "" for any. Raises NotFound.
        """
        return partial(self._receive, self._only(version) if model is None else model)

    def _only(self, version: str) -> Served:
        names = self._data_plane.names()
        if len(names) != 1:
            raise NotFound(
                f"POST / is for a server of one model, must be POST /v1/models/NAME:predict of {', '.join(names)}"
            )
        model = self._data_plane.model(names[0], version)
        self._data_plane.check_accepting(model)
        return model

    def _receive(self, model: Served, exchange: Exchange) -> None:
        headers = exchange.head.headers
        mode = mode_of(headers)
        events = decode(headers, exchange.body)
        if isinstance(events, Event):
            exchange.on_leave = self._answer(model, exchange, events, partial(self._respond, exchange, mode))
            return
        if not events:
            exchange.respond(_ACCEPTED, b"")
            return
        self._answer_all(model, exchange, events)

    def _answer_all(self, model: Served, exchange: Exchange, events: Sequence[Event]) -> None:
        """Answer a batch: with all replies in their order, or with the first error."""
        replies: dict[int, Event | None] = {}
        leave: list[Callable[[], object]] = []
        is_over = False

        def left() -> None:
            nonlocal is_over
            is_over = True
            for one in leave:
                one()

        def replied(number: int, result: Event | TorporError | None) -> None:
            if is_over:
                return
            if isinstance(result, TorporError):
                left()
                if isinstance(result, InvalidInput | ModelFailed):
                    result = type(result)(f"event {number} of the batch: {result}")
                self._fail(exchange, result)
                return
            replies[number] = result
            if len(replies) == len(events):
                ordered = [reply for n in range(len(events)) if (reply := replies[n]) is not None]
                self._send(exchange, ordered, partial(encode_batch, ordered))

        for number, event in enumerate(events):
            if is_over:
                return
            leave.append(self._answer(model, exchange, event, partial(replied, number)))
        exchange.on_leave = left

    def _respond(self, exchange: Exchange, mode: Mode, result: Event | TorporError | None) -> None:
        if isinstance(result, TorporError):
            self._fail(exchange, result)
        elif result is None:
            exchange.respond(_ACCEPTED, b"")
        else:
            self._send(exchange, [result], partial(_message, result, mode))

    def _send(self, exchange: Exchange, replies: Sequence[Event], message: Callable[[], Any]) -> None:
        self._data_plane.metrics.requests["event", "200"] += 1
        if self._sink is None:
            headers, body = message()
            exchange.respond(200, body, headers.items())
            return
        self._tasks.start(self._deliver(self._sink, exchange, replies), "deliver")

    async def _deliver(self, sink: Sink, exchange: Exchange, replies: Sequence[Event]) -> None:
        """Only then is the request done: until the sink has them, the sender has the event."""
        try:
            for reply in replies:
                await sink.deliver(reply)
        except TorporError as error:
            self._fail(exchange, error)
        else:
            exchange.respond(_ACCEPTED, b"")

    def _answer(self, model: Served, exchange: Exchange, event: Event, replied: Replied) -> Callable[[], object]:
        """Have the event answered; returns what its leaving caller calls. Raises a TorporError, and then does not reply."""
        identity = self._identity(model)
        if identity.is_ours(event):
            logger.warning("an answer came back as a request: filter the trigger by type, not %s", identity.type)
            replied(None)
            return _nothing
        if self._store is None:
            return self._run(model, exchange, event, identity, replied)
        key = identity.id(event.attributes)
        waiting = self._repeats.setdefault(key, [])
        waiting.append(replied)
        if len(waiting) == 1:
            self._tasks.start(self._answer_once(self._store, key, model, exchange, event, identity), "answer")
        return _nothing  # whoever leaves comes again, and finds the answer

    async def _answer_once(
        self, store: Store, key: str, model: Served, exchange: Exchange, event: Event, identity: Identity
    ) -> None:
        """The stored answer, or the first one, to all who wait for it."""
        result: Event | TorporError
        try:
            kept = await store.get(key)
            if kept is None:
                reply = await self._ran(model, exchange, event, identity)
                answer = encode_stored(reply)
                kept = await store.keep(key, answer) if len(answer) <= MOST_BYTES else answer
            result = decode_stored(kept)
        except TorporError as error:
            result = error
        except Exception:
            logger.exception("an event could not be answered")
            result = ModelFailed("internal error; the server's log has the details")
        for replied in self._repeats.pop(key):
            replied(result)

    async def _ran(self, model: Served, exchange: Exchange, event: Event, identity: Identity) -> Event:
        reply: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._run(model, exchange, event, identity, settling(reply))
        return await reply

    def _run(
        self,
        model: Served,
        exchange: Exchange,
        event: Event,
        identity: Identity,
        replied: Callable[[Event | TorporError], None],
    ) -> Callable[[], object]:
        """Have the model answer."""
        head = exchange.head
        json_length = head.headers.get(b"inference-header-content-length")
        asked = read(event, model, None if json_length is None else json_length.decode("latin-1"))
        headers, span = self._data_plane.begin(model, head)

        def answered(results: list[Outputs] | TorporError) -> None:
            if isinstance(results, TorporError):
                replied(results)
                return
            try:
                reply = identity.reply(event, asked.encode(_responses(model, asked, results)))
            except TorporError as error:
                replied(error)
            else:
                replied(reply)

        together = Together(model, answered)
        together.start(asked.requests, headers, exchange.timeout_s)
        return self._data_plane.leaving(together.cancel, together, span, together.parts)

    def _identity(self, model: Served) -> Identity:
        identity = self._identities.get(model.name)
        if identity is None:
            source = self._source or f"io.kserve.inference.{model.name}"
            identity = self._identities[model.name] = Identity(source, self._type)
        return identity


def _message(reply: Event, mode: Mode) -> Message:
    """A reply as the body of an answer. A caller of a model's path that passes an event's headers on, as a transformer does
    (`client/passing_on.py`), looks for v2's header.
    """
    headers, body = encode(reply, mode)
    length = reply.attributes.get(LENGTH)
    if length is not None and mode is Mode.BINARY:
        headers[b"inference-header-content-length"] = length.encode()
    return headers, body


def _nothing() -> None:
    pass


def _responses(model: Served, asked: Asked, results: Sequence[Outputs]) -> list[InferResponse]:
    terms = asked.requests[0].terms if len(results) == 1 else NO_TERMS
    return [model.response(terms, outputs) for outputs in results]
