"""What the header fields of a request ask for beside its body: read once for all requests that share a head.

- Content-Encoding and Accept-Encoding (RFC 9110, 8.4 and 12.5.3), grpc-encoding and grpc-accept-encoding
  (https://github.com/grpc/grpc/blob/master/doc/compression.md).
- The time that its caller gives it, by two names of which the shorter time counts: `grpc-timeout`, which gRPC's callers
  send and which other HTTP callers may, and `x-envoy-expected-rq-timeout-ms`, which Envoy adds to what it routes, and so
  every mesh and ingress made of it
  (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter).
- The trace that it belongs to, by `traceparent` (https://www.w3.org/TR/trace-context). One that is not valid is none, as
  the specification has it. No answer carries one: the specification has no field for it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from ..errors import InvalidInput, TorporError, UnsupportedMedia

_ENVOY_TIMEOUT = b"x-envoy-expected-rq-timeout-ms"
_EVENT_FAMILY = b"application/cloudevents"
_EVENT_FAMILY_BYTES = len(_EVENT_FAMILY)

_READ = frozenset((
    b"content-encoding", b"accept-encoding", b"grpc-encoding", b"grpc-accept-encoding", b"grpc-timeout", _ENVOY_TIMEOUT,
    b"traceparent",
))  # fmt: skip

_TIMEOUT_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_MILLISECONDS = re.compile(rb"0*[1-9][0-9]{0,14}")
_WEIGHT = re.compile(rb"[qQ]=([01](?:\.[0-9]{0,3})?)")

_TRACEPARENT = re.compile(
    rb"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})(?P<parent>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
    rb"(?P<more>-.*)?"
)

CODINGS = (b"gzip", b"deflate")
"""What is read and written, the one to prefer first."""


class Trace(NamedTuple):
    """A trace, the caller's span in it (both in lower-case hexadecimal), and whether the caller records it."""

    trace_id: str
    parent_id: str
    is_sampled: bool


@dataclass(frozen=True, slots=True)
class Options:
    """coding: of the body, or of gRPC's compressed messages; b"" for none. accepts: the coding for a large answer, or b"".

    timeout_s: what the caller gives it. trace: that it belongs to. is_event: whether it is a CloudEvent.
    refusal: makes the error that an inference with these fields is answered with.
    """

    coding: bytes = b""
    accepts: bytes = b""
    timeout_s: float | None = None
    trace: Trace | None = None
    is_event: bool = False
    refusal: Callable[[], TorporError] | None = None


NO_OPTIONS = Options()
"""One and the same for all heads that ask for nothing."""

_EVENT = Options(is_event=True)


def is_event(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a message is meant as a CloudEvent, be it a wrong one: by a required attribute, or by the media type."""
    return (  # as cheap as it gets: each new head pays for it
        b"ce-specversion" in headers
        or b"ce-id" in headers
        or b"ce-source" in headers
        or b"ce-type" in headers
        or has_event_type(headers)
    )


def has_event_type(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the media type is of the family of CloudEvents' own formats (http-protocol-binding.md, 3)."""
    return headers.get(b"content-type", b"")[:_EVENT_FAMILY_BYTES].lower() == _EVENT_FAMILY


def read_options(headers: Mapping[bytes, bytes], is_grpc: bool = False) -> Options:
    """The options in a request's fields, names in lower case."""
    is_cloudevent = is_event(headers)
    if headers.keys().isdisjoint(_READ):
        return _EVENT if is_cloudevent else NO_OPTIONS
    trace = _trace(headers)
    try:
        timeout_s = read_timeout(headers)
    except InvalidInput as error:
        return Options(trace=trace, refusal=partial(InvalidInput, str(error)))
    coding = headers.get(b"grpc-encoding" if is_grpc else b"content-encoding", b"").strip().lower()
    coding = {b"identity": b"", b"x-gzip": b"gzip"}.get(coding, coding)
    if is_grpc:  # an answer is compressed as its request was
        return Options(
            coding, coding if coding in _accepted(headers, b"grpc-accept-encoding") else b"", timeout_s, trace
        )
    if coding and coding not in CODINGS:
        text = f"Content-Encoding = {coding.decode('latin-1')[:40]}, must be identity, gzip or deflate"
        return Options(trace=trace, refusal=partial(UnsupportedMedia, text))
    accepted = _accepted(headers, b"accept-encoding")
    return Options(coding, accepted[0] if accepted else b"", timeout_s, trace, is_cloudevent)


def read_timeout(headers: Mapping[bytes, bytes]) -> float | None:
    """The seconds that a request's fields give it; None if none says. Raises InvalidInput."""
    times: list[float] = []
    value = headers.get(b"grpc-timeout")
    if value is not None:
        match = _TIMEOUT.fullmatch(value)
        if match is None:
            raise InvalidInput(f"grpc-timeout = {_shown(value)}, must be 1 to 8 digits and one of H, M, S, m, u, n")
        times.append(int(match[1]) * _TIMEOUT_UNITS[match[2]])
    value = headers.get(_ENVOY_TIMEOUT)
    if value is not None:
        if _MILLISECONDS.fullmatch(value) is None:
            raise InvalidInput(f"{_ENVOY_TIMEOUT.decode()} = {_shown(value)}, must be an integer of at least 1")
        times.append(int(value) / 1e3)
    return min(times, default=None)


def _trace(headers: Mapping[bytes, bytes]) -> Trace | None:
    match = _TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
    if match is None or (match["version"] == b"00" and match["more"]):  # later versions may say more
        return None
    return Trace(match["trace"].decode(), match["parent"].decode(), bool(int(match["flags"], 16) & 1))


def _accepted(headers: Mapping[bytes, bytes], name: bytes) -> list[bytes]:
    """Of our codings those that the field names and does not like less than `identity`, the best first."""
    weights: dict[bytes, float] = {}
    for entry in headers.get(name, b"").lower().split(b","):
        coding, _, parameter = entry.partition(b";")
        weight = _WEIGHT.fullmatch(parameter.strip())
        weights[coding.strip()] = float(weight[1]) if weight else 0.0 if parameter.strip() else 1.0
    least = weights.get(b"identity", 0.0)
    found = [coding for coding in CODINGS if weights.get(coding, 0.0) and weights[coding] >= least]
    return sorted(found, key=lambda coding: -weights[coding])


def _shown(value: bytes) -> str:
    return repr(value[:40].decode("latin-1"))
