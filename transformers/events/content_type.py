"""What a content type says about bytes: whether they are JSON, whether they are text, and in which charset."""

import re
from functools import lru_cache
from typing import NamedTuple

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = r'"(?:[ !#-\[\]-~]|\\[ -~])*"'
_CONTENT_TYPE = re.compile(rf"({_TOKEN})/({_TOKEN})((?: *+;(?: *+{_TOKEN}=(?:{_TOKEN}|{_QUOTED}))?)*)")
_PARAMETER = re.compile(rf"({_TOKEN})=({_TOKEN}|{_QUOTED})")
"""RFC 9110, 8.3.1, which is RFC 2046's media type as HTTP writes it."""

_CODECS = {"": "utf-8", "utf-8": "utf-8", "us-ascii": "ascii", "iso-8859-1": "latin-1"}
"""Python's names of the charsets that are read; "" is a type that names none."""

_MOST_KEPT = 64


class ContentType(NamedTuple):
    """is_json: `*/json` or `*/*+json` (json-format.md, 3.1.1). is_text: known to be text.

    essence: type and subtype, in lower case. codec: Python's name of the charset, None for one that is not read. It means
    nothing for JSON, which is UTF-8 (RFC 8259, 8.1 and 11).
    """

    essence: str
    is_json: bool
    is_text: bool
    charset: str
    codec: str | None


@lru_cache(_MOST_KEPT)
def content_type(value: str) -> ContentType | None:
    """None if it is not TYPE/SUBTYPE with parameters."""
    match = _CONTENT_TYPE.fullmatch(value)
    if match is None:
        return None
    kind, subtype = match[1].lower(), match[2].lower()
    charset = ""
    for name, said in _PARAMETER.findall(match[3]):
        if name.lower() == "charset":
            charset = said.strip('"').lower()
            break
    is_json = subtype == "json" or subtype.endswith("+json")
    is_text = kind == "text" or subtype == "xml" or subtype.endswith("+xml") or bool(charset)
    return ContentType(f"{kind}/{subtype}", is_json, is_text, charset, _CODECS.get(charset))
