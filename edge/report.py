"""What a node says of itself, as a CloudEvent: what it serves, since when, and whether that is ready.

At each change and from time to time it is given to the node's broker, which keeps it for the site. While no broker takes it
the newest is what waits: of what came and went meanwhile nothing is told.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from importlib.metadata import version
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from torpor.transformers.events import Event, Mode, encode

from .node import Node
from .refused import Refused
from .reports import event_of, is_for_later
from .status import status

_TIMEOUT_S = 5.0
_LOOK_S = 2.0


@dataclass(frozen=True)
class Watch:
    """A node under its name. ready: URLs that answer 2xx when what they belong to is well."""

    node: Node
    name: str
    ready: Sequence[str] = ()

    def status(self) -> dict[str, Any]:
        """What the report is about: two that are equal say the same."""
        try:
            value = status(self.node)
            value.pop("history", None)
        except Refused as refused:
            value = {"current": None, "state": str(refused)}
        ready = {url: _is_ready(url) for url in self.ready}
        return {"node": self.name, "torpor": version("torpor"), **value, "ready": ready}


def report(
    watch: Watch,
    url: str,
    every_s: float,
    wait: Callable[[float], bool],
    say: Callable[[str], None],
    is_once: bool = False,
) -> bool:
    """Report until `wait`, which waits so many seconds, says that it is over; is_once: the first one. Whether all is told.

    Raises ValueError if the broker will never take it.
    """
    told: dict[str, Any] | None = None
    due_s = 0.0
    event: Event | None = None
    trouble = ""
    while True:
        found = watch.status()
        if found != told or time.monotonic() >= due_s:
            told, due_s = found, time.monotonic() + every_s
            event = event_of(watch.name, "status", datetime.now(UTC), found)
        if event is not None:
            before, trouble = trouble, send(event, url)
            if not trouble:
                say(f"told {json.dumps(told)}")
                event = None
            elif trouble != before:
                say(f"not told yet: {trouble}")
        if is_once or wait(_LOOK_S):
            return event is None


def send(event: Event, url: str) -> str:
    """Give it to a broker; "" if it has it, else why not. Raises ValueError if it will never take it."""
    headers, body = encode(event, Mode.BINARY)
    request = Request(url, body, {name.decode(): value.decode() for name, value in headers.items()})
    try:
        urlopen(request, timeout=_TIMEOUT_S).close()
    except HTTPError as error:
        with error:
            said = f"{url}: {error.code} {error.read(300).decode('utf-8', 'replace')}"
        if is_for_later(error.code):
            return said
        raise ValueError(said) from None
    except (OSError, HTTPException) as error:
        return f"{url}: {error}"
    return ""


def _is_ready(url: str) -> bool:
    try:
        urlopen(url, timeout=_TIMEOUT_S).close()
    except (OSError, HTTPException):
        return False
    return True
