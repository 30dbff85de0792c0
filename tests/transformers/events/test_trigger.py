"""The trigger file, and which events a trigger wants."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.transformers.events import Event
from torpor.transformers.events.jetstream import decode_stored, encode_stored, key_of, subject_of
from torpor.transformers.events.trigger import DEAD_LETTERS, Trigger, read_triggers

ATTRIBUTES = {"specversion": "1.0", "id": "1", "source": "/me", "type": "ask"}


@pytest.mark.parametrize(
    ("wanted", "is_wanted"),
    [
        ({}, True), ({"type": "ask"}, True), ({"type": "asked"}, False), ({"type": "Ask"}, False), ({"tenant": "t"}, True),
        ({"tenant": ""}, True), ({"subject": ""}, False), ({"type": "ask", "source": "/you"}, False),
        ({"type": "ask", "tenant": "t"}, True),
    ],
)  # fmt: skip
def test_filters_are_exact(wanted: dict[str, str], is_wanted: bool) -> None:
    """All attributes must be so; "" is any value of one that is there: Knative's `filter.attributes`."""
    assert Trigger("t", "http://x/", wanted).wants(Event(ATTRIBUTES | {"tenant": "t"})) is is_wanted


def test_a_file_with_everything(tmp_path: Path) -> None:
    """Each field arrives; what is left out has its default."""
    file = tmp_path / "triggers.toml"
    file.write_text(
        '[[trigger]]\nname = "a"\nfilter = {type = "ask"}\nsubscriber = "http://x/"\nretry = 3\nbackoff_policy = "linear"\n'
        'backoff_delay_s = 1\ntimeout_s = 2.5\nin_flight = 8\ndead_letter = "http://dead/"\n'
        '[[trigger]]\nname = "b"\nsubscriber = "https://y/z"\n'
    )
    full, short = read_triggers(file)
    assert (full.filter, full.backoff.retry, full.backoff.policy, full.backoff.delay_s) == (
        {"type": "ask"},
        3,
        "linear",
        1.0,
    )
    assert (full.timeout_s, full.in_flight, full.dead_letter_url) == (2.5, 8, "http://dead/")
    assert (short.filter, short.backoff.retry, short.dead_letter_url, short.dead_letter_stream) == (
        {},
        10,
        "",
        DEAD_LETTERS,
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "triggers.toml: "),
        ("[other]", "has other, must have tables [[trigger]] alone"),
        ('[[trigger]]\nsubscriber = "http://x/"', "trigger 0: name = None, must be a text"),
        ('[[trigger]]\nname = "a b"\nsubscriber = "http://x/"', "name = 'a b', must be 1 to 64 letters"),
        ('[[trigger]]\nname = "a"\nsubscriber = "x"', "trigger 'a': subscriber = 'x', must be http://"),
        ('[[trigger]]\nname = "a"\nsubscriber = "http://x/"\nretry = -1', "retry = -1, must be in [0, 1000]"),
        ('[[trigger]]\nname = "a"\nsubscriber = "http://x/"\nretry = 1.5', "retry = 1.5, must be in [0, 1000]"),
        ('[[trigger]]\nname = "a"\nsubscriber = "http://x/"\nretri = 1', "has retri, which no trigger has"),
        ('[[trigger]]\nname = "a"\nsubscriber = "http://x/"\nbackoff_policy = "no"', "must be linear or exponential"),
        ('[[trigger]]\nname = "a"\nsubscriber = "http://x/"\nfilter = {Type = "x"}', "filter has 'Type'"),
        ('[[trigger]]\nname = "a"\nsubscriber = "http://x/"\nfilter = {type = 1}', "filter = {'type': 1}"),
        ('[[trigger]]\nname = "a"\nsubscriber = "http://x/"\ndead_letter = "a b"', "dead_letter = 'a b'"),
        ('[[trigger]]\nname = "a"\nsubscriber = "http://x/"\nfrom_site = 1', "from_site = 1, must be true or false"),
        ('[[trigger]]\nname = "a"\nsubscriber = "http://x/"\n' * 2, "name is given twice"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_named(text: str, said: str, tmp_path: Path) -> None:
    """Trigger, field, value and what it must be."""
    file = tmp_path / "triggers.toml"
    file.write_text(text)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_triggers(file)
    assert said in str(error.value)


@given(st.binary(max_size=200), st.sampled_from(["application/json", "text/plain", "image/png", None]))
def test_a_stored_event_is_the_event(data: bytes, said: str | None) -> None:
    """Byte for byte, JSON with its own spaces and numbers too."""
    attributes = ATTRIBUTES if said is None else ATTRIBUTES | {"datacontenttype": said}
    event = Event(attributes, data or None)
    assert decode_stored(encode_stored(event)) == event
    number = Event(ATTRIBUTES | {"datacontenttype": "application/json"}, b'{ "a": 12345678901234567890123 }')
    assert decode_stored(encode_stored(number)).data == number.data


@given(st.text(min_size=1, max_size=300))
def test_a_subject_is_one_token_for_each_type(event_type: str) -> None:
    """No type can name another one's subject, nor a wildcard."""
    try:
        subject = subject_of("s", event_type)
    except UnicodeEncodeError:
        return  # surrogates are in no event
    assert subject.count(".") == 1
    assert not set(subject) & set("*> \r\n\t")
    assert subject != subject_of("s", event_type + "x")


def test_keys_tell_events_apart() -> None:
    """By source, id and type, wherever one ends and the next begins."""
    one, other = Event(ATTRIBUTES | {"source": "/a", "id": "bc"}), Event(ATTRIBUTES | {"source": "/ab", "id": "c"})
    assert key_of(one) == key_of(Event({**one.attributes, "subject": "more"}, b"other data"))
    assert (
        len({key_of(one), key_of(other), key_of(one, "replay"), key_of(Event({**one.attributes, "type": "told"}))}) == 4
    )
