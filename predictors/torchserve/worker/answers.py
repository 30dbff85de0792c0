"""From what a handler returned for one request to the bytes that its caller gets."""

import io
import json
import sys
from typing import Any


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
    return json_text(value, indent=2)


def json_text(value: Any, indent: int | None = None, has_blanks: bool = False) -> bytes:
    """has_blanks: behind commas and colons, as Python's own. Raises Unanswerable for what JSON cannot hold."""
    try:
        return json.dumps(value, indent=indent, separators=None if indent or has_blanks else (",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Unanswerable(f"Unsupported model output data type: {error}") from None
