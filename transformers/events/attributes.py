"""The rules for an event's attributes (spec.md, "Context Attributes"): their names, and what each may say."""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from torpor.predictors.errors import InvalidInput

from .content_type import content_type

REQUIRED = ("specversion", "id", "source", "type")
_REQUIRED = frozenset(REQUIRED)

_MOST_KEPT = 64

_NAME = re.compile(r"[a-z0-9]++")
_NONCHARACTERS = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_DISALLOWED = re.compile(f"[\0-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_NONCHARACTERS}]")
"""Control characters, surrogates and Unicode's noncharacters."""

_TIMESTAMP = re.compile(
    r"([0-9]{4})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]"
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]++)?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _many(more: str) -> str:
    """Any number of RFC 3986's `unreserved`, `sub-delims` and `pct-encoded`, and of these characters."""
    plain = rf"[A-Za-z0-9._~!$&'()*+,;=\-{more}]*+"
    return f"{plain}(?:%[0-9A-Fa-f]{{2}}{plain})*"


_URI_REFERENCE = re.compile(
    r"(?!\Z)(?:([A-Za-z][A-Za-z0-9+.-]*+):|(?![^/?#:]*+:))"  # a scheme, or no colon in the path's first segment
    rf"(?://(?:{_many(':')}@)?(?:\[[A-Za-z0-9._~!$&'()*+,;=:-]++\]|{_many('')})(?::[0-9]*+)?(?=[/?#]|\Z)|(?!//))"
    rf"{_many(':@/')}(?:\?{_many(':@/?')})?(?:\#{_many(':@/?')})?"
)
"""RFC 3986, 4.1, of at least one character, with its scheme; what lies between the brackets of an IP address is not read."""


def check(attributes: Mapping[str, str]) -> None:
    """Raise InvalidInput for an attribute that breaks a rule."""
    if not attributes.keys() >= _REQUIRED:
        raise InvalidInput(f"attribute {next(name for name in REQUIRED if name not in attributes)} is missing")
    if not "".join(attributes.values()).isprintable():  # as nothing is that is disallowed
        _check_characters(attributes)
    for name, value in attributes.items():
        rule = _RULES.get(name)
        if rule is not None:
            if not rule[0](value):
                raise wrong(name, value, rule[1])
        elif not _NAME.fullmatch(name) or name == "data":
            raise InvalidInput(f"attribute name = {name[:40]!r}, must be letters a-z and digits, and not 'data'")


def wrong(name: str, value: object, must_be: str) -> InvalidInput:
    """The error for an attribute with this value."""
    shown = repr(value[:40] if isinstance(value, str) else value)[:80]
    return InvalidInput(f"attribute {name[:40]} = {shown}, must be {must_be}")


@lru_cache(_MOST_KEPT)  # there are few sources
def is_uri_reference(value: str) -> bool:
    return _URI_REFERENCE.fullmatch(value) is not None


def _check_characters(attributes: Mapping[str, str]) -> None:
    for name, value in attributes.items():
        match = _DISALLOWED.search(value)
        if match is not None:
            raise wrong(name, value, f"free of U+{ord(match[0]):04X}")


def _is_uri(value: str) -> bool:
    # "Absolute URI" has no fragment in RFC 3986, 4.3; schemas are named by URIs with one, which the specification's own
    # JSON schema (`format: uri`) takes.
    match = _URI_REFERENCE.fullmatch(value)
    return match is not None and match[1] is not None


def _is_timestamp(value: str) -> bool:
    match = _TIMESTAMP.fullmatch(value)
    if match is None:
        return False
    if match[3] <= "28":
        return True
    year, month, day = int(match[1]), int(match[2]), int(match[3])
    is_leap_year = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return day <= _DAYS[month - 1] + (month == 2 and is_leap_year)


_TEXT = (bool, "at least one character")
_RULES: dict[str, tuple[Callable[[str], object], str]] = {
    "specversion": ("1.0".__eq__, "'1.0'"),
    "id": _TEXT,
    "source": (is_uri_reference, "a URI reference (RFC 3986) of at least one character"),
    "type": _TEXT,
    "time": (_is_timestamp, "an RFC 3339 timestamp such as 2018-04-05T17:31:00Z"),
    "subject": _TEXT,
    "datacontenttype": (content_type, "a media type such as application/json or text/plain;charset=utf-8 (RFC 2046)"),
    "dataschema": (_is_uri, "a URI with its scheme (RFC 3986)"),
}
"""What must hold for the value, and how an error says it."""

DEFINED = frozenset(_RULES)
"""The attributes that the specification defines; all of them are text."""
