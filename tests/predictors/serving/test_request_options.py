"""What header fields ask for beside the body."""

import pytest
from torpor.predictors.errors import InvalidInput, UnsupportedMedia
from torpor.predictors.serving.request_options import NO_OPTIONS, Options, Trace, read_options

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_head_that_asks_for_nothing_shares_the_options_of_all() -> None:
    """So that one comparison tells."""
    assert read_options({b"host": b"a", b"content-length": b"3"}) is NO_OPTIONS


@pytest.mark.parametrize(
    ("fields", "timeout_s"),
    [
        ({b"grpc-timeout": b"1H"}, 3600), ({b"grpc-timeout": b"2M"}, 120), ({b"grpc-timeout": b"99999999S"}, 99999999),
        ({b"grpc-timeout": b"5m"}, 0.005), ({b"grpc-timeout": b"5u"}, 5e-6), ({b"grpc-timeout": b"5n"}, 5e-9),
        ({b"grpc-timeout": b"0m"}, 0),
        ({b"x-envoy-expected-rq-timeout-ms": b"15000"}, 15), ({b"x-envoy-expected-rq-timeout-ms": b"007"}, 0.007),
        ({b"grpc-timeout": b"1S", b"x-envoy-expected-rq-timeout-ms": b"2000"}, 1),
        ({b"grpc-timeout": b"3S", b"x-envoy-expected-rq-timeout-ms": b"2000"}, 2),
        ({b"accept-encoding": b"br"}, None),
    ],
)  # fmt: skip
def test_the_time_that_a_caller_gives(fields: dict[bytes, bytes], timeout_s: float | None) -> None:
    """gRPC's units and Envoy's milliseconds; the shorter of both."""
    for is_grpc in (True, False):
        assert read_options(fields, is_grpc).timeout_s == pytest.approx(timeout_s)


@pytest.mark.parametrize("name", [b"grpc-timeout", b"x-envoy-expected-rq-timeout-ms"])
@pytest.mark.parametrize(
    "value", [b"", b"S", b"-1S", b"1.5S", b"1s", b"123456789S", b"1 S", b"\xb2S", b"1x", b"-1", b"0"]
)
def test_a_time_that_cannot_be_read_is_refused(name: bytes, value: bytes) -> None:
    """With the field, its value, and what it must be."""
    refusal = read_options({name: value}).refusal
    assert refusal is not None
    error = refusal()
    assert type(error) is InvalidInput
    assert str(error).startswith(f"{name.decode()} = {value.decode('latin-1')!r}, must be ")


def test_a_coding_that_cannot_be_read_is_refused() -> None:
    """Over HTTP at once; over gRPC only with a message that needs it."""
    refusal = read_options({b"content-encoding": b"zstd"}).refusal
    assert refusal is not None
    assert isinstance(refusal(), UnsupportedMedia)
    assert read_options({b"grpc-encoding": b"zstd"}, is_grpc=True) == Options(coding=b"zstd")


@pytest.mark.parametrize(
    ("traceparent", "trace"),
    [
        (f"00-{TRACE}-{SPAN}-01", Trace(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-00", Trace(TRACE, SPAN, False)),
        (f"00-{TRACE}-{SPAN}-02", Trace(TRACE, SPAN, False)),
        (f"cc-{TRACE}-{SPAN}-03", Trace(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", Trace(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"cc-{TRACE}-{SPAN}-01.more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01", None),
        ("", None),
    ],
)
def test_a_traceparent_is_valid_or_none(traceparent: str, trace: Trace | None) -> None:
    """By the rules of W3C Trace Context; what is not valid is passed over."""
    for is_grpc in (True, False):
        options = read_options({b"traceparent": traceparent.encode()}, is_grpc)
        assert (options.trace, options.refusal) == (trace, None)
