"""Any event, through any way that it may take."""

from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.predictors.errors import InvalidInput
from torpor.transformers.events import DataForm, Event, Mode, decode, encode, encode_batch
from torpor.transformers.events.content import Answered
from torpor.transformers.events.reply import Identity

NONCHARACTERS = {*range(0xFDD0, 0xFDF0), *(plane << 16 | last for plane in range(17) for last in (0xFFFE, 0xFFFF))}
texts = st.text(
    st.one_of(
        st.sampled_from(' "%\\;,=é€😀'),
        st.characters(exclude_categories=["Cc", "Cs"]).filter(lambda character: ord(character) not in NONCHARACTERS),
    )
)
some_text = texts.filter(bool)
uris = st.sampled_from(["http://h/a?b#c", "urn:a:b", "http://[::1]:80/%20", "a:%E2%82%AC"])
names = st.from_regex(r"[a-z0-9]{1,24}", fullmatch=True).filter(
    lambda name: (
        name not in {"data", "specversion", "id", "source", "type", "time", "subject", "dataschema", "datacontenttype"}
    )
)
attributes = st.builds(
    lambda required, optional, extensions: {"specversion": "1.0", **extensions, **optional, **required},
    st.fixed_dictionaries(
        {"id": some_text, "source": st.one_of(uris, st.sampled_from(["/a", "b%22"])), "type": some_text}
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "subject": some_text,
            "dataschema": uris,
            "time": st.datetimes().map(lambda time: time.isoformat() + "Z"),
        },
    ),
    st.dictionaries(names, texts, max_size=3),
)
json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        texts,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)
any_type = st.sampled_from(
    [
        None,
        "application/json",
        "a/b+json; charset=x",
        "text/plain",
        "text/xml;charset=iso-8859-1",
        "a/b;charset=utf-16",
        "image/png",
    ]
)


@st.composite
def events(draw: st.DrawFn) -> Event:
    """Of any form of data; no empty data, which a body cannot tell from none."""
    said, form = draw(attributes), draw(st.sampled_from([None, *DataForm]))
    if form is None:
        return Event(said)
    if form is DataForm.VALUE:
        kind = draw(st.sampled_from(["application/json", "text/plain", "application/x;charset=utf-8"]))
        data = orjson.dumps(draw(json_values)) if kind == "application/json" else draw(some_text).encode()
        return Event({**said, "datacontenttype": kind}, data, form)
    kind = draw(any_type)
    data = draw(st.one_of(st.binary(min_size=1), json_values.map(orjson.dumps), some_text.map(str.encode)))
    return Event(said if kind is None else {**said, "datacontenttype": kind}, data, form)


def essence(event: Event) -> object:
    """An event, its data as the JSON value that it is where it is one: the format keeps values, not bytes."""
    try:
        data = orjson.loads(event.data or b"")
    except orjson.JSONDecodeError:
        data = event.data
    return dict(event.attributes), repr(data) if event.data else None


def through(event: Event, mode: Mode) -> Event:
    again = decode(*encode(event, mode))
    return again[0] if isinstance(again, list) else again


@given(events())
def test_binary_mode_keeps_every_byte(event: Event) -> None:
    """And is ASCII in its headers, with nothing that HTTP could take for more than a value."""
    headers, body = encode(event, Mode.BINARY)
    for name, value in headers.items():
        assert name.isascii()
        assert all(0x20 <= byte <= 0x7E for byte in value)
    assert decode(headers, body) == event


@given(events())
def test_structured_mode_keeps_every_value(event: Event) -> None:
    """A second time too, and then byte for byte, in the same form."""
    once = through(event, Mode.STRUCTURED)
    assert essence(once) == essence(event)
    twice = through(once, Mode.STRUCTURED)
    assert (twice, twice.form) == (once, once.form)
    assert encode(twice, Mode.STRUCTURED) == encode(once, Mode.STRUCTURED)
    if event.form is not DataForm.BODY:
        assert once.form is (event.form if event.data is not None else DataForm.BODY)


@given(st.lists(events(), max_size=4))
def test_a_batch_is_what_its_events_are(batch: list[Event]) -> None:
    """In their order."""
    assert decode(*encode_batch(batch)) == [through(event, Mode.STRUCTURED) for event in batch]


@given(events(), st.lists(st.sampled_from(Mode), min_size=1, max_size=5))
def test_an_event_survives_any_route(event: Event, route: list[Mode]) -> None:
    """Whatever modes it is sent in, one after the other."""
    hops = [event]
    for mode in route:
        hops.append(through(hops[-1], mode))
    for before, after in pairwise(hops):
        assert essence(after) == essence(before)


@given(attributes)
def test_the_answer_to_any_event_is_an_event(asked: dict[str, str]) -> None:
    """Its attributes are not checked when it is made: they would stand the check."""
    answered = Answered(b"12", "application/octet-stream", {"inferenceheadercontentlength": "1"})
    reply = Identity("/me", "told").reply(Event(asked), answered)
    assert Event(reply.attributes, reply.data) == reply


@pytest.mark.parametrize(("source", "kind"), [("not a uri", "told"), ("/me", "")])
def test_who_answers_has_names_that_an_event_may_have(source: str, kind: str) -> None:
    """They are settings, and checked once."""
    with pytest.raises(InvalidInput, match=r"attribute (source|type) = "):
        Identity(source, kind)
