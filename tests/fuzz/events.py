"""CloudEvents: any headers and body are events or an error of the sender's, and an event keeps what it says in every mode."""

import re
from collections.abc import Callable

import orjson
from choices import Choices
from decoders import json_object
from torpor.predictors.errors import InvalidInput
from torpor.transformers.events import Event, Mode, decode, encode, is_event

NAMES = (
    b"specversion", b"id", b"source", b"type", b"time", b"subject", b"dataschema", b"datacontenttype", b"ext", b"5", b"a_b",
    b"data",
)  # fmt: skip
VALUES = (
    b"1.0", b"1", b"/s", b"t", b"2018-04-05T17:31:00Z", b"2016-02-29t23:59:60.5+01:00", b"2018-02-29T17:31:00Z", b"http://h/a?b#c",
    b"urn:a", b"/%20", b"%2F%25", b"%C0%A0", b"%e2%82%ac", b'"a\\"%20"', b"\xc3\xa9", b"\xff", b"", b"1a:b", b"//[::1]:80/",
    b"\x7f",
    b"%EF%BF%BF", b'"\xc3\\\xa9"',
)  # fmt: skip
CONTENT_TYPES = (
    b"application/json", b"text/plain", b"text/plain;charset=iso-8859-1", b"a/b; charset=utf-16", b"image/png", b"a/b+json",
    b'text/xml; charset="us-ascii"', b"text", b"",
)  # fmt: skip
EVENT_TYPES = (
    b"application/cloudevents+json", b"application/cloudevents-batch+json", b"application/cloudevents+json; charset=utf-8",
    b"Application/CloudEvents-Batch+JSON;charset=utf-16", b"application/cloudevents+avro", b"application/cloudevents",
)  # fmt: skip
DATA = (
    b"{}", b'"a"', b"null", b"1", b"18446744073709551616", b"1e400", b'"\\ud800"', b'""', b'"\\u0000\xc3\xa9"',
    b"[" * 300 + b"]" * 300,
)  # fmt: skip
BASE64 = (b'"AA=="', b'""', b"null", b'"A"', b'"e30="', b"1")


def event_messages(data: bytes) -> None:
    choices = Choices(data)
    headers: dict[bytes, bytes] = {}
    if choices.below(2):
        headers[b"content-type"] = choices.pick(EVENT_TYPES)
        body = choices.rest() if choices.below(4) == 3 else _envelopes(choices)
    else:
        for name, value in zip(NAMES[:4], VALUES, strict=False):
            if choices.below(16) != 15:
                headers[b"ce-" + name] = _value(choices, value)
        for _ in range(choices.below(4)):
            name = choices.take(choices.below(4)) if choices.below(8) == 7 else choices.pick(NAMES[4:])
            headers[b"ce-" + name] = _value(choices, choices.pick(VALUES))
        if choices.below(4):
            headers[b"content-type"] = _value(choices, choices.pick(CONTENT_TYPES))
        body = choices.pick(DATA) if choices.below(2) else choices.rest()
    try:
        decoded = decode(headers, body)
    except InvalidInput as error:
        assert len(str(error)) < 300  # noqa: PT017
        return
    assert is_event(headers)
    events = decoded if isinstance(decoded, list) else [decoded]
    for event in events:
        _check(event)


def _value(choices: Choices, usual: bytes) -> bytes:
    return choices.take(choices.below(24)) if choices.below(4) == 3 else usual


def _envelopes(choices: Choices) -> bytes:
    envelopes = [_envelope(choices) for _ in range(choices.pick((1, 1, 2, 0)))]
    return b"[" + b",".join(envelopes) + b"]" if len(envelopes) != 1 or choices.below(2) else envelopes[0]


def _envelope(choices: Choices) -> bytes:
    def string(usual: bytes) -> Callable[[], bytes]:
        return lambda: b'"%s"' % _value(choices, usual)

    kinds = {name: string(value) for name, value in zip(NAMES[:4], VALUES, strict=False)}
    kinds |= {name: string(choices.pick(VALUES)) for name in NAMES[4:7]}
    kinds[b"datacontenttype"] = string(choices.pick(CONTENT_TYPES))
    kinds[b"data"], kinds[b"data_base64"] = lambda: choices.pick(DATA), lambda: choices.pick(BASE64)
    names = [*NAMES[:4], *(choices.pick((*NAMES[4:], b"data_base64")) for _ in range(choices.below(5)))]
    return json_object(choices, names, kinds)


def _check(event: Event) -> None:
    """It adheres to the rules, and is the same event after any mode."""
    assert Event(event.attributes, event.data, event.form) == event
    assert all(re.fullmatch("[a-z0-9]+", name) for name in event.attributes)
    headers, body = encode(event, Mode.BINARY)
    assert all(0x20 <= byte <= 0x7E for value in headers.values() for byte in value)
    again = decode(headers, body)
    assert isinstance(again, Event)
    assert (again.attributes, again.data or b"") == (event.attributes, event.data or b"")
    for mode in (Mode.STRUCTURED, Mode.BATCHED):
        decoded = decode(*encode(event, mode))
        assert _said(decoded[0] if isinstance(decoded, list) else decoded) == _said(event)


def _said(event: Event) -> object:
    """JSON as its value: a format keeps values, not bytes."""
    try:
        return event.attributes, repr(orjson.loads(event.data or b""))
    except orjson.JSONDecodeError:
        return event.attributes, event.data
