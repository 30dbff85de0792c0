"""Events in a JetStream stream of a NATS server: persisted, told from their repeats, and taken by durable consumers.

A message is an event in the JSON format (CloudEvents' NATS binding, structured mode), its data always in base64: so the bytes
that were sent are those that arrive. Its subject is STREAM.TYPE, so that the server picks what a consumer wants, and
STREAM.TYPE.ORIGIN if it came over a link, so that the server finds the last one from there.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from torpor.predictors.errors import InvalidInput, PayloadTooLarge, Unavailable

from . import DataForm, Event, json_format
from .backlog import KEY, MOST_EVENTS, POSITION, Backlog, Position

logger = logging.getLogger("torpor.events")

STREAM = "torpor-events"

_PUBLISH_TIMEOUT_S = 5.0
_PULL_EXPIRES_S = 20.0
_MOST_SUBJECT_CHARACTERS = 200
_HEAD_BYTES = 1024
"""Of a message's headers, beside its payload."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """duplicate_window_s: for how long a repeat is told by source, id and type. max_age_s: for how long events are kept.

    max_age_s = 0 is for ever. max_bytes: of the stream on disk, -1 for no bound; one that is full refuses what comes, and loses
    nothing. keeps_taken: whether events stay when every consumer is done with them.
    """

    name: str = STREAM
    duplicate_window_s: float = 120.0
    max_age_s: float = 86_400.0
    max_bytes: int = -1
    keeps_taken: bool = True


def key_of(event: Event, *more: str) -> str:
    """What tells the event from others: by the specification source and id do; KServe's logger needs the type too."""
    parts = (event.source, event.id, event.type, *more)
    return sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()[:32]


def subject_of(stream: str, event_type: str) -> str:
    """The subject of events of a type that began here."""
    token = quote(event_type, safe="").replace(".", "%2E")
    if len(token) > _MOST_SUBJECT_CHARACTERS:
        token = sha256(event_type.encode()).hexdigest()
    return f"{stream}.{token}"


def subjects_of(stream: str, event_type: str) -> list[str]:
    """Those of events of a type, "" for all, wherever they began."""
    if not event_type:
        return [f"{stream}.>"]
    here = subject_of(stream, event_type)
    return [here, f"{here}.*"]


def encode_stored(event: Event) -> bytes:
    return json_format.encode(Event(event.attributes, event.data, DataForm.BINARY))


def decode_stored(payload: bytes) -> Event:
    """Raises InvalidInput."""
    stored = json_format.decode(payload)
    return Event(stored.attributes, stored.data)


@dataclass(frozen=True, slots=True)
class Stored:
    """An event in a stream. sequence: its number there. stored_at: when it came, in UTC as RFC 3339 has it."""

    sequence: int
    stored_at: str
    event: Event


class Taken:
    """An event that a consumer has, until it says what became of it.

    tries: deliveries so far, with this one. sequence: of the event in its stream.
    Whoever says nothing for the consumer's `ack_wait_s` gets it again.
    """

    __slots__ = ("_message", "event", "sequence", "tries")

    def __init__(self, message: Any, event: Event) -> None:
        self._message = message
        self.event = event
        self.tries: int = message.metadata.num_delivered
        self.sequence: int = message.metadata.sequence.stream

    async def done(self) -> None:
        await self._say(self._message.ack())

    async def again(self, wait_s: float) -> None:
        """Let it come again after so long, also to another process."""
        await self._say(self._message.nak(delay=max(0.001, wait_s)))

    async def working(self) -> None:
        """It is not lost, only slow."""
        await self._say(self._message.in_progress())

    async def _say(self, word: Any) -> None:
        import nats

        # What the server does not hear, it takes for silence, and delivers again.
        with contextlib.suppress(nats.errors.Error, OSError):
            await word


