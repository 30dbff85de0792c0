"""What the server and a worker send each other over their socket: JSON, and the bytes that it speaks of.

    uint32 size of the JSON, uint64 size of the bytes (both big-endian), the JSON object, the bytes

The object's `sizes` cuts the bytes into parts, and each part into blobs. To a worker: perhaps `{"import": module}`,
`{"load": …}` once, then `{"batch": its number, "calls": [one a request], "sizes"}`; back: `{"loaded": how many batches it takes
at once}` or `{"failed": "text"}`, then `{"batch", "replies": [one a call], "metrics": what the handler has counted, "sizes"}`,
with a part for each call or reply. Before its replies a batch may have `{"batch", "piece": place of the call, "status",
"headers", "sizes"}`, the next bytes of one answer. No pickle: what comes from a handler may be anything.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

PREFIX = struct.Struct("!IQ")

Message = tuple[dict[str, Any], list[list[memoryview]]]
"""The object, and the blobs of its parts."""

Blob = bytes | bytearray | memoryview


def pack(head: dict[str, Any], parts: Sequence[Sequence[Blob]] = ()) -> list[Blob]:
    """The pieces of a message, to be sent one after the other."""
    text = orjson.dumps({**head, "sizes": [[len(blob) for blob in part] for part in parts]})
    blobs = [blob for part in parts for blob in part]
    return [PREFIX.pack(len(text), sum(map(len, blobs))) + text, *blobs]


def unpack(text: bytearray, content: bytearray) -> Message:
    """The message of the JSON and the bytes that follow a prefix."""
    head = orjson.loads(text)
    whole, at = memoryview(content), 0
    parts: list[list[memoryview]] = []
    for sizes in head["sizes"]:
        part: list[memoryview] = []
        for size in sizes:
            part.append(whole[at : at + size])
            at += size
        parts.append(part)
    return head, parts


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
            text, content = buffer[PREFIX.size : start], buffer[start : self._wanted]
            del buffer[: self._wanted]
            self._wanted = PREFIX.size
            yield unpack(text, content)
