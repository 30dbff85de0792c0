"""The rules of json-format.md, one by one."""

import base64

import orjson
import pytest
from torpor.predictors.errors import InvalidInput, UnsupportedMedia
from torpor.transformers.events import DataForm, Event, Mode, decode, encode

LEAST = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
CONTENT_TYPE = {b"content-type": b"application/cloudevents+json"}
BATCH = {b"content-type": b"application/cloudevents-batch+json"}


def received(body: bytes | None = None, **members: object) -> Event:
    event = decode(CONTENT_TYPE, orjson.dumps({**LEAST, **members}) if body is None else body)
    assert isinstance(event, Event)
    return event


def sent(event: Event) -> dict[str, object]:
    members: dict[str, object] = orjson.loads(encode(event, Mode.STRUCTURED)[1])
    return {name: value for name, value in members.items() if name not in LEAST}


def refusal(body: bytes | None = None, **members: object) -> str:
    with pytest.raises(InvalidInput) as refused:
        received(body, **members)
    return str(refused.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("s", "s"),
        ("", ""),
        (True, "true"),
        (False, "false"),
        (5, "5"),
        (-(2**31), "-2147483648"),
        (2**31 - 1, "2147483647"),
        (0, "0"),
    ],
)
def test_an_extension_becomes_its_canonical_text(value: object, text: str) -> None:
    """Which is what it is written as again."""
    assert received(extension=value).attributes["extension"] == text
    assert sent(received(extension=value)) == {"extension": text}


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 1.5, 1.0, [], {}, ["a"]])
def test_an_extension_has_no_other_type(value: object) -> None:
    """No number beyond 32 bits or with a fraction, no structure."""
    assert refusal(extension=value).endswith("must be a string, a boolean or an integer in [-2147483648, 2147483647]")


@pytest.mark.parametrize("name", [*LEAST, "subject", "time", "dataschema", "datacontenttype"])
def test_a_defined_attribute_is_a_string(name: str) -> None:
    """All of them are of types that JSON writes as one."""
    assert refusal(**{name: 1}) == f"attribute {name} = 1, must be a string"


@pytest.mark.parametrize("name", ["subject", "time", "dataschema", "datacontenttype", "extension"])
def test_null_is_an_attribute_that_is_not_set(name: str) -> None:
    """The required ones are missing then."""
    assert received(**{name: None}) == Event(LEAST)
    assert refusal(id=None) == "attribute id is missing"


def test_the_rules_for_attributes_hold() -> None:
    """As in headers, where the names came in lower case."""
    assert refusal(time="yesterday").startswith("attribute time = 'yesterday', must be an RFC 3339 timestamp")
    assert refusal(myExtension="x").startswith("attribute name = 'myExtension', must be ")
    assert refusal(data_base65="x").startswith("attribute name = ")
    assert refusal(subject="a\nb").endswith("must be free of U+000A")


@pytest.mark.parametrize(
    ("datacontenttype", "value"),
    [
        ("application/json", {"a": [1, 2.5, None]}),
        ("application/json", "a string is a JSON string, not a document: {}"),
        ("application/json; charset=utf-8", "é"),
        ("application/json;charset=iso-8859-1", "é"),  # has no meaning for JSON (RFC 8259, 11)
        ("text/json", [1]),
        ("Application/VND.a+JSON;v=1", 18446744073709551615),
        ("application/json", None),
        ("application/json", ""),
    ],
)
def test_data_of_json_is_a_json_value(datacontenttype: str, value: object) -> None:
    """Also null, which is not the same as no data."""
    event = received(datacontenttype=datacontenttype, data=value)
    assert event.data == orjson.dumps(value)
    assert sent(event) == {"datacontenttype": datacontenttype, "data": value}


@pytest.mark.parametrize("value", [{"a": 1}, "I'm just a string", None, 5])
def test_data_without_a_type_is_json_and_says_so_from_then_on(value: object) -> None:
    """Another binding would not imply it."""
    event = received(data=value)
    assert event.datacontenttype == "application/json"
    headers, body = encode(event, Mode.BINARY)
    assert (headers[b"content-type"], body) == (b"application/json", orjson.dumps(value))


def test_no_data_implies_no_type() -> None:
    """There is nothing that it could be the type of; nor does base64 imply one."""
    assert received().datacontenttype is None
    assert received().data is None
    assert received(data_base64="AA==").datacontenttype is None


@pytest.mark.parametrize(
    ("datacontenttype", "text", "data"),
    [
        ("application/xml", '<much wow="xml"/>', b'<much wow="xml"/>'),
        ("text/plain", "é", "é".encode()),
        ("text/plain", "", b""),
        ("text/plain;charset=ISO-8859-1", "é", b"\xe9"),
        ('text/plain; x="charset=a"; Charset="iso-8859-1"', "é", b"\xe9"),
        ("application/x-unknown", "\0é", "\0é".encode()),
    ],
)
def test_data_of_another_type_is_text_in_its_charset(datacontenttype: str, text: str, data: bytes) -> None:
    """UTF-8 without one."""
    event = received(datacontenttype=datacontenttype, data=text)
    assert event.data == data
    assert encode(event, Mode.BINARY)[1] == data
    assert sent(event) == {"datacontenttype": datacontenttype, "data": text}


@pytest.mark.parametrize(
    ("value", "kind"), [({}, "an object"), ([1], "an array"), (1.5, "a number"), (True, "a boolean"), (None, "null")]
)
def test_data_of_another_type_is_nothing_but_text(value: object, kind: str) -> None:
    """Nobody could say which bytes it stands for."""
    assert refusal(datacontenttype="text/xml", data=value) == (
        f"data is {kind}, must be a string with datacontenttype = 'text/xml'"
    )


