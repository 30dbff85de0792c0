"""Answers in pieces: what `ts.handler_utils.utils.send_intermediate_predict_response` writes to `context.cl_socket`.

It writes TorchServe's own binary response (ts/protocol/otf_message_handler.py), all integers of four bytes, big-endian:

    code, text; then for each row: request id, content type, status, phrase, count and pairs of headers, value; then -1

where texts, names and values are preceded by their size. The values are the pieces; the context has the rest. They become
the beginning of the answer, which goes when it is whole.
"""

import struct
from collections.abc import Iterator

_INTEGER = struct.Struct("!i")

MORE_FOLLOWS = "ts_stream_next"
"""The header in which TorchServe's function says so, to a server that is none of the caller's."""


class Pieces:
    """Collects them by row, in the order of the rows that the handler has got."""

    def __init__(self) -> None:
        self.pieces: dict[int, list[bytes]] = {}

    def sendall(self, message: bytes | bytearray | None) -> None:
        """None is what TorchServe's function gives in all but the first process of a parallel handler."""
        for row, piece in enumerate(_values(bytes(message or b""))):
            self.pieces.setdefault(row, []).append(piece)

    def take(self, first: int, count: int) -> bytes:
        """The pieces of these rows."""
        return b"".join(piece for row in range(first, first + count) for piece in self.pieces.pop(row, ()))


def _values(message: bytes) -> Iterator[bytes]:
    at = 0

    def integer() -> int:
        nonlocal at
        at += 4
        return int(_INTEGER.unpack_from(message, at - 4)[0])

    def sized() -> bytes:
        nonlocal at
        size = integer()
        at += size
        return message[at - size : at]

    if not message:
        return
    integer()
    sized()
    while (size := integer()) != -1:
        at += size
        sized()
        integer()
        sized()
        for _ in range(integer()):
            sized()
            sized()
        yield sized()
