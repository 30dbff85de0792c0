"""HTTP/1.1 messages as the client writes and reads them."""

from typing import NamedTuple

Piece = bytes | memoryview

Encoded = tuple[bytes, list[Piece]]
"""A request's head, to which fields and the empty line are to be added, and its body."""


class Reply(NamedTuple):
    """headers: by name in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


def head(path: str, authority: str, length: int | None, fields: bytes = b"content-type: application/json\r\n") -> bytes:
    """The beginning of a POST with a body of `length` bytes; of a GET with None. fields: lines, each with its end.

    path: percent-encoded.
    """
    if length is None:
        return b"GET %b HTTP/1.1\r\nhost: %b\r\n" % (path.encode("ascii"), authority.encode("ascii"))
    line = b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\n" % (
        path.encode("ascii"),
        authority.encode("ascii"),
        length,
    )
    return line + fields
