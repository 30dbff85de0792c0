"""The HTTP binding (http-protocol-binding.md): an event, or a batch of them, as the headers and the body of a message.

A request and a response are alike here. Headers are by lower-case name, as `serving.exchange.Head` has them.
"""

from collections.abc import Mapping, Sequence
from enum import Enum

from torpor.predictors.errors import InvalidInput, UnsupportedMedia
from torpor.predictors.serving.request_options import has_event_type

from . import header_value, json_format
from .attributes import DEFINED, check
from .content_type import content_type
from .event import Event

Message = tuple[dict[bytes, bytes], bytes]
"""Headers and body."""


class Mode(Enum):
    """Where an event lies in its message: in headers and body, in the body alone, or in the body beside others."""

    BINARY = "binary"
    STRUCTURED = "structured"
    BATCHED = "batched"


_NAMES = {b"ce-" + name.encode(): name for name in DEFINED}
_HEADERS = {name: header for header, name in _NAMES.items()}
_STRUCTURED = "application/cloudevents+json"
_BATCHED = "application/cloudevents-batch+json"
_MODES = {_STRUCTURED: Mode.STRUCTURED, _BATCHED: Mode.BATCHED}


def mode_of(headers: Mapping[bytes, bytes]) -> Mode:
    """The mode of a message that is an event. Raises UnsupportedMedia for an event format other than JSON."""
    if not has_event_type(headers):
        return Mode.BINARY
    said = headers[b"content-type"].decode("latin-1")
    media = content_type(said)
    mode = None if media is None else _MODES.get(media.essence)
    if media is None or mode is None:
        raise UnsupportedMedia(f"Content-Type = {said[:80]!r}, must be {_STRUCTURED} or {_BATCHED}")
    if media.charset not in ("", "utf-8", "us-ascii"):
        raise UnsupportedMedia(f"charset = {media.charset[:40]!r} of {media.essence}, must be utf-8")
    return mode


def decode(headers: Mapping[bytes, bytes], body: bytes) -> Event | list[Event]:
    """The event in a message, or the events in a batched one. Raises InvalidInput, UnsupportedMedia."""
    mode = mode_of(headers)
    if mode is Mode.BINARY:
        return _decode_binary(headers, body)
    return json_format.decode(body) if mode is Mode.STRUCTURED else json_format.decode_batch(body)


def encode(event: Event, mode: Mode) -> Message:
    """A message with this event."""
    if mode is Mode.BINARY:
        return _binary_headers(event), event.data or b""
    if mode is Mode.STRUCTURED:
        return {b"content-type": _STRUCTURED.encode()}, json_format.encode(event)
    return encode_batch([event])


def encode_batch(events: Sequence[Event]) -> Message:
    """A batched message. It must not be sent to who has not asked for one (3)."""
    return {b"content-type": _BATCHED.encode()}, json_format.encode_batch(events)


def _decode_binary(headers: Mapping[bytes, bytes], body: bytes) -> Event:
    raw: dict[str, bytes] = {}
    for header, value in headers.items():
        if header.startswith(b"ce-"):
            raw[_NAMES.get(header) or header[3:].decode("latin-1")] = value
    if "datacontenttype" in raw:
        raise InvalidInput("header ce-datacontenttype is given, must be Content-Type")
    attributes = header_value.decode(raw)
    said = headers.get(b"content-type")
    if said is not None:
        attributes["datacontenttype"] = said.decode("latin-1")
    check(attributes)
    return Event.of_checked(attributes, body or None)


def _binary_headers(event: Event) -> dict[bytes, bytes]:
    headers = header_value.encode(
        {
            _HEADERS.get(name) or b"ce-" + name.encode(): value.encode()
            for name, value in event.attributes.items()
            if name != "datacontenttype"
        }
    )
    said = event.datacontenttype
    if said is not None:
        headers[b"content-type"] = said.encode()
    return headers
