"""Where a receiver's answers go when they do not go back with the response: `K_SINK`, as Knative's SinkBinding sets it."""

import json
import logging

from torpor.predictors.errors import Unavailable

from . import Event
from .delivery import Backoff, Caller, Delivered, deliver
from .destination import Destination

logger = logging.getLogger("torpor.events")

_TIMEOUT_S = 10.0
_WITHIN_S = 30.0
"""For all tries: the sender of the request waits meanwhile."""

_BACKOFF = Backoff(retry=10, policy="exponential", delay_s=0.2, most_s=5.0)


def read_overrides(text: str) -> dict[str, str]:
    """The extensions in `K_CE_OVERRIDES` (`{"extensions": {"site": "edge1"}}`), which may be empty. Raises ValueError."""
    if not text:
        return {}
    try:
        said = json.loads(text)
        extensions = said.get("extensions") or {}
        overrides = {str(name): str(value) for name, value in extensions.items()}
        Event({"specversion": "1.0", "id": "1", "source": "/", "type": "check", **overrides})
    except Exception as error:
        raise ValueError(
            f'K_CE_OVERRIDES = {text[:80]!r}, must be {{"extensions": {{NAME: TEXT}}}}: {error}'
        ) from error
    return overrides


class HttpSink:
    """Delivers events to an address, and what cannot be delivered to the dead letters.

    url: any receiver of events: a broker's, another torpor's. dead_letter_url: "" for none. overrides: extensions that each
    event gets. Raises ValueError.
    """

    def __init__(self, caller: Caller, url: str, dead_letter_url: str, overrides: dict[str, str]) -> None:
        self._caller = caller
        self._url = url
        self._address = Destination.parse("sink", url)
        self._dead_letters = Destination.parse("dead_letter_sink", dead_letter_url) if dead_letter_url else None
        self._overrides = overrides

    async def deliver(self, event: Event) -> None:
        """Return when the event is somebody else's. Raises Unavailable."""
        if self._overrides:
            event = Event({**event.attributes, **self._overrides}, event.data, event.form)
        outcome = await deliver(self._caller, self._address, event, _TIMEOUT_S, _BACKOFF, _WITHIN_S)
        if isinstance(outcome, Delivered):
            return
        logger.warning("the sink %s did not take event %s: %s", self._url, event.id, outcome)
        if self._dead_letters is not None:
            letter = outcome.noted_on(event, self._url)
            last = await deliver(self._caller, self._dead_letters, letter, _TIMEOUT_S, _BACKOFF, _WITHIN_S)
            if isinstance(last, Delivered):
                return
            logger.warning("nor did the dead letter sink: %s", last)
        raise Unavailable(f"the sink did not take the answer: {outcome}")
