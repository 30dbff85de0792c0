"""Which headers go on to the predictor, and in what form the deadline does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.predictors.errors import InvalidInput
from torpor.predictors.serving.exchange import Headers
from torpor.predictors.serving.http1_head import read_head
from torpor.transformers.client.passing_on import fields, passed_on


def read(lines: bytes) -> Headers:
    return read_head(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n" + lines).headers


def test_what_belongs_to_the_caller_goes_on_and_nothing_else() -> None:
    """Trace, credentials and event attributes; not what the hop itself is about."""
    goes = {"traceparent": "00-1", "tracestate": "a=b", "x-request-id": "5", "authorization": "Bearer t"}
    goes |= {"x-b3-traceid": "1", "ce-id": "3", "ce-type": "é"}
    stays = {"content-type": "a", "content-length": "5", "host": "b", "grpc-timeout": "1S", "cookie": "c", "ce": "d"}
    assert passed_on(stays | {name.title(): value for name, value in goes.items()}) == goes
    assert passed_on(None) == passed_on({}) == {}


@pytest.mark.parametrize(
    "headers",
    [{"ce-id": "a\r\nx: y"}, {"ce-id": "a\nb"}, {"ce-id": "a\0"}, {"ce-i d": "a"}, {"ce-a:b": "a"}, {"ce-id": "€"}],
)
def test_what_would_break_the_head_is_refused(headers: dict[str, str]) -> None:
    """A caller of the Python API may pass anything."""
    with pytest.raises(InvalidInput, match="must be of visible Latin-1 characters"):
        passed_on(headers)


@given(
    st.dictionaries(st.from_regex("ce-[a-z]{1,5}", fullmatch=True), st.text(st.characters(codec="latin-1"), max_size=8))
)
def test_a_server_reads_what_was_passed_on(headers: dict[str, str]) -> None:
    """Whatever is not refused arrives as it was, but for spaces around it, which are the field's own."""
    try:
        kept = passed_on(headers)
    except InvalidInput:
        return
    got = read(fields(kept, None))
    got = {k.decode(): v.decode("latin-1") for k, v in got.items() if k.startswith(b"ce-")}
    assert got == {name: value.strip(" \t") for name, value in headers.items()}


@given(st.floats(1e-6, 1e9))
def test_a_deadline_arrives_a_little_shorter_never_longer(timeout_s: float) -> None:
    """As torpor's server reads it; eight digits of milliseconds are the longest there is."""
    options = read_head(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n" + fields({}, timeout_s)).options
    exact_s = min(timeout_s, 99_999.999)
    assert options.timeout_s is not None
    assert exact_s * 31 / 32 - 2e-6 <= options.timeout_s <= max(exact_s, 1e-6) * (1 + 1e-9)


def test_deadlines_alike_are_one_head() -> None:
    """Servers keep heads by their bytes: a second has few different ones."""
    assert len({fields({}, 1 + n / 1e5) for n in range(100_000)}) == 33