def test_text_in_a_charset_that_is_not_read_is_refused() -> None:
    """And so is text that its charset has no characters for."""
    with pytest.raises(UnsupportedMedia, match=r"^charset = 'utf-16' of data, must be utf-8, us-ascii or iso-8859-1$"):
        received(datacontenttype="text/plain;charset=utf-16", data="a")
    assert (
        refusal(datacontenttype="text/plain;charset=us-ascii", data="aé")
        == "data has U+00E9, must be of its charset, ascii"
    )


@pytest.mark.parametrize("datacontenttype", [None, "image/png", "application/json", "text/plain;charset=utf-16"])
def test_data_base64_is_bytes_and_stays_so(datacontenttype: str | None) -> None:
    """Whatever the type."""
    data = b'{"a":\xff\0'
    event = received(datacontenttype=datacontenttype, data_base64=base64.b64encode(data).decode())
    assert (event.data, event.form) == (data, DataForm.BINARY)
    assert encode(event, Mode.BINARY)[1] == data
    assert sent(event)["data_base64"] == base64.b64encode(data).decode()


@pytest.mark.parametrize("value", ["A", "AA", "AA=", "A?==", "AA==A", "AA==\n", "=", "AA-_", "é", 1, [], {}])
def test_data_base64_is_base64(value: object) -> None:
    """With its padding and nothing else, as RFC 4648, 4 has it."""
    assert refusal(data_base64=value).startswith("data_base64 is ")


def test_data_and_data_base64_exclude_each_other() -> None:
    """Even null is data; a data_base64 of null is none."""
    assert refusal(data=1, data_base64="AA==") == "the event has both data and data_base64, must have one at most"
    assert refusal(data=None, data_base64="AA==").startswith("the event has both ")
    assert received(data=1, data_base64=None).data == b"1"
    assert received(data_base64=None).data is None
    assert received(data_base64="").data == b""


@pytest.mark.parametrize(
    ("datacontenttype", "data", "members"),
    [
        ("application/json", b' {"a": 1} ', {"data": {"a": 1}}),
        ("text/plain", "é".encode(), {"data": "é"}),
        ("application/soap+xml;charset=iso-8859-1", b"\xe9", {"data": "é"}),
        ("application/json", b"{", {"data_base64": "ew=="}),  # not what it says: bytes, so that none are lost
        ("text/plain", b"\xff", {"data_base64": "/w=="}),
        ("text/plain; charset=utf-16", b"a\0", {"data_base64": "YQA="}),
        ("application/xml", b"<a/>", {"data": "<a/>"}),
        ("image/png", b"a", {"data_base64": "YQ=="}),
        (None, b"1", {"data_base64": "MQ=="}),  # `data` would say that it is JSON
    ],
)
def test_a_body_is_written_as_what_its_type_says(
    datacontenttype: str | None, data: bytes, members: dict[str, object]
) -> None:
    """An event from binary mode: JSON as a value, text as a string, the rest as bytes."""
    said = {} if datacontenttype is None else {"datacontenttype": datacontenttype}
    assert sent(Event({**LEAST, **said}, data)) == {**said, **members}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{} {}",
        b"\xff",
        '{"id":"é"}'.encode("utf-16"),
        b'{"id":"\\ud800"}',
        b'{"data":NaN}',
        b'{"data":1e999}',
        b"[" * 2000,
    ],
)
def test_a_body_that_is_not_json_is_refused(body: bytes) -> None:
    """RFC 8259, in UTF-8; no lone surrogates, no number beyond a double."""
    assert refusal(body).startswith("the body is not JSON: ")


@pytest.mark.parametrize(
    ("body", "kind"), [(b"[]", "an array"), (b'"a"', "a string"), (b"null", "null"), (b"1", "a number")]
)
def test_an_event_is_an_object(body: bytes, kind: str) -> None:
    """And a batch is an array."""
    assert refusal(body) == f"the event is {kind}, must be a JSON object"
    with pytest.raises(InvalidInput, match=r"^the batch is an object, must be a JSON array$"):
        decode(BATCH, b"{}")


def test_data_nested_too_deeply_to_be_written_is_refused() -> None:
    """What can be read goes deeper; a body of that kind travels as bytes."""
    assert refusal(b'{"data":' + b"[" * 500 + b"]" * 500 + b"}").startswith("data cannot be written as JSON: ")
    deep = b"[" * 500 + b"]" * 500
    assert sent(Event({**LEAST, "datacontenttype": "application/json"}, deep)).keys() == {
        "datacontenttype",
        "data_base64",
    }


def test_an_error_says_which_event_of_a_batch_it_is() -> None:
    """By its index; nothing of the batch is taken."""
    good = orjson.dumps(LEAST)
    with pytest.raises(InvalidInput, match=r"^event 1 of the batch: attribute id is missing$"):
        decode(BATCH, b"[" + good + b',{"specversion":"1.0","source":"s","type":"t"}]')
    with pytest.raises(InvalidInput, match=r"^event 0 of the batch: the event is null, must be a JSON object$"):
        decode(BATCH, b"[null]")
    with pytest.raises(UnsupportedMedia, match=r"^event 0 of the batch: charset"):
        decode(BATCH, orjson.dumps([{**LEAST, "datacontenttype": "a/b;charset=x", "data": ""}]))
