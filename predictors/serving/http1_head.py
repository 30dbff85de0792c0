"""The head of an HTTP/1 request and the chunks of its body, read strictly (RFC 9112).

Whatever two readers could understand differently is refused, for that is what request smuggling lives on: bare line
feeds, folded lines, space before a colon, more than one length, a length beside chunks.
"""

import re

from ..errors import HeadTooLarge, InvalidInput, NotSupported
from .exchange import Head, Headers, add_field, path_and_query
from .request_options import read_options

MAX_HEAD_BYTES = 64 << 10
MAX_FIELDS = 256
MAX_LENGTH_DIGITS = 18

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([!-~]+) HTTP/1\.([01])")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++:[ \t!-~\x80-\xff]*+")
_FIELDS = re.compile(rb"(?:%b\r\n)*+" % _FIELD.pattern)
"""All lines at once: a head that has not been there before, as each event's, costs half as much so."""

_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
_ABSOLUTE = re.compile(rb"https?://[^/?#]+", re.IGNORECASE)
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+"'
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;%b(?:=(?:%b|%b))?)*+" % (_TOKEN, _TOKEN, _QUOTED))
"""With extensions, and without the "bad whitespace" around them: there are readers who refuse that, llhttp for one."""

_MAX_SIZE_LINE_BYTES = 1024


def read_head(block: bytes) -> Head:
    """The head in `block`, which ends with its empty line. Raises InvalidInput, HeadTooLarge, NotSupported."""
    first, *lines = block[:-4].split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise InvalidInput("the request line is not METHOD TARGET HTTP/1.1")
    method, target, minor = match.groups()
    if len(lines) > MAX_FIELDS:
        raise HeadTooLarge(f"header fields = {len(lines)}, must be in [0, {MAX_FIELDS}]")
    if _FIELDS.fullmatch(block, len(first) + 2, len(block) - 2) is None:
        raise InvalidInput("a header line is not NAME: VALUE")
    headers: Headers = {}
    for line in lines:
        name, _, value = line.partition(b":")
        # A host, length or coding that is given twice has a comma and a space then, and is refused below.
        add_field(headers, name.lower(), value.strip(b" \t"))
    if minor == b"1" and b"host" not in headers:
        raise InvalidInput("header host is missing")
    if not _HOST.fullmatch(headers.get(b"host", b"")):
        raise InvalidInput("header host is not HOST:PORT")
    length = _length(headers, minor)
    options = [option.strip().lower() for option in headers.get(b"connection", b"").split(b",")]
    keeps_alive = b"close" not in options and (minor == b"1" or b"keep-alive" in options)
    awaits_continue = minor == b"1" and headers.get(b"expect", b"").lower() == b"100-continue"
    path, query = _path_and_query(target)
    return Head(
        method.decode(), path, headers, length,
        options=read_options(headers), keeps_alive=keeps_alive, awaits_continue=awaits_continue, query=query,
        reads_chunks=minor == b"1",
    )  # fmt: skip


def _length(headers: Headers, minor: bytes) -> int | None:
    """The length of the body, None if it comes in chunks."""
    coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
    if coding is None:
        return 0 if length is None else read_length(length)
    if length is not None or minor == b"0":
        raise InvalidInput("header transfer-encoding excludes content-length and HTTP/1.0")
    if coding.lower() != b"chunked":
        raise NotSupported(f"Transfer-Encoding = {coding[:40].decode('latin-1')!r}, must be chunked")
    return None


def read_length(value: bytes) -> int:
    """The number in a Content-Length. Raises InvalidInput."""
    if not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
        raise InvalidInput(
            f"Content-Length = {value[:40].decode('latin-1')!r}, must be digits, {MAX_LENGTH_DIGITS} at most"
        )
    return int(value)


def _path_and_query(target: bytes) -> tuple[str, str]:
    if not target.startswith(b"/"):
        match = _ABSOLUTE.match(target)
        if match is None and target != b"*":
            raise InvalidInput("the request's target must be a path or an http URL")
        if match is not None:
            target = target[match.end() :]
            target = target if target.startswith(b"/") else b"/" + target
    return path_and_query(target)


class ChunkedBody:
    """Takes the chunks of a body apart as their bytes come (RFC 9112, 7.1). Extensions and trailers are dropped."""

    def __init__(self) -> None:
        self._kept = b""
        self._missing = 0
        """Bytes that the chunk still lacks, its line end among them; 0 between chunks."""
        self._in_trailers = False
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> tuple[list[bytes], bytes | None]:
        """Pieces of the body; and, once it has ended, what follows it (else None). Raises InvalidInput, HeadTooLarge."""
        pieces: list[bytes] = []
        data = self._kept + data
        at = 0
        while True:
            if self._missing:
                at = self._take(data, at, pieces)
            end = data.find(b"\r\n", at)
            # The same limits however the bytes come: a line's end may be half here.
            line_bytes = (len(data) - data.endswith(b"\r") if end < 0 else end) - at
            if self._in_trailers:
                if self._trailer_bytes + line_bytes > MAX_HEAD_BYTES:
                    size = self._trailer_bytes + line_bytes
                    raise HeadTooLarge(f"trailers = {size} bytes, must be in [0, {MAX_HEAD_BYTES}]")
            elif line_bytes > _MAX_SIZE_LINE_BYTES:
                raise InvalidInput(f"a chunk's first line must have at most {_MAX_SIZE_LINE_BYTES} bytes")
            if end < 0:
                self._kept = data[at:]
                return pieces, None
            line, at = data[at:end], end + 2
            if self._in_trailers:
                if not line:
                    return pieces, data[at:]
                self._trailer_bytes += len(line)
                if _FIELD.fullmatch(line) is None:
                    raise InvalidInput("a trailer line is not NAME: VALUE")
                continue
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise InvalidInput("a chunk's first line must be its size in hexadecimal")
            size = int(match[1], 16)
            if size:
                self._missing = size + 2
            else:
                self._in_trailers = True

    def _take(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Move what `data` has of the chunk, from `at` on, to the pieces; where the rest of `data` begins.

        Of a chunk that lacks more, the rest is its line end's first byte at most.
        """
        content = min(self._missing - 2, len(data) - at)
        if content:
            pieces.append(data[at : at + content])
            self._missing -= content
            at += content
        if len(data) - at < 2:  # the line end comes whole or later
            return at
        if data[at : at + 2] != b"\r\n":
            raise InvalidInput("a chunk is longer than its size")
        self._missing = 0
        return at + 2