class JetStream:
    """A connection to a NATS server, kept for as long as the process wants it: it comes back by itself."""

    def __init__(self, client: Any) -> None:
        """client: of nats-py."""
        self.client = client
        self._jetstream = client.jetstream(timeout=_PUBLISH_TIMEOUT_S)
        self._consumers: list[Consumer] = []

    @classmethod
    async def connect(cls, url: str, within_s: float = 10.0) -> "JetStream":
        """Raises Unavailable if the server does not answer within so long."""
        import nats

        opened: list[JetStream] = []

        async def reconnected() -> None:
            for one in opened:
                for consumer in one._consumers:
                    await consumer.reconnected()

        async def failed(error: Exception) -> None:
            logger.debug("nats: %s", error)

        try:
            async with asyncio.timeout(within_s):
                while True:
                    try:
                        client = await nats.connect(
                            url, allow_reconnect=True, max_reconnect_attempts=-1, reconnect_time_wait=0.2,
                            reconnected_cb=reconnected, error_cb=failed, connect_timeout=2, ping_interval=5,
                            max_outstanding_pings=2,
                        )  # fmt: skip
                        break
                    except (nats.errors.Error, OSError):
                        await asyncio.sleep(0.05)
        except TimeoutError:
            raise Unavailable(f"no NATS server answers at {url} within {within_s:g} s") from None
        opened.append(cls(client))
        return opened[0]

    @property
    def is_connected(self) -> bool:
        return bool(self.client.is_connected)

    @property
    def max_event_bytes(self) -> int:
        """Of an event as it is stored."""
        return int(self.client.max_payload) - _HEAD_BYTES

    async def add_stream(self, settings: StreamSettings) -> None:
        """Have the stream, with these settings, also where it is there already. Raises Unavailable."""
        from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
        from nats.js.errors import BadRequestError

        config = StreamConfig(
            name=settings.name, subjects=[f"{settings.name}.>"], storage=StorageType.FILE,
            retention=RetentionPolicy.LIMITS if settings.keeps_taken else RetentionPolicy.INTEREST,
            discard=DiscardPolicy.NEW, max_bytes=settings.max_bytes, max_age=settings.max_age_s,
            duplicate_window=min(settings.duplicate_window_s, settings.max_age_s or settings.duplicate_window_s),
        )  # fmt: skip
        with _unavailable(f"stream {config.name}"):
            try:
                await self._jetstream.add_stream(config)
            except BadRequestError:  # it is there, with other settings
                await self._jetstream.update_stream(config)

    async def backlog(self, stream: str, name: str, event_types: Sequence[str] = ()) -> Backlog:
        """What the stream has for the end of a link that has this durable consumer; of these types, none for all.

        From its making on, the stream keeps it. Raises Unavailable.
        """
        from nats.js.api import AckPolicy, ConsumerConfig

        config = ConsumerConfig(
            durable_name=name, ack_policy=AckPolicy.ALL, max_ack_pending=MOST_EVENTS,
            filter_subjects=[one for kind in event_types or [""] for one in subjects_of(stream, kind)],
        )  # fmt: skip
        with _unavailable(f"consumer {name}"):
            await self._jetstream.add_consumer(stream, config)
        return Backlog(self.client, stream, name)

    async def position(self, stream: str, origin: str) -> Position | None:
        """Of the newest event that came from that end of a link, in its stream there. Raises Unavailable, ValueError."""
        from nats.js.errors import NotFoundError

        with _unavailable(f"stream {stream}"):
            try:
                newest = await self._jetstream.get_last_msg(stream, f"{stream}.*.{origin}")
            except NotFoundError:
                return None
        return Position.parse((newest.headers or {}).get(POSITION, ""))

    async def keep(self, stream: str, origin: str, event_type: str, payload: bytes, position: Position) -> None:
        """Store an event as it came from that end of a link, unless it is there. Raises Unavailable."""
        headers = {KEY: position.key, POSITION: str(position)}
        await self._store(f"{subject_of(stream, event_type)}.{origin}", payload, headers)

    async def waiting(self, stream: str, name: str) -> int:
        """How many events the end of a link that has this consumer does not have yet. Raises Unavailable."""
        with _unavailable(f"consumer {name}"):
            found = await self._jetstream.consumer_info(stream, name)
        return int(found.num_pending + found.num_ack_pending)

    async def drop_consumers(self, stream: str, but: Collection[str]) -> None:
        """Remove the durable consumers of other names, for which a stream would keep events. Raises Unavailable."""
        with _unavailable(f"stream {stream}"):
            for consumer in await self._jetstream.consumers_info(stream):
                if consumer.config.durable_name and consumer.name not in but:
                    logger.warning("stream %s: consumer %s is nobody's any more, and is removed", stream, consumer.name)
                    await self._jetstream.delete_consumer(stream, consumer.name)

    async def publish(self, stream: str, event: Event, key: str) -> bool:
        """Return when the event is on disk; whether it was there before. Raises Unavailable, PayloadTooLarge.

        key: of its repeats, `key_of`.
        """
        payload = encode_stored(event)
        if len(payload) > self.max_event_bytes:
            raise PayloadTooLarge(f"event = {len(payload)} bytes as stored, must be in [0, {self.max_event_bytes}]")
        return await self._store(subject_of(stream, event.type), payload, {KEY: key})

    async def _store(self, subject: str, payload: bytes, headers: dict[str, str]) -> bool:
        """Return when it is on disk; whether it was there before. Raises Unavailable."""
        if not self.is_connected:  # the client would keep it for later, and nobody would know
            raise Unavailable("the broker has lost its NATS server")
        with _unavailable("the event was not stored"):
            receipt = await self._jetstream.publish(subject, payload, headers=headers)
        return bool(receipt.duplicate)

    async def consume(
        self, stream: str, name: str, event_type: str, limit: int, ack_wait_s: float, on_event: Callable[[Taken], None]
    ) -> "Consumer":
        """Take events from the durable consumer of this name, at most `limit` at a time, from now on. Raises Unavailable.

        event_type: "" for all. ack_wait_s: after so long without a word an event is delivered again.
        """
        from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

        config = ConsumerConfig(
            durable_name=name, filter_subjects=subjects_of(stream, event_type),
            deliver_policy=DeliverPolicy.NEW, ack_policy=AckPolicy.EXPLICIT, ack_wait=ack_wait_s, max_deliver=-1,
            # Those that wait for their next try are of this number; they should not keep others waiting.
            max_ack_pending=limit + 10_000,
        )  # fmt: skip
        with _unavailable(f"consumer {name}"):
            await self._jetstream.add_consumer(stream, config)
            consumer = Consumer(self.client, stream, name, limit, on_event)
            await consumer.start()
        self._consumers.append(consumer)
        return consumer

    async def read(
        self, stream: str, sequence: int = 0, since: str = "", event_type: str = "", follows: bool = False
    ) -> AsyncGenerator[Stored, None]:
        """The events of a stream in their order, from a sequence number or a time (RFC 3339) on. Raises Unavailable.

        follows: wait for those that come; otherwise it ends with the newest.
        """
        import datetime

        import nats
        from nats.js.api import ConsumerConfig, DeliverPolicy

        config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL, filter_subjects=subjects_of(stream, event_type))
        if sequence:
            config.deliver_policy, config.opt_start_seq = DeliverPolicy.BY_START_SEQUENCE, sequence
        elif since:
            config.deliver_policy = DeliverPolicy.BY_START_TIME
            config.opt_start_time = datetime.datetime.fromisoformat(since)
        elif follows:
            config.deliver_policy = DeliverPolicy.NEW
        with _unavailable(f"stream {stream}"):
            last = (await self._jetstream.stream_info(stream)).state.last_seq
            ordered = await self._jetstream.subscribe(
                f"{stream}.>", stream=stream, ordered_consumer=True, config=config
            )
            try:
                while True:
                    try:
                        message = await ordered.next_msg(timeout=None if follows else 1.0)
                    except nats.errors.TimeoutError:
                        return
                    at = message.metadata
                    with contextlib.suppress(InvalidInput):
                        stamp = at.timestamp.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")
                        yield Stored(at.sequence.stream, stamp, decode_stored(message.data))
                    if not follows and at.sequence.stream >= last:
                        return
            finally:
                await ordered.unsubscribe()

    async def delete(self, stream: str, sequence: int) -> None:
        """Remove an event from a stream. Raises Unavailable."""
        with _unavailable(f"event {sequence} of {stream}"):
            await self._jetstream.delete_msg(stream, sequence)

    async def close(self) -> None:
        with contextlib.suppress(OSError):  # a server that is gone cannot be told
            await self.client.close()


