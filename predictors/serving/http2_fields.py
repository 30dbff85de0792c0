"""Header blocks of HTTP/2: read with the library hpack and checked, written without any state (RFC 7541, RFC 9113 8).

Reading is the dear part: some 50 microseconds in Python. But a connection's requests soon repeat: once their fields are in
the dynamic table, equal requests are equal bytes, which mean the same until the table changes.
"""

import hpack

from ..errors import InvalidInput
from ..remembered import Remembered
from .exchange import Field, Fields, Head, Headers, add_field, path_and_query
from .http1_head import read_length
from .request_options import read_options

MAX_HEADER_LIST_BYTES = 64 << 10
TABLE_BYTES = 4096

_PSEUDO = {b":method", b":scheme", b":path", b":authority"}
_OF_A_CONNECTION = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
_LOWER_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
_NO_VALUE = frozenset(b"\0\r\n")


class Malformed(Exception):
    """The fields make no request: an error of their stream alone (RFC 9113, 8.1.1)."""


class CompressionFailed(Exception):
    """The block cannot be decoded, so no later one can: an error of the connection (RFC 9113, 4.3)."""


class FieldReader:
    """One connection's header blocks, in order."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(MAX_HEADER_LIST_BYTES)
        self._decoder.max_allowed_table_size = TABLE_BYTES
        self._heads: Remembered[bytes, Head] = Remembered(64)

    def head(self, block: bytes) -> Head:
        """A request's head. Raises Malformed, CompressionFailed."""
        head = self._heads.get(block)
        if head is None:
            fields, table_changed = self.decode(block)
            if table_changed:
                self._heads.clear()
            head = read_fields(fields)
            if not table_changed:
                self._heads.keep(block, head)
        return head

    def trailers(self, block: bytes) -> None:
        """Check what follows a body; nothing in it matters here. Raises Malformed, CompressionFailed."""
        fields, table_changed = self.decode(block)
        if table_changed:
            self._heads.clear()
        for name, value in fields:
            _check_field(name, value)

    def decode(self, block: bytes) -> tuple[list[Field], bool]:
        """A block's fields as they came, and whether the table has changed. Raises CompressionFailed."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        count, newest, size = len(entries), entries[0] if entries else None, table.maxsize
        try:
            fields = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except hpack.HPACKError as error:
            raise CompressionFailed(str(error)) from None
        is_same = len(entries) == count and (not count or entries[0] is newest) and table.maxsize == size
        return fields, not is_same


def read_fields(fields: Fields) -> Head:
    """A request's head from its fields. Raises Malformed."""
    pseudo: Headers = {}
    headers: Headers = {}
    for name, value in fields:
        if name.startswith(b":"):
            if headers or name in pseudo or name not in _PSEUDO:
                raise Malformed("pseudo-header fields must be known, single and first")
            if not _NO_VALUE.isdisjoint(value):
                raise Malformed("a field's value has a character that none may have")
            pseudo[name] = value
            continue
        _check_field(name, value)
        add_field(headers, name, value)
    method, target = pseudo.get(b":method"), pseudo.get(b":path", b"")
    if not method or b":scheme" not in pseudo:
        raise Malformed(":method and :scheme must be given")
    if not (target.startswith(b"/") or target == b"*") or not target.isascii():
        raise Malformed(":path must be a path")
    if b":authority" in pseudo:
        headers.setdefault(b"host", pseudo[b":authority"])
    length = None
    if b"content-length" in headers:
        try:
            length = read_length(headers[b"content-length"])
        except InvalidInput as error:
            raise Malformed(str(error)) from None
    content_type = headers.get(b"content-type", b"")
    is_grpc = content_type.startswith(b"application/grpc") and content_type[16:17] in (b"", b"+", b";")
    options = read_options(headers, is_grpc)
    path, query = path_and_query(target)
    return Head(method.decode("latin-1"), path, headers, length, is_grpc=is_grpc, options=options, query=query)


def _check_field(name: bytes, value: bytes) -> None:
    if not name or not _LOWER_TOKEN.issuperset(name):
        raise Malformed("a field's name must be a token in lower case")
    if not _NO_VALUE.isdisjoint(value) or value[:1] in (b" ", b"\t") or value[-1:] in (b" ", b"\t"):
        raise Malformed("a field's value has a character that none may have")
    if name in _OF_A_CONNECTION or (name == b"te" and value.lower() != b"trailers"):
        raise Malformed(f"field {name.decode()} belongs to HTTP/1.1")


# Indices of the static table (RFC 7541, appendix A): of whole fields for a status, of names for the others.
_STATUSES = {200: 8, 204: 9, 206: 10, 304: 11, 400: 12, 404: 13, 500: 14}
_NAMES = {b"content-length": 28, b"content-type": 31, b"date": 33, b"retry-after": 53}


def status_field(status: int) -> bytes:
    """A `:status` field as header blocks begin with."""
    index = _STATUSES.get(status)
    return bytes([0x80 | index]) if index is not None else b"\x08\x03%d" % status


def encode_field(name: bytes, value: bytes) -> bytes:
    """A literal field that no table remembers, so that a block means the same on every connection (RFC 7541, 6.2.2)."""
    index = _NAMES.get(name)
    start = b"\0" + encode_text(name) if index is None else b"\x0f" + bytes([index - 15])
    return start + encode_text(value)


def encode_text(text: bytes) -> bytes:
    """A name's or a value's bytes as they are, behind their length (RFC 7541, 5.2)."""
    return _integer(len(text)) + text


def encode_fields(fields: Fields) -> bytes:
    """Literal fields one after the other."""
    return b"".join([encode_field(name, value) for name, value in fields])


def _integer(value: int) -> bytes:
    """A length with a prefix of seven bits (RFC 7541, 5.1)."""
    if value < 127:
        return bytes([value])
    value -= 127
    parts = [127]
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
