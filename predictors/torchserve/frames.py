"""What the server and a worker send each other over their socket: JSON, and the bytes that it speaks of.

    uint32 size of the JSON, uint64 size of the bytes (both big-endian), the JSON object, the bytes

The object's `sizes` cuts the bytes into blobs. To a worker: `{"load": …}` once, then `{"calls": [one a request], "sizes"}`;
back: `{"loaded": …}` or `{"failed": "text"}`, then `{"replies": [one a call], "sizes"}`. No pickle: what comes from a handler
may be anything.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

PREFIX = struct.Struct("!IQ")

Message = tuple[dict[str, Any], list[memoryview]]
"""The object, and its blobs."""

Blob = bytes | bytearray | memoryview


def pack(head: dict[str, Any], blobs: Sequence[Blob] = ()) -> list[Blob]:
    """The pieces of a message, to be sent one after the other."""
    sizes = [len(blob) for blob in blobs]
    text = orjson.dumps({**head, "sizes": sizes})
    return [PREFIX.pack(len(text), sum(sizes)) + text, *blobs]


def unpack(text: bytes | bytearray | memoryview, content: bytes | bytearray) -> Message:
    """The message of both parts that follow a prefix."""
    head = orjson.loads(text)
    whole, blobs, at = memoryview(content), [], 0
    for size in head["sizes"]:
        blobs.append(whole[at : at + size])
        at += size
    return head, blobs


class Parser:
    """Messages of the pieces that a socket gives."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._wanted = PREFIX.size

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole with `data`."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= self._wanted:
            text_bytes, content_bytes = PREFIX.unpack_from(buffer)
            start = PREFIX.size + text_bytes
            self._wanted = start + content_bytes
            if len(buffer) < self._wanted:
                return
            text, content = bytes(buffer[PREFIX.size : start]), bytes(buffer[start : self._wanted])
            del buffer[: self._wanted]
            self._wanted = PREFIX.size
            yield unpack(text, content)
