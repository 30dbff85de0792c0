"""What a stream holds for the other end of a link: in its order, and until that end has stored it.

    stream ─► durable consumer ─► given, at most MOST_EVENTS ─► the other end
                    ▲                          │
                    └── acknowledged up to the position that the other end has stored

Only the position that the other end reads from its own stream releases anything, so that nothing is here no more before it
is there, whoever dies when.
"""

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torpor.predictors.errors import Unavailable

MOST_EVENTS = 100
MOST_BYTES = 512 << 10
"""Of what is given at once, but for one event that is larger."""

KEY = "Nats-Msg-Id"
"""The header of an event's key."""

POSITION = "Torpor-Position"
"""The header of an event that came from another end: where it is there."""

_PULL_S = 5.0


@dataclass(frozen=True, slots=True)
class Position:
    """Of an event in a stream.

    stream: which one, by when it was made: one that takes its place has other sequences. key: of the event, since a disk that
    was set back counts on from an older one.
    """

    stream: str
    sequence: int
    key: str

    def __str__(self) -> str:
        return f"{self.stream}/{self.sequence}/{self.key}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Raises ValueError."""
        stream, sequence, key = text.split("/", 2)
        return cls(stream, int(sequence), key)


@dataclass(frozen=True, slots=True)
class Given:
    """An event, as it is stored."""

    position: Position
    payload: bytes
    message: Any
    """nats-py's."""


class Backlog:
    """Of one stream for one other end: `JetStream.backlog` makes it.

    One process reads it. The consumer is set back to what has been acknowledged when this one begins; from there its deliveries
    are counted, and the first that is another than the next, as after a server's end, makes it begin anew. Nothing is pulled
    while anything is given, so that the server delivers none a second time among them.
    """

    def __init__(self, client: Any, stream: str, consumer: str) -> None:
        """client: of nats-py."""
        self._client = client
        self._manager = client.jsm()
        self._stream = stream
        self._consumer = consumer
        self._inbox: Any = None
        self._is_begun = False
        self._made = ""
        self._delivered = 0
        self._pulls = 0
        self._given: deque[Given] = deque()

    async def after(self, last: Position | None, wait_s: float) -> Sequence[Given]:
        """The next events behind the last one that the other end has stored, which lets go of those up to it.

        Waits so long for the first. Raises Unavailable; then it begins anew.
        """
        import nats

        try:
            async with asyncio.timeout(wait_s + 2 * _PULL_S):
                if not self._is_begun:
                    await self._begin()
                stored = await self._sequence_of(last)
                await self._release(stored)
                while not self._given and await self._fill(wait_s):
                    await self._release(stored)
        except (nats.errors.Error, OSError, TimeoutError, Unavailable) as error:
            self._is_begun = False
            raise Unavailable(f"stream {self._stream} for {self._consumer}: {error or 'no answer'}") from error
        return [*self._given]

    async def _begin(self) -> None:
        """With a new inbox: what comes to the one before is nobody's."""
        if self._inbox is not None:
            await self._inbox.unsubscribe()
        self._inbox = await self._client.subscribe(f"{self._client.new_inbox()}.*")
        await self._client.request(f"$JS.API.CONSUMER.RESET.{self._stream}.{self._consumer}", timeout=_PULL_S)
        self._made = (await self._manager.stream_info(self._stream)).created.isoformat()
        self._given.clear()
        self._delivered = 0
        self._is_begun = True

    async def _sequence_of(self, last: Position | None) -> int:
        """Its sequence if it is of this stream, and still there; otherwise 0.

        If it is not there any more this consumer has let go of it before.
        """
        from nats.js.errors import NotFoundError

        if last is None or last.stream != self._made:
            return 0
        try:
            found = await self._manager.get_msg(self._stream, last.sequence)
        except NotFoundError:
            return 0
        return last.sequence if (found.headers or {}).get(KEY, "") == last.key else 0

    async def _release(self, stored: int) -> None:
        """Acknowledge all up to this sequence, by the last of them: the consumer counts those before it in."""
        released: Given | None = None
        while self._given and self._given[0].position.sequence <= stored:
            released = self._given.popleft()
        if released is not None:
            await released.message.ack_sync(timeout=_PULL_S)

    async def _fill(self, wait_s: float) -> bool:
        """Get what there is, or wait for one event; whether any has come."""
        await self._pull({"batch": MOST_EVENTS, "max_bytes": MOST_BYTES, "no_wait": True}, _PULL_S)
        if not self._given:
            # Of any size.
            await self._pull({"batch": 1, "expires": round(wait_s * 1e9)}, wait_s + _PULL_S)
        return bool(self._given)

    async def _pull(self, request: dict[str, Any], timeout_s: float) -> None:
        """Until as many have come, or the server says that no more do."""
        self._pulls += 1
        inbox = self._inbox.subject.replace("*", str(self._pulls))
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        await self._client.publish(subject, json.dumps(request).encode(), inbox)
        enough = len(self._given) + request["batch"]
        while len(self._given) < enough:
            message = await self._inbox.next_msg(timeout=timeout_s)
            if message.reply:
                self._given.append(self._counted(message))
            elif message.subject == inbox:  # otherwise the word on a pull before, which had all that it asked for
                return

    def _counted(self, message: Any) -> Given:
        at = message.metadata.sequence
        self._delivered += 1
        if at.consumer != self._delivered:
            raise Unavailable(f"delivery {at.consumer} came in place of {self._delivered}")
        return Given(Position(self._made, at.stream, (message.headers or {}).get(KEY, "")), message.data, message)
