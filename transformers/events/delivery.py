"""One try to deliver an event over HTTP, and what its answer means: as Knative's brokers have it.

    2xx with an event          delivered, and the event is the reply
    2xx without a body         delivered
    2xx with another body      failed; again
    404, 408, 409, 429, 5xx    failed; again, as is a refused connection (code 500) and a timeout (504)
    any other status           failed for good

(knative/eventing: pkg/kncloudevents/retries.go, pkg/broker/filter/filter_handler.go.)
"""

import asyncio
import random
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torpor.predictors.errors import TorporError

from ..client.message import Reply
from . import Event, Mode, decode, encode, is_event
from .destination import Destination

_RETRIED = frozenset((404, 408, 409, 429))
_MOST_DATA_BYTES = 768
"""1024 characters in base64, Knative's limit of `knativeerrordata`."""


class Caller(Protocol):
    """What sends requests: `http_caller.HttpCaller`."""

    async def post(
        self, destination: Destination, headers: Mapping[bytes, bytes], body: bytes, timeout_s: float
    ) -> Reply:
        """Raises a TorporError, TimeoutError."""
        ...


@dataclass(frozen=True, slots=True)
class Delivered:
    """The event is the subscriber's. reply: what it answered."""

    reply: Event | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """code: the status, or the nearest to one where there was no answer. data: of the answer, or the error's text."""

    is_final: bool
    code: int
    data: bytes

    def __str__(self) -> str:
        return f"{self.code} {self.data[:200].decode('utf-8', 'replace')}".rstrip()

    def noted_on(self, event: Event, destination: str) -> Event:
        """The event as a dead letter, with Knative's attributes that say where it failed, and how."""
        noted = {"knativeerrordest": destination, "knativeerrorcode": str(self.code)}
        if self.data:
            noted["knativeerrordata"] = b64encode(self.data[:_MOST_DATA_BYTES]).decode()
        return Event({**event.attributes, **noted}, event.data, event.form)


async def deliver_once(
    caller: Caller, destination: Destination, event: Event, timeout_s: float, mode: Mode = Mode.BINARY
) -> Delivered | Failed:
    """Send the event and judge the answer."""
    headers, body = encode(event, mode)
    try:
        response = await caller.post(destination, {**headers, b"prefer": b"reply"}, body, timeout_s)
    except TimeoutError:
        return Failed(False, 504, f"no answer within {timeout_s:g} s".encode())
    except TorporError as error:
        return Failed(False, 500, str(error).encode())
    return judged(response)


def judged(response: Reply) -> Delivered | Failed:
    """What a subscriber's answer means."""
    status, headers, body = response
    if not 200 <= status < 300:
        return Failed(status not in _RETRIED and status < 500, status, body)
    if is_event(headers):
        try:
            reply = decode(headers, body)
        except TorporError as error:
            return Failed(False, 502, f"the reply is no event: {error}".encode())
        if isinstance(reply, Event):
            return Delivered(reply)
        return Failed(False, 502, b"the reply is a batch, must be one event")
    if body:
        return Failed(False, 502, b"the reply is no event: " + body)
    return Delivered()


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before an event is sent again, as Knative's `delivery` has it.

    retry: tries after the first. policy: "linear" waits delay_s, 2 delay_s, 3 delay_s, …; "exponential" delay_s, twice that,
    four times, ….  most_s: no wait is longer.
    """

    retry: int = 10
    policy: str = "exponential"
    delay_s: float = 0.2
    most_s: float = 600.0

    def wait_s(self, tries: int) -> float | None:
        """Seconds to wait after so many failed tries; None if that was the last."""
        if tries > self.retry:
            return None
        factor = tries if self.policy == "linear" else 2.0 ** min(tries - 1, 64)
        return min(self.most_s, self.delay_s * factor)


async def deliver(
    caller: Caller,
    destination: Destination,
    event: Event,
    timeout_s: float,
    backoff: Backoff,
    within_s: float,
    drawn: Callable[[], float] = random.random,
) -> Delivered | Failed:
    """Try until it is delivered, has failed for good, or within_s would be over; the last try's outcome.

    drawn: a number in [0, 1) that spreads each wait over its upper half, so that those who failed together do not come again
    together.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + within_s
    tries = 0
    while True:
        outcome = await deliver_once(caller, destination, event, max(0.001, min(timeout_s, end_s - loop.time())))
        tries += 1
        if isinstance(outcome, Delivered) or outcome.is_final:
            return outcome
        wait_s = backoff.wait_s(tries)
        if wait_s is None:
            return outcome
        wait_s *= 0.5 + drawn() / 2
        if loop.time() + wait_s >= end_s:
            return outcome
        await asyncio.sleep(wait_s)
