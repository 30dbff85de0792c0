"""The package `cloudevents`: its events to and from ours, and where it follows the specification, and not."""

import json
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import orjson
import pytest
from cloudevents.conversion import to_binary, to_structured
from cloudevents.exceptions import GenericException
from cloudevents.http import CloudEvent, from_http
from hypothesis import given
from hypothesis import strategies as st
from torpor.predictors.errors import InvalidInput
from torpor.transformers.events import DataForm, Event, Mode, decode, encode
from torpor.transformers.events.python_sdk import from_cloudevent, to_cloudevent

LEAST = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
JSON = {**LEAST, "datacontenttype": "application/json"}


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (Event(LEAST), None),
        (Event(JSON, b'{"a": [1, 2.5]}'), {"a": [1, 2.5]}),
        (Event(JSON, b'"a"', DataForm.VALUE), "a"),
        (Event(JSON, b"{"), b"{"),
        (Event(JSON, b"{}", DataForm.BINARY), b"{}"),
        (Event({**LEAST, "datacontenttype": "text/plain"}, "é".encode()), "é"),
        (Event({**LEAST, "datacontenttype": "text/plain;charset=iso-8859-1"}, b"\xe9"), "é"),
        (Event({**LEAST, "datacontenttype": "image/png"}, b"a"), b"a"),
        (Event(LEAST, b"1"), b"1"),
    ],
)
def test_an_event_goes_there_and_back(event: Event, data: object) -> None:
    """Its data as what it is in Python; without a time it stays without."""
    there = to_cloudevent(event)
    assert there.get_attributes() == event.attributes
    assert there.get_data() == data
    back = from_cloudevent(there)
    assert back.attributes == event.attributes
    assert orjson.loads(encode(back, Mode.STRUCTURED)[1]) == orjson.loads(encode(event, Mode.STRUCTURED)[1])


class Color(Enum):
    RED = "red"


def test_attributes_become_their_text() -> None:
    """Those that the package takes as they are; None is an attribute that is not set."""
    assert from_cloudevent(CloudEvent(LEAST, bytearray(b"\0"))).data == b"\0"
    time = datetime(2018, 4, 5, 17, 31, tzinfo=UTC)
    extensions = {"a": True, "b": 5, "c": b"\0", "d": Color.RED, "e": None}
    event = from_cloudevent(CloudEvent({**LEAST, "time": time, "subject": None, **extensions}))  # type: ignore[dict-item]
    assert event.attributes == {
        **LEAST, "time": "2018-04-05T17:31:00+00:00", "a": "true", "b": "5", "c": "AA==", "d": "red",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("attributes", "data"),
    [
        ({"id": ""}, None),
        ({"specversion": "0.3"}, None),
        ({"time": datetime(2018, 4, 5)}, None),  # no time zone
        ({"a": 1.5}, None),
        ({"a_b": "x"}, None),
        ({"id": "\ud800"}, None),
        ({}, float("nan")),
        ({}, {"a": float("inf")}),
        ({}, "\ud800"),
        ({}, object()),
        ({}, {1, 2}),
        ({"datacontenttype": "text/plain"}, {"a": 1}),
        ({"datacontenttype": "text/plain;charset=us-ascii"}, "é"),
        ({"datacontenttype": "text"}, "a"),
    ],
)
def test_an_event_against_the_rules_is_refused(attributes: dict[str, Any], data: object) -> None:
    """The package takes all of these."""
    with pytest.raises(InvalidInput):
        from_cloudevent(CloudEvent({**LEAST, "time": "2018-04-05T17:31:00Z", **attributes}, data))


# What both read and write alike: values without characters to encode, JSON in UTF-8, bytes that are no JSON.
plain = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='"%'), min_size=1)
plain_attributes = st.builds(
    lambda required, optional, extensions: {**extensions, **optional, **required, "specversion": "1.0"},
    st.fixed_dictionaries({"id": plain, "source": st.sampled_from(["/a", "urn:a:b"]), "type": plain}),
    st.fixed_dictionaries({"time": st.just("2018-04-05T17:31:00Z")}, optional={"subject": plain}),
    st.dictionaries(st.from_regex(r"x[a-z0-9]{1,8}", fullmatch=True), plain, max_size=2),
)
json_values = st.recursive(
    st.one_of(
        st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False), st.text()
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=5,
)
objects = st.dictionaries(st.text(), json_values, max_size=3)
opaque = st.binary(max_size=16).map(lambda data: b"\xff" + data)


def theirs(headers: dict[bytes, bytes], body: bytes) -> CloudEvent:
    return from_http({name.decode(): value.decode() for name, value in headers.items()}, body)


def ours(headers: dict[str, str], body: bytes) -> Event:
    event = decode({name.encode(): value.encode() for name, value in headers.items()}, body)
    assert isinstance(event, Event)
    return event


@given(plain_attributes, objects, st.sampled_from([Mode.BINARY, Mode.STRUCTURED]))
def test_both_read_what_we_write(attributes: dict[str, str], value: object, mode: Mode) -> None:
    """JSON, in both modes that the package has."""
    event = Event({**attributes, "datacontenttype": "application/json"}, orjson.dumps(value), DataForm.VALUE)
    message = encode(event, mode)
    assert theirs(*message) == to_cloudevent(event)
    assert decode(*message) == event


@given(plain_attributes, opaque, st.sampled_from([Mode.BINARY, Mode.STRUCTURED]))
def test_both_read_the_bytes_that_we_write(attributes: dict[str, str], data: bytes, mode: Mode) -> None:
    """As the body, or in base64."""
    event = Event({**attributes, "datacontenttype": "image/png"}, data, DataForm.BINARY)
    assert theirs(*encode(event, mode)) == to_cloudevent(event)
    assert decode(*encode(event, mode)) == event


