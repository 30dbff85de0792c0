"""Triggers: which events go to which subscriber, and what happens when it fails. They are read from a TOML file.

[[trigger]]
name = "ask"
filter = {type = "ask", source = "/callers/me"}     # every attribute must be so; "" for any value; {} takes all
subscriber = "http://127.0.0.1:8080/"
retry = 10                                          # these and the rest are optional
backoff_policy = "exponential"                      # or "linear"
backoff_delay_s = 0.2
timeout_s = 30.0
in_flight = 64                                      # deliveries at a time
dead_letter = "http://127.0.0.1:8090/"              # or a stream's name
from_site = true                                    # the site's commands, on an edge node
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import Event
from .delivery import Backoff
from .destination import Destination

DEAD_LETTERS = "torpor-dead-letters"
"""The stream of a trigger that names no other."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Trigger:
    """filter: by attribute, its value; "" for any. dead_letter: a URL, or the name of a stream.

    from_site: whether it takes the site's commands, and not the events of the broker.
    """

    name: str
    subscriber: str
    filter: Mapping[str, str] = field(default_factory=dict)
    backoff: Backoff = field(default_factory=Backoff)
    timeout_s: float = 30.0
    in_flight: int = 64
    dead_letter: str = DEAD_LETTERS
    from_site: bool = False

    def wants(self, event: Event) -> bool:
        """Knative's `filter.attributes`: exact, and "" is any value of an attribute that the event has."""
        attributes = event.attributes
        return all(
            name in attributes and (not value or attributes[name] == value) for name, value in self.filter.items()
        )

    @property
    def dead_letter_url(self) -> str:
        """ "" if the dead letters go to a stream."""
        return self.dead_letter if "://" in self.dead_letter else ""

    @property
    def dead_letter_stream(self) -> str:
        """Where they go that nobody else takes."""
        return DEAD_LETTERS if self.dead_letter_url else self.dead_letter


def read_triggers(file: Path) -> list[Trigger]:
    """Raises ValueError that names file, trigger and field."""
    try:
        tables = tomllib.loads(file.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {error}") from error
    entries = tables.pop("trigger", [])
    if tables or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{file}: has {', '.join(tables) or 'trigger'}, must have tables [[trigger]] alone")
    triggers: list[Trigger] = []
    for number, entry in enumerate(entries):
        where = f"{file}: trigger {entry.get('name', number)!r}"
        try:
            triggers.append(_trigger(dict(entry)))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if any(other.name == triggers[-1].name for other in triggers[:-1]):
            raise ValueError(f"{where}: name is given twice, must be the trigger's own")
    return triggers


def _trigger(entry: dict[str, Any]) -> Trigger:
    name = _text(entry, "name")
    if not _NAME.fullmatch(name):
        raise ValueError(f"name = {name[:80]!r}, must be 1 to 64 letters, digits, - or _")
    subscriber = _text(entry, "subscriber")
    Destination.parse("subscriber", subscriber)
    wanted = entry.pop("filter", {})
    if not isinstance(wanted, dict) or not all(isinstance(value, str) for value in wanted.values()):
        raise ValueError(f"filter = {wanted!r}, must be a table of attributes and their texts")
    for attribute in wanted:
        if not re.fullmatch("[a-z0-9]+", attribute):
            raise ValueError(f"filter has {attribute!r}, must be an attribute's name: lower-case letters and digits")
    policy = _text(entry, "backoff_policy", "exponential")
    if policy not in ("linear", "exponential"):
        raise ValueError(f"backoff_policy = {policy!r}, must be linear or exponential")
    dead_letter = _text(entry, "dead_letter", DEAD_LETTERS)
    if "://" in dead_letter:
        Destination.parse("dead_letter", dead_letter)
    elif not _NAME.fullmatch(dead_letter):
        raise ValueError(f"dead_letter = {dead_letter[:80]!r}, must be a URL, or 1 to 64 letters, digits, - or _")
    retry = int(_number(entry, "retry", 10, 0, 1000, int))
    delay_s = _number(entry, "backoff_delay_s", 0.2, 0.0, 3600.0, float)
    timeout_s = _number(entry, "timeout_s", 30.0, 0.001, 3600.0, float)
    in_flight = int(_number(entry, "in_flight", 64, 1, 10_000, int))
    from_site = entry.pop("from_site", False)
    if not isinstance(from_site, bool):
        raise ValueError(f"from_site = {from_site!r}, must be true or false")
    if entry:
        raise ValueError(f"has {', '.join(sorted(entry))}, which no trigger has")
    return Trigger(
        name, subscriber, wanted, Backoff(retry, policy, delay_s), timeout_s, in_flight, dead_letter, from_site
    )


def _text(entry: dict[str, Any], name: str, default: str | None = None) -> str:
    value = entry.pop(name, default)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} = {value!r}, must be a text")
    return value


def _number(entry: dict[str, Any], name: str, default: float, low: float, high: float, kind: type) -> float:
    value = entry.pop(name, default)
    if (
        isinstance(value, bool)
        or not isinstance(value, int if kind is int else int | float)
        or not low <= value <= high
    ):
        raise ValueError(f"{name} = {value!r}, must be in [{low:g}, {high:g}]")
    return float(value)
