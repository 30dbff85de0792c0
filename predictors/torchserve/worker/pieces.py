"""Answers in pieces: what `ts.handler_utils.utils.send_intermediate_predict_response` writes to `context.cl_socket`.

It writes TorchServe's own binary response (ts/protocol/otf_message_handler.py), all integers of four bytes, big-endian:

    code, text; then for each row: request id, content type, status, phrase, count and pairs of headers, value; then -1

where texts, names and values are preceded by their size. The values are the pieces; the context has the rest.
"""

import struct
from collections.abc import Callable, Iterator, Sequence

_INTEGER = struct.Struct("!i")

MORE_FOLLOWS = "ts_stream_next"
"""The header in which TorchServe's function says so, to a server that is none of the caller's."""


class Pieces:
    """Gives each piece to its row. ids: the request ids of the rows that the handler has got."""

    def __init__(self, ids: Sequence[str], give: Callable[[int, bytes], None]) -> None:
        """give: gets a row's place, and its next piece."""
        self._ids = ids
        self._give = give

    def sendall(self, message: bytes | bytearray | None) -> None:
        """None is what TorchServe's function gives in all but the first process of a parallel handler."""
        given: set[int] = set()
        for request_id, piece in _values(bytes(message or b"")):
            # Callers may have chosen one id for several requests: these come in the order of their rows.
            row = next((at for at, said in enumerate(self._ids) if said == request_id and at not in given), None)
            if row is not None:
                given.add(row)
                self._give(row, piece)


def _values(message: bytes) -> Iterator[tuple[str, bytes]]:
    """Request ids and pieces."""
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
        request_id = message[at - size : at].decode()
        sized()
        integer()
        sized()
        for _ in range(integer()):
            sized()
            sized()
        yield request_id, sized()
