"""The rules of http-protocol-binding.md, one by one."""

import pytest
from torpor.predictors.errors import InvalidInput, UnsupportedMedia
from torpor.transformers.events import Event, Mode, decode, encode, encode_batch, is_event, mode_of

LEAST = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
HEADERS = {b"ce-specversion": b"1.0", b"ce-id": b"1", b"ce-source": b"/s", b"ce-type": b"t"}
ENVELOPE = b'{"specversion":"1.0","id":"1","source":"/s","type":"t"}'


def received(headers: dict[bytes, bytes], body: bytes = b"") -> Event:
    event = decode({**HEADERS, **headers}, body)
    assert isinstance(event, Event)
    return event


@pytest.mark.parametrize(
    ("content_type", "mode"),
    [
        (b"application/cloudevents+json", Mode.STRUCTURED),
        (b"application/cloudevents+json; charset=utf-8", Mode.STRUCTURED),
        (b'Application/CloudEvents+JSON;charset="UTF-8"', Mode.STRUCTURED),
        (b"application/cloudevents+json;charset=us-ascii", Mode.STRUCTURED),
        (b"application/cloudevents-batch+json", Mode.BATCHED),
        (b"application/cloudevents-batch+json ; charset=UTF-8", Mode.BATCHED),
        (b"application/json", Mode.BINARY),
        (b"application/cloud", Mode.BINARY),
        (b"", Mode.BINARY),
    ],
)
def test_the_content_type_says_the_mode(content_type: bytes, mode: Mode) -> None:
    """By its beginning, in any case, with a charset or without."""
    assert mode_of({b"content-type": content_type}) is mode
    assert is_event({b"content-type": content_type}) is (mode is not Mode.BINARY)
    assert mode_of({}) is Mode.BINARY


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/cloudevents", b"application/cloudevents+avro", b"application/cloudevents-batch",
        b"application/cloudevents+jsonx",
        b"application/cloudevents-batch+protobuf", b"application/cloudevents+json charset=utf-8",
        b"application/cloudevents+json, a/b",
    ],
)  # fmt: skip
def test_an_event_format_that_is_not_read_is_refused(content_type: bytes) -> None:
    """Even with an event in the headers: the body might say another."""
    with pytest.raises(UnsupportedMedia, match=r"^Content-Type = .* must be application/cloudevents\+json or "):
        decode({**HEADERS, b"content-type": content_type}, ENVELOPE)
    assert is_event({b"content-type": content_type})


@pytest.mark.parametrize("charset", [b"utf-16", b"iso-8859-1"])
def test_an_envelope_in_another_charset_is_refused(charset: bytes) -> None:
    """JSON is UTF-8 (RFC 8259, 8.1); who says otherwise would be misread."""
    with pytest.raises(UnsupportedMedia, match=r"^charset = '.*' of application/cloudevents\+json, must be utf-8$"):
        decode({b"content-type": b"application/cloudevents+json; charset=" + charset}, ENVELOPE)


@pytest.mark.parametrize("name", HEADERS)
def test_any_required_attribute_makes_an_event(name: bytes) -> None:
    """So that one that lacks the others is refused as an event, not taken as a plain request."""
    assert is_event({b"host": b"h", name: b"x"})
    assert not is_event({b"host": b"h", b"content-type": b"application/json", b"ce-time": b"", b"ce": b""})
    with pytest.raises(InvalidInput, match=r"^attribute \w+ is missing$"):
        decode({name: HEADERS[name]}, b"")


def test_the_content_type_is_the_datacontenttype() -> None:
    """There and back, charset and all; and there is none where none was sent."""
    event = received({b"content-type": b"text/plain; charset=utf-8"}, b"x")
    assert event.datacontenttype == "text/plain; charset=utf-8"
    assert encode(event, Mode.BINARY)[0] == {**HEADERS, b"content-type": b"text/plain; charset=utf-8"}
    assert received({}).datacontenttype is None
    assert b"content-type" not in encode(received({}), Mode.BINARY)[0]


def test_there_is_no_ce_datacontenttype() -> None:
    """It might contradict the content type."""
    with pytest.raises(InvalidInput, match=r"^header ce-datacontenttype is given, must be Content-Type$"):
        received({b"ce-datacontenttype": b"a/b", b"content-type": b"a/b"})


def test_data_is_the_body_as_it_is() -> None:
    """Whatever its type says; an empty body is no data."""
    event = received({b"content-type": b"application/json"}, b"{not json\xff")
    assert event.data == b"{not json\xff"
    assert encode(event, Mode.BINARY)[1] == b"{not json\xff"
    assert received({}).data is None
    assert encode(received({}), Mode.BINARY)[1] == b""


def test_every_attribute_has_its_header() -> None:
    """Extensions alike; what does not begin with ce- is none."""
    more = {
        b"ce-time": b"2018-04-05T03:56:24Z", b"ce-subject": b"s", b"ce-dataschema": b"http://x", b"ce-traceparent": b"00-1",
        b"ce-2": b"",
    }  # fmt: skip
    event = received({**more, b"host": b"h", b"x-ce-id": b"9", b"traceparent": b"other"})
    assert event.attributes == {
        **LEAST, "time": "2018-04-05T03:56:24Z", "subject": "s", "dataschema": "http://x", "traceparent": "00-1", "2": "",
    }  # fmt: skip
    assert encode(event, Mode.BINARY)[0] == {**HEADERS, **more}


