"""Attributes' values as the values of HTTP header fields (http-protocol-binding.md, 3.1.3.2).

Most need no encoding, which is seen of all of an event at once.
"""

import re
from collections.abc import Mapping

from .attributes import is_uri_reference, wrong

_SAFE = bytes({*range(0x21, 0x7F)} - {*b'"%'})
_PLAIN = _SAFE + b" "
_UNSAFE = re.compile(rb"[^!#$&-~]")
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_BACKSLASHED = re.compile(rb"\\(.)")


def encode(values: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Values in UTF-8 by header: space, `"`, `%` and all that is not printable ASCII, percent-encoded."""
    if b"".join(values.values()).translate(None, _SAFE):
        return {header: _UNSAFE.sub(_escape, value) for header, value in values.items()}
    return values


def decode(raw: Mapping[str, bytes]) -> dict[str, str]:
    """By attribute. Bytes that should have been encoded and are UTF-8 are taken. Raises InvalidInput."""
    if b"".join(raw.values()).translate(None, _PLAIN):
        return {name: _decode(name, value) for name, value in raw.items()}
    return {name: value.decode() for name, value in raw.items()}


def _decode(name: str, raw: bytes) -> str:
    match = _QUOTED.fullmatch(raw)
    text = raw if match is None else _BACKSLASHED.sub(rb"\1", match[1])
    try:
        value = _ESCAPED.sub(_unescape, text).decode()
    except UnicodeDecodeError:
        raise wrong(name, raw.decode("latin-1"), "UTF-8 once it is percent-decoded") from None
    if name in ("source", "dataschema") and not is_uri_reference(value):
        # Go's and Java's SDKs, and so Knative's brokers, neither encode nor decode
        # (https://github.com/cloudevents/spec/issues/1397). What was encoded decodes to a URI; a URI that was not, and has
        # escapes of its own, does not.
        return raw.decode("latin-1")
    return value


def _escape(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]


def _unescape(match: re.Match[bytes]) -> bytes:
    return bytes.fromhex(match[1].decode())
