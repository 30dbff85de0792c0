"""An attribute's value as the value of an HTTP header field (http-protocol-binding.md, 3.1.3.2)."""

import re

from .attributes import wrong

_UNSAFE = re.compile(rb"[^!#$&-~]")
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*+)"')
_BACKSLASHED = re.compile(rb"\\(.)")


def encode(value: str) -> bytes:
    """Space, `"`, `%` and all that is not printable ASCII, percent-encoded as UTF-8."""
    raw = value.encode()
    return _UNSAFE.sub(_escape, raw) if _UNSAFE.search(raw) else raw


def decode(name: str, raw: bytes) -> str:
    """The value of the attribute `name`; bytes that should have been encoded and are UTF-8 are taken. Raises InvalidInput."""
    text = raw
    if text.startswith(b'"') and (match := _QUOTED.fullmatch(text)):
        text = _BACKSLASHED.sub(rb"\1", match[1])
    if b"%" in text:
        text = _ESCAPED.sub(_unescape, text)
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise wrong(name, raw.decode("latin-1"), "UTF-8 once it is percent-decoded") from None


def _escape(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]


def _unescape(match: re.Match[bytes]) -> bytes:
    return bytes.fromhex(match[1].decode())
