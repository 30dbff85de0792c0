"""What a trigger does with each event: deliver it, publish the reply, come again later, or write a dead letter.

Nothing of it is in this process alone: an event leaves its consumer when it is the subscriber's, its reply is stored, or it is
a dead letter. Whatever ends before, JetStream delivers again; replies and dead letters are told from their repeats.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from typing import Protocol

from torpor.predictors.errors import PayloadTooLarge, TorporError
from torpor.predictors.serving.tasks import Tasks

from . import Event
from .delivery import Backoff, Caller, Delivered, Failed, deliver, deliver_once
from .destination import Destination
from .jetstream import Consumer, JetStream, Taken, key_of
from .trigger import DEAD_LETTERS, Trigger

logger = logging.getLogger("torpor.events")

TTL = "knativebrokerttl"
"""How many more times an event's replies may enter the broker; Knative's name and number. A subscriber does not see it."""

FIRST_TTL = 255
_LETTER_BACKOFF = Backoff(retry=5, delay_s=0.2, most_s=2.0)
_LETTER_WITHIN_S = 10.0


class Publisher(Protocol):
    """Takes replies: `broker.Broker`."""

    async def publish(self, event: Event, replay: str = "") -> None:
        """Return when it is stored. Raises Unavailable, PayloadTooLarge."""
        ...


class Dispatch:
    """One trigger at work."""

    def __init__(
        self,
        trigger: Trigger,
        jetstream: JetStream,
        caller: Caller,
        publisher: Publisher,
        ack_wait_s: float,
        counts: Counter[tuple[str, str]],
    ) -> None:
        """counts: of events by trigger and by what became of them."""
        self.trigger = trigger
        self._jetstream = jetstream
        self._caller = caller
        self._publisher = publisher
        self._ack_wait_s = ack_wait_s
        self._counts = counts
        self._subscriber = Destination.parse("subscriber", trigger.subscriber)
        self._letters = Destination.parse("dead_letter", trigger.dead_letter_url) if trigger.dead_letter_url else None
        self._consumer: Consumer | None = None
        self._in_flight: dict[asyncio.Task[None], Taken] = {}
        self._tasks = Tasks()
        self._pulse: asyncio.Task[None] | None = None

    async def start(self, stream: str) -> None:
        """Raises Unavailable."""
        trigger = self.trigger
        self._consumer = await self._jetstream.consume(
            stream, f"trigger-{trigger.name}", trigger.filter.get("type", ""), trigger.in_flight, self._ack_wait_s,
            self._take,
        )  # fmt: skip
        self._pulse = self._tasks.start(self._say_working(), f"pulse of {trigger.name}")

    async def stop(self, timeout_s: float) -> None:
        """Take no more, finish what is in flight within so long, give the rest back."""
        if self._consumer is not None:
            await self._consumer.stop()
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=timeout_s)
        for task, taken in [*self._in_flight.items()]:
            task.cancel()
            await taken.again(0.0)
        if self._pulse is not None:
            self._pulse.cancel()
        await self._tasks.ended()

    def _take(self, taken: Taken) -> None:
        task = self._tasks.start(self._handle(taken), f"trigger {self.trigger.name}")
        self._in_flight[task] = taken
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._in_flight[task]
        assert self._consumer is not None
        self._consumer.finished()

    async def _say_working(self) -> None:
        """Keep JetStream from delivering again what only takes long; the next broker gets it `ack_wait_s` after this one."""
        while True:
            await asyncio.sleep(self._ack_wait_s / 3)
            for taken in [*self._in_flight.values()]:
                await taken.working()

    async def _handle(self, taken: Taken) -> None:
        trigger, event = self.trigger, taken.event
        if not trigger.wants(event):
            await taken.done()
            return
        sent = Event({k: v for k, v in event.attributes.items() if k != TTL}, event.data)
        outcome = await deliver_once(self._caller, self._subscriber, sent, trigger.timeout_s)
        if isinstance(outcome, Delivered):
            failed = None if outcome.reply is None else await self._publish(event, outcome.reply)
            if failed is None:
                self._count("delivered")
                await taken.done()
                return
            outcome = failed
        wait_s = None if outcome.is_final else trigger.backoff.wait_s(taken.tries)
        if wait_s is not None:
            self._count("retried")
            await taken.again(wait_s)
            return
        await self._bury(taken, outcome)

    async def _publish(self, event: Event, reply: Event) -> Failed | None:
        """Send the reply on; what went wrong with that."""
        left = _ttl(event) - 1
        if left <= 0:
            logger.warning("trigger %s: event %s is the %dth of a loop, and is dropped", self.trigger.name, reply.id,
                           FIRST_TTL)  # fmt: skip
            return None
        try:
            await self._publisher.publish(Event({**reply.attributes, TTL: str(left)}, reply.data))
        except PayloadTooLarge as error:
            return Failed(True, 413, str(error).encode())
        except TorporError as error:
            return Failed(False, 503, str(error).encode())
        return None

    async def _bury(self, taken: Taken, failed: Failed) -> None:
        """Write a dead letter. If that cannot be, the event comes again: it is nowhere else."""
        trigger = self.trigger
        logger.warning(
            "trigger %s: event %s is a dead letter after %d tries: %s",
            trigger.name,
            taken.event.id,
            taken.tries,
            failed,
        )
        letter = failed.noted_on(taken.event, trigger.subscriber)
        if self._letters is not None:
            outcome = await deliver(
                self._caller, self._letters, letter, trigger.timeout_s, _LETTER_BACKOFF, _LETTER_WITHIN_S
            )
            if isinstance(outcome, Delivered):
                self._count("dead")
                await taken.done()
                return
            logger.warning("trigger %s: %s did not take it, so it goes to stream %s: %s", trigger.name,
                           trigger.dead_letter, DEAD_LETTERS, outcome)  # fmt: skip
        try:
            # With its sequence: an event that is replayed and dies again is another dead letter.
            key = key_of(letter, trigger.name, str(taken.sequence))
            await self._jetstream.publish(trigger.dead_letter_stream, letter, key)
        except TorporError as error:
            logger.error("trigger %s: the dead letter could not be written: %s", trigger.name, error)
            await taken.again(1.0)
            return
        self._count("dead")
        await taken.done()

    def _count(self, what: str) -> None:
        self._counts[self.trigger.name, what] += 1


def _ttl(event: Event) -> int:
    with contextlib.suppress(ValueError):
        return int(event.attributes.get(TTL, FIRST_TTL))
    return FIRST_TTL
