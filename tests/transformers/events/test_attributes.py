"""The rules of spec.md for an event's attributes, one by one."""

import pytest
from torpor.predictors.errors import InvalidInput
from torpor.transformers.events import DataForm, Event

LEAST = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}


def refusal(**attributes: str) -> str:
    with pytest.raises(InvalidInput) as refused:
        Event({**LEAST, **attributes})
    return str(refused.value)


def test_four_attributes_are_an_event() -> None:
    """All else is optional."""
    event = Event(LEAST)
    assert (event.id, event.source, event.type) == ("1", "/s", "t")
    assert (event.datacontenttype, event.data, event.form) == (None, None, DataForm.BODY)


@pytest.mark.parametrize("name", LEAST)
def test_a_required_attribute_is_required(name: str) -> None:
    """Each of the four."""
    with pytest.raises(InvalidInput, match=f"^attribute {name} is missing$"):
        Event({other: value for other, value in LEAST.items() if other != name})


@pytest.mark.parametrize(
    "name", ["id", "source", "type", "subject", "time", "dataschema", "datacontenttype", "specversion"]
)
def test_a_defined_attribute_is_not_empty(name: str) -> None:
    """An extension may be: brokers send an empty `knativeerrordata`."""
    assert refusal(**{name: ""}).startswith(f"attribute {name} = '', must be ")
    assert Event({**LEAST, "extension": ""}).attributes["extension"] == ""


@pytest.mark.parametrize("value", ["0.3", "1.0.2", "1", "1.0-rc1", "2.0"])
def test_the_specversion_is_the_one_that_is_read(value: str) -> None:
    """Other versions have other rules."""
    assert refusal(specversion=value) == f"attribute specversion = '{value}', must be '1.0'"


@pytest.mark.parametrize("name", ["id", "type", "subject", "extension"])
@pytest.mark.parametrize("character", ["\0", "\n", "\x1f", "\x7f", "\x9f", "\ud800", "\ufdd0", "\uffff", "\U0010fffe"])
def test_text_has_no_character_that_is_disallowed(name: str, character: str) -> None:
    """Control characters, lone surrogates and noncharacters."""
    assert refusal(**{name: f"a{character}b"}).endswith(f"must be free of U+{ord(character):04X}")


@pytest.mark.parametrize("value", [" ", "~", "\xa0", "é", "\ufdcf", "\ufdf0", "\ufffd", "\U0001f600", "\ue000"])
def test_text_has_any_other_character(value: str) -> None:
    """The neighbours of what is disallowed among them."""
    assert Event({**LEAST, "subject": value}).attributes["subject"] == value


@pytest.mark.parametrize(
    "name", ["a", "0", "traceparent", "comexampleextension1", "averylongnameofmorethantwentycharacters"]
)
def test_extensions_have_names_of_letters_and_digits(name: str) -> None:
    """Twenty characters are advice."""
    assert Event({**LEAST, name: "x"}).attributes[name] == "x"


@pytest.mark.parametrize("name", ["", "A", "a_b", "a-b", "é", "a ", "a\r\nb", "٣", "data", "data_base64"])
def test_no_extension_has_another_name(name: str) -> None:
    """Nor the name of the JSON format's member for data."""
    assert refusal(**{name: "x"}) == f"attribute name = {name!r}, must be letters a-z and digits, and not 'data'"


@pytest.mark.parametrize(
    "value",
    [
        "https://github.com/cloudevents", "mailto:cncf-wg-serverless@lists.cncf.io", "1-555-123-4567",
        "/sensors/tn-1234567/alerts",
        "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66", "//host:80/a", "http://u:p@[::1]:8080/a?b=/?#c", "http:", "?q", "#f",
        "./a:b", "a/b:c", "/a%20b", "http://[v1.a:b]", "http://host:",
    ],
)  # fmt: skip
def test_a_source_is_a_uri_reference(value: str) -> None:
    """The specification's examples, and RFC 3986's corners."""
    assert Event({**LEAST, "source": value}).source == value


@pytest.mark.parametrize(
    "value",
    ["/a b", "1a:b", "a_b:c", "http://[::1", "http://h:x/", "//a:1b", "a#b#c", "%2", "/%zz", "a\\b", "/é", "<x>", '"'],
)
def test_a_source_is_nothing_else(value: str) -> None:
    """What no reader of URIs could take apart."""
    assert refusal(source=value).endswith("must be a URI reference (RFC 3986) of at least one character")


