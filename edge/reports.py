"""What a node says of itself, as CloudEvents, which any receiver takes; and what a fleet's reports on an update say together.

    dev.torpor.edge.serving    what it serves, at the agent's start or when somebody has changed it by hand
    dev.torpor.edge.healthy    it has taken a version, which answered its smoke request
    dev.torpor.edge.failed     it has taken a version that did not answer, and went back
    dev.torpor.edge.refused    a mirror gave what is not as it was signed
    dev.torpor.edge.waiting    it takes a version later: no mirror answers, the disk is full, the metadata has expired
    dev.torpor.edge.status     how it is, for its site (`report.py`); the others are about an update, and the agent's

Nobody signs them: who may reach the receiver can stop a roll-out, and can hide failures, but has nodes run nothing.
"""

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torpor.predictors.errors import InvalidInput
from torpor.transformers.events import Event, Mode, decode, encode

from .contents import canonical, time_of, time_text
from .refused import Refused
from .rollout import Member

OUTCOMES = ("serving", "healthy", "failed", "refused", "waiting")
_TYPE = "dev.torpor.edge."
RECEIVED = "receivedtime"
STRUCTURED = "application/cloudevents+json"
_TEXT_BYTES = 500


@dataclass(frozen=True)
class Report:
    """outcome: of OUTCOMES. version, index: of the bundle that it is about, '' for none. reason: a word for programs."""

    at: datetime
    node: str
    labels: Mapping[str, str]
    outcome: str
    version: str
    index: str
    reason: str = ""
    text: str = ""


def written(member: Member, bundle: str, outcome: str, at: datetime, **more: Any) -> str:
    """A report as the agent keeps and sends it: a CloudEvent in the JSON format."""
    data = {"labels": dict(member.labels), **more}
    data["text"] = str(data.get("text", ""))[:_TEXT_BYTES]
    _, body = encode(event_of(member.name, outcome, at, data, bundle), Mode.STRUCTURED)
    return body.decode()


def event_of(node: str, kind: str, at: datetime, data: dict[str, Any], bundle: str = "") -> Event:
    """A new event of a node about itself."""
    attributes = {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "source": f"/torpor/edge/{quote(node, safe='')}",
        "type": _TYPE + kind,
        "time": time_text(at),
        "datacontenttype": "application/json",
    }
    if bundle:
        attributes["subject"] = bundle
    return Event(attributes, canonical({"node": node, **data}))


def is_for_later(status: int) -> bool:
    """Whether a receiver that has answered so may take the same event another time."""
    return status in (408, 429) or status >= 500


def append(file: Path, event: Event, now: datetime) -> None:
    """Have it on the disk, with the time at which it came, since a node's clock may be wrong. Raises OSError."""
    attributes = {**event.attributes, RECEIVED: time_text(now)}
    _, body = encode(Event(attributes, event.data, event.form), Mode.STRUCTURED)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, body + b"\n")
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def read(file: Path) -> list[Report]:
    """The reports in a file of events, a line each; each once, and nothing of what is none. Raises OSError."""
    with file.open("rb") as lines:
        return list(reports_of(lines))


def reports_of(lines: Iterable[bytes]) -> Iterator[Report]:
    seen = set()
    for line in lines:
        try:
            event = decode({b"content-type": STRUCTURED.encode()}, line)
        except InvalidInput:
            continue
        assert isinstance(event, Event)  # A list is what a batch's media type gives.
        if (event.source, event.id) in seen:
            continue
        seen.add((event.source, event.id))
        report = _report_of(event)
        if report:
            yield report


def _report_of(event: Event) -> Report | None:
    outcome = event.type.removeprefix(_TYPE)
    try:
        data = json.loads(event.data or b"")
        at = time_of(event.attributes.get(RECEIVED, event.attributes.get("time")), "time")
        texts = [data["node"], *(data.get(name, "") for name in ("version", "index", "reason", "text"))]
        labels = data.get("labels", {})
    except (ValueError, KeyError, TypeError, AttributeError, Refused):
        return None
    pairs = [*labels, *labels.values()] if isinstance(labels, dict) else [None]
    if outcome not in OUTCOMES or not all(isinstance(text, str) for text in (*texts, *pairs)):
        return None
    node, *about = ("".join(c if c.isprintable() else "�" for c in text) for text in texts)
    return Report(at, node, labels, outcome, *about)


@dataclass(frozen=True)
class Standing:
    """The fleet on one version: each node's last word about it. failed: nodes with what was wrong, the last ones at the end."""

    healthy: frozenset[str]
    failed: Mapping[str, str]
    refused: Mapping[str, str]
    waiting: Mapping[str, str]

    @property
    def tried(self) -> int:
        return len(self.healthy) + len(self.failed)


def standing(reports: Iterable[Report], index: str) -> Standing:
    """reports: in the order in which they came, which is each node's own; clocks may be wrong."""
    last: dict[str, Report] = {}
    for report in reports:
        if report.index == index:
            last.pop(report.node, None)
            last[report.node] = report
    by = {
        outcome: {node: f"{report.text} [{report.reason}]" if report.reason else report.text
                  for node, report in last.items() if report.outcome == outcome}
        for outcome in OUTCOMES
    }  # fmt: skip
    return Standing(frozenset(by["healthy"]) | frozenset(by["serving"]), by["failed"], by["refused"], by["waiting"])


def serving(reports: Iterable[Report]) -> dict[str, str]:
    """By node the version that it serves, as far as it has said."""
    versions: dict[str, str] = {}
    for report in reports:
        if report.outcome in ("serving", "healthy"):
            versions[report.node] = report.version
    return versions