@pytest.mark.parametrize("header", [b"ce-", b"ce-a_b", b"ce-a-b", b"ce-data", b"ce-a\xc3\xa9", b"ce-A"])
def test_a_header_that_names_no_attribute_is_refused(header: bytes) -> None:
    """A name that another format could not carry."""
    with pytest.raises(InvalidInput, match=r"^attribute name = "):
        received({header: b"x"})


@pytest.mark.parametrize(
    ("value", "raw"),
    [
        ("Euro € 😀", b"Euro%20%E2%82%AC%20%F0%9F%98%80"),
        (' "%', b"%20%22%25"),
        ("!#$&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~", b"!#$&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~"),
        ("\xa0", b"%C2%A0"),
    ],
)
def test_values_are_percent_encoded(value: str, raw: bytes) -> None:
    """Space, double quote, percent and all beyond U+0021 to U+007E; nothing else."""
    event = Event({**LEAST, "subject": value})
    assert encode(event, Mode.BINARY)[0][b"ce-subject"] == raw
    assert received({b"ce-subject": raw}) == event


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"%e2%82%aC", "€"),  # lower case
        (b"%41%2D", "A-"),  # without need
        (b"%2541", "%41"),  # one round
        (b"a b", "a b"),  # not encoded, as by the SDKs of Go and Java
        ("é€".encode(), "é€"),
        (b"100%", "100%"),
        (b"%zz%4", "%zz%4"),
        (b'"a b"', "a b"),  # a quoted string, as 1.0 had it
        (b'"a\\"\\\\%20b"', 'a"\\ b'),
        (b'""', ""),
        (b'say "hi"', 'say "hi"'),  # no quoted value
        (b'"a" "b"', '"a" "b"'),
        (b'"', '"'),
        (b'"a\\"', '"a\\"'),
    ],
)
def test_values_are_unquoted_and_decoded_once(raw: bytes, value: str) -> None:
    """First double quotes, then percent signs."""
    assert received({b"ce-extension": raw}).attributes["extension"] == value


@pytest.mark.parametrize("raw", [b"%C0%A0", b"%FF", b"%ED%A0%80", b"%E2%82", b"\xff", b"\xc3%28", b'"\xc3\\\xa9%FF"'])
def test_a_value_that_is_not_utf_8_is_refused(raw: bytes) -> None:
    """Overlong forms and surrogates among it."""
    with pytest.raises(InvalidInput, match=r"^attribute subject = .* must be UTF-8 once it is percent-decoded$"):
        received({b"ce-subject": raw})


@pytest.mark.parametrize("raw", [b"/a%20b", b"http://h/%E2%82%AC?q=%22"])
def test_a_source_that_its_sender_did_not_encode_keeps_its_escapes(raw: bytes) -> None:
    """Knative's brokers do not encode; decoded it would be no URI, so it was not encoded."""
    assert received({b"ce-source": raw, b"ce-dataschema": b"http://h/%20"}).source == raw.decode()
    encoded = encode(Event({**LEAST, "source": raw.decode()}), Mode.BINARY)[0]
    assert encoded[b"ce-source"] == raw.replace(b"%", b"%25")
    assert received({b"ce-source": encoded[b"ce-source"]}).source == raw.decode()


@pytest.mark.parametrize("raw", [b"/a b", b"/a%20 b", b"/%E2%82%AC\xc3\xa9", b'"/\xc3\\\xa9%20"'])
def test_a_source_that_is_no_uri_either_way_is_refused(raw: bytes) -> None:
    """Its text is in the answer, as far as it is text."""
    with pytest.raises(InvalidInput, match=r"^attribute source = .* must be a URI reference"):
        received({b"ce-source": raw})


def test_a_structured_event_is_its_body() -> None:
    """Headers may repeat its attributes; they are not read."""
    headers = {b"content-type": b"application/cloudevents+json; charset=utf-8", b"ce-id": b"9", b"ce-extension": b"%FF"}
    event = decode(headers, ENVELOPE)
    assert event == Event(LEAST)
    assert encode(Event(LEAST), Mode.STRUCTURED) == ({b"content-type": b"application/cloudevents+json"}, ENVELOPE)


def test_a_batch_is_a_list_of_events() -> None:
    """One of none, too; an event alone can be written as one."""
    content_type = {b"content-type": b"application/cloudevents-batch+json"}
    events = [Event({**LEAST, "id": "1"}), Event({**LEAST, "id": "2"}, b"x")]
    headers, body = encode_batch(events)
    assert headers == content_type
    assert decode(headers, body) == events
    assert encode_batch([]) == (content_type, b"[]")
    assert decode(content_type, b"[]") == []
    assert encode(Event(LEAST), Mode.BATCHED) == (content_type, b"[" + ENVELOPE + b"]")


@pytest.mark.parametrize("mode", Mode)
def test_an_event_of_64_kib_goes_through(mode: Mode) -> None:
    """The size that an intermediary must forward (spec.md, "Size Limits"), in data and in an attribute."""
    for event in (
        Event({**LEAST, "datacontenttype": "image/png"}, bytes(range(256)) * 256),
        Event({**LEAST, "extension": "é" * (32 << 10)}),
    ):
        again = decode(*encode(event, mode))
        assert (again[0] if isinstance(again, list) else again) == event
