"""The rules for an event's attributes (spec.md, "Context Attributes"): their names, and what each may say."""

import re
from collections.abc import Mapping

from torpor.predictors.errors import InvalidInput

from .content_type import content_type

REQUIRED = ("specversion", "id", "source", "type")

_NAME = re.compile(r"[a-z0-9]++")
_NONCHARACTERS = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_DISALLOWED = re.compile(f"[\0-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_NONCHARACTERS}]")
"""Control characters, surrogates and Unicode's noncharacters."""

_TIMESTAMP = re.compile(
    r"([0-9]{4})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]"
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]++)?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

_CHARACTERS = r"A-Za-z0-9._~!$&'()*+,;=\-"
"""RFC 3986's `unreserved` and `sub-delims`."""
_ESCAPED = r"%[0-9A-Fa-f]{2}"
_URI_REFERENCE = re.compile(
    r"(?:([A-Za-z][A-Za-z0-9+.-]*+):|(?![^/?#]*+:))"  # a scheme, or no colon in the path's first segment
    rf"(?://(?:(?:[{_CHARACTERS}:]|{_ESCAPED})*+@)?"
    rf"(?:\[[{_CHARACTERS}:]++\]|(?:[{_CHARACTERS}]|{_ESCAPED})*+)(?::[0-9]*+)?(?=[/?#]|\Z)|(?!//))"
    rf"(?:[{_CHARACTERS}:@/]|{_ESCAPED})*+"
    rf"(?:\?(?:[{_CHARACTERS}:@/?]|{_ESCAPED})*+)?(?:\#(?:[{_CHARACTERS}:@/?]|{_ESCAPED})*+)?"
)
"""RFC 3986, 4.1, with its scheme; what lies between the brackets of an IP address is not read."""


def check(attributes: Mapping[str, str]) -> None:
    """Raise InvalidInput for the first attribute that breaks a rule."""
    for name in REQUIRED:
        if name not in attributes:
            raise InvalidInput(f"attribute {name} is missing")
    for name, value in attributes.items():
        if not (value.isascii() and value.isprintable()) and (match := _DISALLOWED.search(value)):
            raise wrong(name, value, f"free of U+{ord(match[0]):04X}")
        rule = _RULES.get(name)
        if rule is not None:
            rule(name, value)
        elif not _NAME.fullmatch(name) or name == "data":
            raise InvalidInput(
                f"attribute name = {name[:40]!r}, must be lower-case letters a-z and digits, and not 'data'"
            )


def wrong(name: str, value: object, must_be: str) -> InvalidInput:
    """The error for an attribute with this value."""
    shown = repr(value[:40] if isinstance(value, str) else value)[:80]
    return InvalidInput(f"attribute {name[:40]} = {shown}, must be {must_be}")


def is_uri_reference(value: str) -> bool:
    return _URI_REFERENCE.fullmatch(value) is not None


def _check_specversion(name: str, value: str) -> None:
    if value != "1.0":
        raise wrong(name, value, "'1.0'")


def _check_text(name: str, value: str) -> None:
    if not value:
        raise wrong(name, value, "at least one character")


def _check_uri_reference(name: str, value: str) -> None:
    if not value or not is_uri_reference(value):
        raise wrong(name, value, "a URI reference (RFC 3986) of at least one character")


def _check_uri(name: str, value: str) -> None:
    # "Absolute URI" has no fragment in RFC 3986, 4.3; schemas are named by URIs with one, which the specification's own
    # JSON schema (`format: uri`) takes.
    match = _URI_REFERENCE.fullmatch(value)
    if match is None or match[1] is None:
        raise wrong(name, value, "a URI with its scheme (RFC 3986)")


def _check_timestamp(name: str, value: str) -> None:
    match = _TIMESTAMP.fullmatch(value)
    if match is None or (match[3] > "28" and not _has_day(int(match[1]), int(match[2]), int(match[3]))):
        raise wrong(name, value, "an RFC 3339 timestamp such as 2018-04-05T17:31:00Z")


def _has_day(year: int, month: int, day: int) -> bool:
    is_leap_year = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return day <= _DAYS[month - 1] + (month == 2 and is_leap_year)


def _check_content_type(name: str, value: str) -> None:
    if content_type(value) is None:
        raise wrong(name, value, "a media type such as application/json or text/plain;charset=utf-8 (RFC 2046)")


_RULES = {
    "specversion": _check_specversion,
    "id": _check_text,
    "source": _check_uri_reference,
    "type": _check_text,
    "time": _check_timestamp,
    "subject": _check_text,
    "datacontenttype": _check_content_type,
    "dataschema": _check_uri,
}

DEFINED = frozenset(_RULES)
"""The attributes that the specification defines; all of them are text."""