class Consumer:
    """Pulls events for as long as there is room for them."""

    def __init__(self, client: Any, stream: str, name: str, limit: int, on_event: Callable[[Taken], None]) -> None:
        self._client = client
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"
        self._inbox = client.new_inbox()
        self._limit = limit
        self._on_event = on_event
        self._asked = 0
        """Events that were asked for and have not come."""
        self._asked_s = 0.0
        self._held = 0
        self._subscription: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._pulls: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._subscription = await self._client.subscribe(self._inbox, cb=self._received)
        await self._pull()
        self._watch()

    async def stop(self) -> None:
        """Take no more; what has been taken stays so."""
        if self._timer is not None:
            self._timer.cancel()
        self._limit = 0
        with contextlib.suppress(Exception):  # a client that has lost its server cannot tell it
            await self._subscription.unsubscribe()

    def finished(self) -> None:
        """There is room for another."""
        self._held -= 1
        if self._wants():
            task = asyncio.get_running_loop().create_task(self._pull())
            self._pulls.add(task)
            task.add_done_callback(self._pulls.discard)

    async def reconnected(self) -> None:
        """What was asked before is forgotten."""
        self._asked = 0
        await self._pull()

    def _wants(self) -> bool:
        """Several at a time: a pull is a message, too."""
        room = self._limit - self._held - self._asked
        return room > 0 and (room >= self._limit / 4 or not self._asked)

    async def _pull(self) -> None:
        import nats

        if not self._wants():
            return
        room = self._limit - self._held - self._asked
        self._asked += room
        self._asked_s = asyncio.get_running_loop().time()
        request = {"batch": room, "expires": round(_PULL_EXPIRES_S * 1e9)}
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._client.publish(self._next, json.dumps(request).encode(), self._inbox)

    async def _received(self, message: Any) -> None:
        if not message.reply:
            await self._ended(message.headers or {})
            return
        self._asked = max(0, self._asked - 1)
        try:
            taken = Taken(message, decode_stored(message.data))
        except Exception:
            logger.exception("message on %s is no event, and is dropped", message.subject)
            await message.term()
            return
        if not self._limit:
            await taken.again(0.0)
            return
        self._held += 1
        self._on_event(taken)

    async def _ended(self, headers: dict[str, str]) -> None:
        """A pull is over; how many of it did not come, the server says."""
        if headers.get("Status") == "100":
            return
        self._asked = max(0, self._asked - int(headers.get("Nats-Pending-Messages", self._asked)))
        await self._pull()

    def _watch(self) -> None:
        """A pull of which nothing more is heard was lost."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._asked_s > _PULL_EXPIRES_S + 5.0:
            self._asked = 0
        if self._wants():
            self._held += 1
            self.finished()
        self._timer = loop.call_later(1.0, self._watch)


@contextlib.contextmanager
def _unavailable(what: str) -> Any:
    import nats

    try:
        yield
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise Unavailable(f"{what}: {str(error) or 'no answer from the NATS server'}") from error
