"""What a handler gets of a request: a dict of its fields, as TorchServe reads bodies by their content type.

A body is the field `body`, a form's fields and a multipart body's parts are fields by name. `application/json` is parsed,
`text/*` is a str, everything else, and what cannot be read, is a bytearray.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson

from ...errors import InvalidInput

Row = dict[str, Any]

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)
_PARAMETER = re.compile(r';\s*(\w+)\s*=\s*(?:"((?:\\.|[^"\\])*)"|([^\s;"]*))')
_MOST_PARTS = 1000


def read(headers: Mapping[str, str], body: bytes, decodes: bool) -> tuple[Row, dict[str, str]]:
    """The fields and their content types, by name. decodes: False leaves every value a bytearray. Raises InvalidInput."""
    content_type = headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip()
    if kind.lower() == "application/x-www-form-urlencoded":
        *fields, last = body.split(b"&")
        row = _form(
            [*fields, last] if b"=" in last else fields
        )  # netty's decoder waits for what ends the last one's name
        return row, dict.fromkeys(row, "")
    if kind.lower() == "multipart/form-data":
        return _parts(content_type, body, decodes)
    return {"body": _value(content_type, body, decodes)}, {"body": content_type}


def parameters(query: str) -> Row:
    """Those of a URL's query; of one that is there twice the last. Values are bytearrays, as a form's."""
    return _form(query.encode().split(b"&"))


def loads(text: bytes | bytearray | memoryview) -> Any:
    """What the standard library reads, NaN too; quicker where orjson reads it, which makes floats of integers beyond 64 bits.

    Raises ValueError.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(bytes(text).decode())


def _value(content_type: str, body: bytes, decodes: bool) -> Any:
    kind = content_type.partition(";")[0].strip()
    try:
        if decodes and kind == "application/json":
            return loads(body)
        if decodes and kind.startswith("text"):
            return body.decode()
    except (ValueError, RecursionError):
        pass
    return bytearray(body)


def _form(fields: list[bytes]) -> Row:
    """Values are bytearrays whatever they look like."""
    row: Row = {}
    for field in fields:
        if field:
            name, _, value = field.replace(b"+", b" ").partition(b"=")
            row[unquote_to_bytes(name).decode("utf-8", "replace")] = bytearray(unquote_to_bytes(value))
    return row


def _parts(content_type: str, body: bytes, decodes: bool) -> tuple[Row, dict[str, str]]:
    """RFC 7578. A file's value is read by its own content type, any other's is a bytearray."""
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise InvalidInput(f"content-type = {content_type[:100]!r}, must name a boundary")
    mark = b"--" + (match[1] or match[2]).encode("latin-1")
    first, *pieces = (b"\r\n" + body).split(b"\r\n" + mark)
    if not pieces or not pieces[-1].startswith(b"--") or first.strip():
        raise InvalidInput("the multipart body does not begin and end with its boundary")
    *parts, _ = pieces
    if len(parts) > _MOST_PARTS:
        raise InvalidInput(f"the multipart body has {len(parts)} parts, must be at most {_MOST_PARTS}")
    row: Row = {}
    types: dict[str, str] = {}
    for piece in parts:
        head, blank, value = piece.partition(b"\r\n\r\n")
        fields: dict[str, str] = {}
        for line in head.decode("utf-8", "replace").split("\r\n"):
            key, _, said = line.partition(":")
            fields[key.strip().lower()] = said.strip()
        parameters = {m[1].lower(): m[2] if m[2] is not None else m[3] for m in _PARAMETER.finditer(
            fields.get("content-disposition", "")
        )}  # fmt: skip
        name = parameters.get("name")
        if not blank or name is None:
            raise InvalidInput("a part of the multipart body has no name")
        part_type = fields.get("content-type", "")
        is_file = "filename" in parameters
        row[name] = _value(part_type, value, decodes) if is_file else bytearray(value)
        types[name] = part_type if is_file else ""
    return row, types
