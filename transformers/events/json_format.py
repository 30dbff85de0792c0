"""The JSON format and the JSON batch format (json-format.md).

Data that is a JSON value is read and written anew: equal, not the same bytes. Numbers are those of RFC 8259, 6: integers of
64 bits, the rest as doubles.
"""

import binascii
from collections.abc import Iterable
from typing import Any

import orjson
from torpor.predictors.errors import InvalidInput, UnsupportedMedia

from .attributes import DEFINED, wrong
from .content_type import content_type
from .event import DataForm, Event

_LEAST_INTEGER, _MOST_INTEGER = -(1 << 31), (1 << 31) - 1
_NOTHING = object()


def decode(body: bytes) -> Event:
    """The event in a structured message's body. Raises InvalidInput, UnsupportedMedia."""
    return _event(_parsed(body))


def decode_batch(body: bytes) -> list[Event]:
    """The events in a batched message's body, all or none. Raises InvalidInput, UnsupportedMedia."""
    batch = _parsed(body)
    if not isinstance(batch, list):
        raise InvalidInput(f"the batch is {_kind(batch)}, must be a JSON array")
    events: list[Event] = []
    for members in batch:
        try:
            events.append(_event(members))
        except InvalidInput as error:
            raise type(error)(f"event {len(events)} of the batch: {error}") from None
    return events


def encode(event: Event) -> bytes:
    """A structured message's body."""
    return orjson.dumps(_members(event))


def encode_batch(events: Iterable[Event]) -> bytes:
    """A batched message's body."""
    return orjson.dumps([_members(event) for event in events])


def attribute_text(name: str, value: object) -> str:
    """The canonical string encoding of an attribute's JSON value (2.2). Raises InvalidInput."""
    if isinstance(value, str):
        return value
    if name in DEFINED:
        raise wrong(name, value, "a string")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and _LEAST_INTEGER <= value <= _MOST_INTEGER:
        return str(value)
    raise wrong(name, value, f"a string, a boolean or an integer in [{_LEAST_INTEGER}, {_MOST_INTEGER}]")


def value_bytes(value: object, datacontenttype: str | None) -> bytes:
    """The member `data` as an HTTP body (3.1.2). Raises InvalidInput, UnsupportedMedia."""
    media = content_type("application/json" if datacontenttype is None else datacontenttype)
    if media is None or media.is_json:  # Event refuses what is no content type
        try:
            return orjson.dumps(value)
        except orjson.JSONEncodeError as error:
            raise InvalidInput(f"data cannot be written as JSON: {error}") from None
    if not isinstance(value, str):
        raise InvalidInput(f"data is {_kind(value)}, must be a string with datacontenttype = {media.essence[:40]!r}")
    if media.codec is None:
        raise UnsupportedMedia(f"charset = {media.charset[:40]!r} of data, must be utf-8, us-ascii or iso-8859-1")
    try:
        return value.encode(media.codec)
    except UnicodeEncodeError as error:
        raise InvalidInput(f"data has U+{ord(value[error.start]):04X}, must be of its charset, {media.codec}") from None


def readable(event: Event) -> orjson.Fragment | str | bytes | None:
    """The data as the JSON format has it (3.1.1): a JSON value, text, or bytes. Those that are not what they say are bytes."""
    data, media = event.data, content_type(event.datacontenttype or "")
    if data is None or media is None or event.form is DataForm.BINARY:
        return data
    is_value = event.form is DataForm.VALUE
    if media.is_json:
        return orjson.Fragment(data) if is_value or _is_json(data) else data
    if media.codec is None or not (is_value or media.is_text):
        return data
    try:
        return data.decode(media.codec)
    except UnicodeDecodeError:
        return data


def _event(members: Any) -> Event:
    if not isinstance(members, dict):
        raise InvalidInput(f"the event is {_kind(members)}, must be a JSON object")
    value, encoded = members.pop("data", _NOTHING), members.pop("data_base64", None)
    attributes = {
        name: said if type(said) is str else attribute_text(name, said)
        for name, said in members.items()
        if said is not None
    }
    if encoded is not None:
        if value is not _NOTHING:
            raise InvalidInput("the event has both data and data_base64, must have one at most")
        return Event(attributes, _from_base64(encoded), DataForm.BINARY)
    if value is _NOTHING:
        return Event(attributes)
    return Event(attributes, value_bytes(value, attributes.get("datacontenttype")), DataForm.VALUE)


def _members(event: Event) -> dict[str, object]:
    members: dict[str, object] = {**event.attributes}
    data = readable(event)
    if isinstance(data, bytes):
        members["data_base64"] = binascii.b2a_base64(data, newline=False).decode()
    elif data is not None:
        members["data"] = data
    return members


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not JSON: {error}") from None


def _is_json(data: bytes) -> bool:
    """And such that `value_bytes` gets it back: more can be read than written, by its depth."""
    try:
        orjson.dumps(orjson.loads(data))
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return False
    return True


def _from_base64(encoded: object) -> bytes:
    if not isinstance(encoded, str):
        raise InvalidInput(f"data_base64 is {_kind(encoded)}, must be a string in base64 (RFC 4648, 4)")
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError as error:
        raise InvalidInput(f"data_base64 is not base64 (RFC 4648, 4): {error}") from None


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
