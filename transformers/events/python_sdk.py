"""Events of the package `cloudevents` (1.13 and later, below 2), which the Python API takes and gives; the extra `events`.

That package is imported by who has an event of it already, and by who asks for one: never by a request.
"""

import base64
import json
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING

import orjson
from torpor.predictors.errors import InvalidInput

from .event import DataForm, Event
from .json_format import attribute_text, readable, value_bytes

if TYPE_CHECKING:
    from cloudevents.http import CloudEvent


def to_cloudevent(event: Event) -> "CloudEvent":
    """The same event there. Its data is a JSON value, a str, bytes, or None for no data and for JSON's null.

    An event without `time` stays without.
    """
    from cloudevents.http import CloudEvent

    data = readable(event)
    if isinstance(data, orjson.Fragment):
        data = orjson.loads(event.data or b"")
    made = CloudEvent(event.attributes, data)
    if "time" not in event.attributes:
        del made["time"]  # of this moment
    return made


def from_cloudevent(event: "CloudEvent") -> Event:
    """The same event here. Raises InvalidInput for one that does not adhere to the specification.

    Its data may be what `to_cloudevent` gives: bytes travel as they are; anything else is a JSON value, or a str that is text
    where `datacontenttype` is not of JSON.
    """
    attributes = {
        name: _attribute_text(name, value) for name, value in event.get_attributes().items() if value is not None
    }
    data = event.get_data()
    if data is None:
        return Event(attributes)
    if isinstance(data, bytes | bytearray):
        return Event(attributes, bytes(data), DataForm.BINARY)
    return Event(attributes, value_bytes(_json_value(data), attributes.get("datacontenttype")), DataForm.VALUE)


def _attribute_text(name: str, value: object) -> str:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return attribute_text(name, value)


def _json_value(data: object) -> object:
    """What JSON makes of it: no NaN, no infinity, no lone surrogates, which the package writes all the same."""
    try:
        return orjson.loads(json.dumps(data))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"data cannot be written as JSON: {error}") from None