@given(plain_attributes, st.one_of(objects, opaque), st.sampled_from([to_binary, to_structured]))
def test_we_read_what_they_write(attributes: dict[str, str], data: Any, write: Any) -> None:
    """And make of it what they had."""
    content_type = "image/png" if isinstance(data, bytes) else "application/json"
    event = CloudEvent({**attributes, "datacontenttype": content_type}, data)
    assert to_cloudevent(ours(*write(event))) == event


def gap_in_reading(headers: dict[bytes, bytes], body: bytes = b"") -> Any:
    """What the package makes of a message, its error's name for one that it does not take."""
    try:
        return theirs(headers, body)
    except (GenericException, ValueError, AttributeError, TypeError) as error:
        return type(error).__name__


TIME = "2018-04-05T17:31:00Z"  # without one the package takes the time of the day
BINARY = {b"ce-" + name.encode(): value.encode() for name, value in {**LEAST, "time": TIME}.items()}
STRUCTURED = {b"content-type": b"application/cloudevents+json"}


def body(**members: object) -> bytes:
    return json.dumps({**LEAST, "time": TIME, **members}).encode()


@pytest.mark.parametrize(
    ("headers", "content", "made"),
    [
        ({**BINARY, b"ce-subject": b"a%20b"}, b"", lambda event: event["subject"] == "a%20b"),  # never decodes
        ({**BINARY, b"ce-subject": b'"a"'}, b"", lambda event: event["subject"] == '"a"'),  # nor unquotes
        ({**BINARY, b"ce-datacontenttype": b"a/b"}, b"", lambda event: event["datacontenttype"] == "a/b"),
        (BINARY, b"5", lambda event: event.data == 5),  # no type, and taken as JSON
        ({**BINARY, b"content-type": b"text/plain"}, b"5", lambda event: event.data == 5),  # and so is text
        ({b"content-type": b"application/json"}, body(), lambda event: event["id"] == "1"),  # a plain request
        ({b"content-type": b"application/cloudevents+avro"}, body(), lambda event: event["id"] == "1"),
        ({b"content-type": b"application/cloudevents-batch+json"}, b"[]", lambda error: error == "MissingRequiredFields"),
        (STRUCTURED, body(datacontenttype="text/plain", data=""), lambda event: event.data is None),  # no text as no data
        (STRUCTURED, body(data=1), lambda event: "datacontenttype" not in event),  # the implied type is not set
        (STRUCTURED, body(data_base64="NQ=="), lambda event: event.data == 5),  # bytes that look like JSON
        (STRUCTURED, body(extension=5), lambda event: event["extension"] == 5),  # no canonical text
    ],
)  # fmt: skip
def test_what_the_package_reads_otherwise(headers: dict[bytes, bytes], content: bytes, made: Any) -> None:
    """Its known gaps, one by one: should one close, this says so, and the case moves to the properties above."""
    event = gap_in_reading(headers, content)
    assert made(event), event
    try:
        read = decode(headers, content)
    except InvalidInput:
        return
    assert isinstance(read, list) or to_cloudevent(read) != event


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        *(({**BINARY, name: b""}, b"") for name in (b"ce-id", b"ce-source", b"ce-type", b"ce-subject")),
        ({**BINARY, b"ce-source": b"1a:b"}, b""),
        ({**BINARY, b"ce-time": b"yesterday"}, b""),
        ({**BINARY, b"ce-dataschema": b"/relative"}, b""),
        ({**BINARY, b"ce-a_b": b"x"}, b""),
        ({**BINARY, b"ce-specversion": b"0.3"}, b""),
        ({**BINARY, b"ce-subject": b"%C0%A0"}, b""),
        ({**BINARY, b"content-type": b"text"}, b""),
        (STRUCTURED, body(id=5)),
        (STRUCTURED, body(subject="a\nb")),
        (STRUCTURED, body(subject="\ud800")),
        (STRUCTURED, body(extension=1.5)),
        (STRUCTURED, body(extension={})),
        (STRUCTURED, body(data=float("nan"))),
        (STRUCTURED, body(data=1, data_base64="AA==")),
        (STRUCTURED, body(data_base64="A?A==")),
        (STRUCTURED, body(datacontenttype="text/plain", data={})),
    ],
)
def test_what_the_package_takes_and_we_refuse(headers: dict[bytes, bytes], content: bytes) -> None:
    """Rules that it does not check."""
    assert isinstance(gap_in_reading(headers, content), CloudEvent)
    with pytest.raises(InvalidInput):
        decode(headers, content)


@pytest.mark.parametrize(
    ("event", "gap"),
    [
        (CloudEvent({**LEAST, "subject": "é %"}), lambda headers, _: headers["ce-subject"] == "é %"),  # never encodes
        (CloudEvent({**LEAST, "datacontenttype": "text/plain"}, "a"), lambda _, body: body == b'"a"'),  # text as JSON
        (CloudEvent(LEAST, {"a": 1}), lambda headers, _: "content-type" not in headers),  # JSON that does not say so
        (CloudEvent({**LEAST, "b": 5}), lambda headers, _: headers["ce-b"] == 5),  # type: ignore[dict-item]
    ],
)
def test_what_the_package_writes_otherwise(event: CloudEvent, gap: Any) -> None:
    """In binary mode; ours is as the specification has it."""
    assert gap(*to_binary(event))
    assert not gap(
        *[
            {name.decode(): value.decode() for name, value in part.items()} if isinstance(part, dict) else part
            for part in encode(from_cloudevent(event), Mode.BINARY)
        ]
    )
