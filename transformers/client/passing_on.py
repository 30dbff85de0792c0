"""What of a caller's headers goes on to the predictor, and how it learns of the deadline.

The deadline goes as `grpc-timeout`, which torpor reads over HTTP too (`predictors.serving.request_options`). It is rounded
down, so that heads repeat: servers, torpor's among them, keep what they have read of a head.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from torpor.predictors.errors import InvalidInput

_NAMES = frozenset(("traceparent", "tracestate", "x-request-id", "authorization"))
_PREFIXES = ("ce-", "x-b3-")

_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
"""RFC 9110, 5.5 and 5.6.2."""

_SIGNIFICANT_BITS = 6
"""Of the deadline: a thirty-second of it is lost at most, and a head has 32 forms an octave."""

Headers = Mapping[str, str]

NOTHING: Headers = MappingProxyType({})


def passed_on(headers: Headers | None) -> Headers:
    """The fields that go on, names in lower case. Raises InvalidInput for one that no head can hold."""
    if not headers:
        return NOTHING
    kept: dict[str, str] = {}
    for name, value in headers.items():
        name = name.lower()
        if name in _NAMES or name.startswith(_PREFIXES):
            if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
                raise InvalidInput(f"header {name[:40]!r} = {value[:40]!r}, must be of visible Latin-1 characters")
            kept[name] = value
    return kept


def credentials(kept: Mapping[str, str]) -> dict[str, str]:
    """What decides whether a caller may ask at all."""
    return {name: kept[name] for name in ("authorization",) if name in kept}


def timeout_field(timeout_s: float) -> bytes:
    """The value of `grpc-timeout` for what is left, at most 8 digits and a unit."""
    number, unit = int(timeout_s * 1e6), b"u"
    if number > 99_999_999:
        number, unit = min(number // 1000, 99_999_999), b"m"
    unimportant = number.bit_length() - _SIGNIFICANT_BITS
    if unimportant > 0:
        number = number >> unimportant << unimportant
    return b"%d%b" % (number or 1, unit)


def fields(kept: Mapping[str, str], timeout_s: float | None) -> bytes:
    """The last lines of an HTTP/1 head, and the empty one that ends it."""
    if not kept and timeout_s is None:
        return b"\r\n"
    lines = "".join([f"{name}: {value}\r\n" for name, value in kept.items()]).encode("latin-1")
    return lines + (b"\r\n" if timeout_s is None else b"grpc-timeout: %b\r\n\r\n" % timeout_field(timeout_s))