@pytest.mark.parametrize("value", ["https://example.com/schema", "urn:x:y", "http://json-schema.org/draft-07/schema#"])
def test_a_dataschema_is_a_uri(value: str) -> None:
    """With its scheme."""
    assert Event({**LEAST, "dataschema": value}).attributes["dataschema"] == value


@pytest.mark.parametrize("value", ["/schema", "example.com/schema", "http://a b"])
def test_a_dataschema_is_no_relative_reference(value: str) -> None:
    """Unlike a source."""
    assert refusal(dataschema=value).endswith("must be a URI with its scheme (RFC 3986)")


@pytest.mark.parametrize(
    "value",
    [
        "2018-04-05T17:31:00Z", "2018-04-05t17:31:00.123456789z", "2018-04-05T17:31:00+14:00", "2018-04-05T17:31:00-00:00",
        "2016-12-31T23:59:60Z", "2024-02-29T00:00:00Z", "2000-02-29T00:00:00Z", "2023-01-31T00:00:00Z", "0000-01-01T00:00:00Z",
    ],
)  # fmt: skip
def test_a_time_is_a_timestamp(value: str) -> None:
    """RFC 3339, its text kept as it came."""
    assert Event({**LEAST, "time": value}).attributes["time"] == value


@pytest.mark.parametrize(
    "value",
    [
        "2018-04-05", "2018-04-05T17:31:00", "2018-04-05 17:31:00Z", "2018-04-05T17:31Z", "2018-04-05T17:31:00.Z",
        "20180405T173100Z",
        "2018-04-05T24:00:00Z", "2018-04-05T17:60:00Z", "2018-04-05T17:31:61Z", "2018-04-05T17:31:00+24:00",
        "2018-13-05T17:31:00Z",
        "2018-00-05T17:31:00Z", "2018-04-00T17:31:00Z", "2018-04-31T17:31:00Z", "2024-04-31T17:31:00Z",
        "2018-02-29T17:31:00Z", "1900-02-29T17:31:00Z",
        "2018-04-05T17:31:00+0000", "٢018-04-05T17:31:00Z", "now", "1522949460",
    ],
)  # fmt: skip
def test_a_time_is_nothing_else(value: str) -> None:
    """What ISO 8601 has and RFC 3339 has not, and days that no month has."""
    assert (
        refusal(time=value) == f"attribute time = {value!r}, must be an RFC 3339 timestamp such as 2018-04-05T17:31:00Z"
    )


@pytest.mark.parametrize(
    "value",
    ["application/json", "text/plain; charset=utf-8", "Image/PNG", 'a/b ; c="d \\" e";', "application/vnd.a+json;v=1"],
)
def test_a_datacontenttype_is_a_media_type(value: str) -> None:
    """With its parameters."""
    assert Event({**LEAST, "datacontenttype": value}).datacontenttype == value


@pytest.mark.parametrize(
    "value", ["json", "a/", "/b", "a/b/c", "a/b; c", "a/b c=d", 'a/b; c="d', "text/plain, text/html", "a/é"]
)
def test_a_datacontenttype_is_nothing_else(value: str) -> None:
    """RFC 2046."""
    assert "must be a media type such as " in refusal(datacontenttype=value)


def test_a_refusal_is_short() -> None:
    """A broker that keeps an error has little room for it."""
    shown = repr("x" * 40)
    assert refusal(time="x" * 100_000).startswith(f"attribute time = {shown}, must be ")
    assert len(refusal(time="\U000e0001" * 40)) < 200
    assert len(refusal(**{"x" * 100_000: "\0"})) < 200
    assert len(refusal(**{"X" * 100_000: ""})) < 200


def test_an_event_does_not_change() -> None:
    """Nor does what it was made of change it."""
    attributes = dict(LEAST)
    event = Event(attributes)
    attributes["id"] = "2"
    assert event.id == "1"
    with pytest.raises(TypeError):
        event.attributes["id"] = "2"  # type: ignore[index]
    with pytest.raises(AttributeError):
        event.data = b""  # type: ignore[misc]


def test_how_data_came_makes_no_other_event() -> None:
    """Events are equal by what they say; and no value is of no type."""
    assert Event(LEAST, None, DataForm.VALUE) == Event(LEAST)
    assert Event(LEAST, b"1", DataForm.BINARY) == Event(LEAST, b"1")
    assert Event(LEAST, b"1") != Event(LEAST, b"2")
