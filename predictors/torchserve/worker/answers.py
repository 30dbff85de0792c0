"""From what a handler returned for one request to the bytes that its caller gets."""

import io
import json
import sys
from collections.abc import Callable
from typing import Any

import orjson


class Unanswerable(Exception):
    """A handler's answer that is none."""


def body(value: Any) -> bytes | bytearray:
    """As TorchServe writes it: bytes as they are, text in UTF-8, tensors by `torch.save`, else indented JSON.

    Raises Unanswerable.
    """
    if isinstance(value, bytes | bytearray):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()
    return _written(_indented, value)


def json_text(value: Any, has_blanks: bool = False) -> bytes:
    """has_blanks: behind commas and colons, as Python's own. Raises Unanswerable for what JSON cannot hold."""
    return _written(_SPACED if has_blanks else _DENSE, value)


_DENSE = json.JSONEncoder(separators=(",", ":")).encode
_SPACED = json.JSONEncoder().encode
_INDENTED = json.JSONEncoder(indent=2).encode


def _written(encode: Callable[[Any], str], value: Any) -> bytes:
    try:
        return encode(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Unanswerable(f"Unsupported model output data type: {error}") from None


def _indented(value: Any, line: str = "\n") -> str:
    """What `json.dumps(value, indent=2)` writes, for lists of numbers in a fraction of the time.

    line: what a new line of the value begins with.
    """
    kind = type(value)
    if kind is float and 1e-4 <= abs(value) < 1e16:  # where repr has no exponent, which orjson would write otherwise
        return orjson.dumps(value).decode()
    inner = line + "  "
    if kind is list and value:
        if set(map(type, value)) == {float}:
            text = orjson.dumps(value).decode()
            # Exponents and what is no number are written otherwise; "0.0000" may begin what Python has an exponent for.
            if not ("e" in text or "n" in text or "0.0000" in text):
                return f"[{inner}{text[1:-1].replace(',', f',{inner}')}{line}]"
        return f"[{inner}{f',{inner}'.join([_indented(item, inner) for item in value])}{line}]"
    if kind is dict and value and all(type(key) is str for key in value):
        items = [f"{_SPACED(key)}: {_indented(item, inner)}" for key, item in value.items()]
        return f"{{{inner}{f',{inner}'.join(items)}{line}}}"
    return _INDENTED(value).replace("\n", line)  # none is inside of a text: there it is escaped
