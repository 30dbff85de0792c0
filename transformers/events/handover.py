"""Events from one end of a link to the other, each stored there once and in their order.

    taker: what is behind this position? ─► link ─► giver: lets go of what is up to there, and waits for more
    taker: stores each with its position ◄─ link ◄─ giver: the next events, each with its position and the one before it

Where a taker stands it reads from what it has stored, and it takes an event only behind the one where it stands: what is lost
on the way, comes twice or too late does no harm. Messages of the link itself are NATS' plain ones.
"""

import asyncio
import logging
from typing import Any

from torpor.predictors.errors import InvalidInput, Unavailable

from .backlog import POSITION, Backlog, Position
from .jetstream import JetStream, decode_stored
from .link import asked

logger = logging.getLogger("torpor.events")

_AFTER = "Torpor-After"
"""The header of a given event: the position before it."""

_ASK = "Torpor-Ask"
"""The header of an ask's number, and of the end of its answer."""

_HOLD_S = 4.0
"""How long a giver waits for events before it says that there are none."""

_LOOK_S = 5.0
"""How often a taker that hears nothing asks the same again, so that it learns what was lost, and whether anybody is there."""

_AGAIN_S = 1.0


class Giver:
    """Answers the other end's taker, one ask after the other."""

    def __init__(self, client: Any, backlog: Backlog, subject: str) -> None:
        """client: of nats-py. subject: of what is given."""
        self._client = client
        self._backlog = backlog
        self._subject = subject
        self._answered = ""
        self.name = f"giver of {subject}"

    async def run(self) -> None:
        """Until it is cancelled."""
        asks = await self._client.subscribe(asked(self._subject))
        while True:
            headers = (await asks.next_msg(timeout=None)).headers or {}
            await self._give(headers.get(_AFTER, ""), headers.get(_ASK, ""))

    async def _give(self, after: str, ask: str) -> None:
        import nats

        try:
            # What has been given for this ask is on its way, and is not sent once more: the end is behind it, or it is lost.
            last = Position.parse(after) if after else None
            events = [] if ask == self._answered else await self._backlog.after(last, _HOLD_S)
            for one in events:
                position = str(one.position)
                await self._client.publish(self._subject, one.payload, headers={_AFTER: after, POSITION: position})
                after = position
            await self._client.publish(self._subject, headers={_ASK: ask})
            self._answered = ask
        except ValueError:
            logger.warning("%s: asked for what is behind %.200r, which is no position", self._subject, after)
        except (Unavailable, nats.errors.Error, OSError) as error:
            logger.warning("%s: nothing is given for now: %s", self._subject, error)


class Taker:
    """Asks the other end's giver, and stores what it gives."""

    def __init__(self, jetstream: JetStream, stream: str, origin: str, subject: str) -> None:
        """stream: where it stores. origin: the other end's name. subject: of what is given."""
        self._client = jetstream.client
        self._jetstream = jetstream
        self._stream = stream
        self._origin = origin
        self._subject = subject
        self._ask = 0
        self.name = f"taker of {subject}"

    async def run(self) -> None:
        """Until it is cancelled."""
        import nats

        given = await self._client.subscribe(self._subject)
        trouble = ""
        while True:
            try:
                at = await self._jetstream.position(self._stream, self._origin)
                while True:
                    at = await self._take(given, at)
                    trouble = ""
            except (Unavailable, ValueError, nats.errors.Error, OSError) as error:
                if trouble != (trouble := str(error)):
                    logger.info("%s: nothing is taken for now: %s", self._subject, trouble)
                await asyncio.sleep(_AGAIN_S)

    async def _take(self, given: Any, at: Position | None) -> Position | None:
        """Ask once, and store what comes behind that position; where it stands then.

        Raises Unavailable if the other end is not there or an event cannot be stored, ValueError for what is no position.
        """
        self._ask += 1
        ask = {_AFTER: str(at or ""), _ASK: str(self._ask)}
        await self._say(ask)
        while True:
            try:
                message = await given.next_msg(timeout=_LOOK_S)
            except TimeoutError:
                await self._say(ask)
                continue
            headers = message.headers or {}
            if headers.get("Status") == "503":
                raise Unavailable("the other end is not there")
            if headers.get(_ASK) == ask[_ASK]:
                return at
            if POSITION in headers and headers.get(_AFTER, "") == str(at or ""):
                at = await self._store(message.data, headers[POSITION])

    async def _say(self, headers: dict[str, str]) -> None:
        """With somewhere to answer to, so that NATS says when nobody hears it."""
        await self._client.publish(asked(self._subject), reply=self._subject, headers=headers)

    async def _store(self, payload: bytes, text: str) -> Position:
        """Raises Unavailable, and ValueError for what is no position."""
        at = Position.parse(text)
        try:
            event = decode_stored(payload)
        except InvalidInput as error:
            logger.error("%s: what is at %s is no event, and is dropped: %s", self._subject, text, error)
            return at
        await self._jetstream.keep(self._stream, self._origin, event.type, payload, at)
        return at
