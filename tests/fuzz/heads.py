"""What precedes bodies: heads and chunks of HTTP/1, header blocks of HTTP/2."""

from dataclasses import replace

from choices import Choices
from torpor.predictors.errors import TorporError
from torpor.predictors.serving.exchange import Head
from torpor.predictors.serving.http1_head import MAX_FIELDS, ChunkedBody, read_head
from torpor.predictors.serving.http2_fields import CompressionFailed, FieldReader, Malformed
from torpor.predictors.serving.request_options import NO_OPTIONS


def http1_head(data: bytes) -> None:
    """A head that is taken is the same one when it is written again in the plainest way."""
    try:
        head = read_head(data + b"\r\n\r\n")
    except TorporError:
        return
    check_head(head)
    assert head.length is None or 0 <= head.length < 10**18
    assert len(head.headers) <= MAX_FIELDS
    minor = data.split(b"\r\n", 1)[0][-1:]
    lines = [b"%s %s HTTP/1.%s" % (head.method.encode(), head.path.encode(), minor)]
    lines += [b"%s: %s" % field for field in head.headers.items()]
    again = read_head(b"\r\n".join((*lines, b"", b"")))
    stripped = {name: value.strip(b" \t") for name, value in head.headers.items()}  # a list may end with an empty value
    assert _said(again)[0] == _said(replace(head, headers=stripped))[0]


def _said(head: Head) -> tuple[object, ...]:
    """The head, and its options with the error that they make: two of them are never equal."""
    options, refusal = replace(head.options, refusal=None), head.options.refusal
    return replace(head, options=NO_OPTIONS), options, refusal and (type(refusal()), str(refusal()))


def check_head(head: Head) -> None:
    assert head.path.startswith("/") or head.path == "*"
    assert not set(head.path) & {"?", "#", " ", "\r", "\n"}
    for name, value in head.headers.items():
        assert name == name.lower()
        assert not {*name, *value} & {*b"\r\n\0"}


def http1_chunks(data: bytes) -> None:
    """The same body, or the same end, whatever the pieces."""
    choices = Choices(data)
    cuts = Choices(choices.take(7))
    stream = choices.rest()
    assert _body(cuts.pieces(stream)) == _body([stream])


def _body(pieces: list[bytes]) -> object:
    chunked, body, rest = ChunkedBody(), b"", None
    try:
        for piece in pieces:
            if rest is not None:
                rest += piece
                continue
            content, rest = chunked.feed(piece)
            body += b"".join(content)
    except TorporError as error:
        return type(error)
    return body, rest


MOST_BLOCKS = 8
"""What more blocks would find is not worth the time that hpack takes for them."""


def http2_fields(data: bytes) -> None:
    """Blocks on one connection mean the same with and without the memory of earlier ones."""
    choices = Choices(data)
    reader, forgetful = FieldReader(), FieldReader()
    blocks: list[bytes] = []
    while choices and len(blocks) < MOST_BLOCKS:
        kind = choices.below(4)
        if kind == 3 and blocks:
            block = choices.pick(blocks)
        else:
            block = b"".join(choices.pick(FIELDS) for _ in range(choices.below(6))) + choices.take(choices.below(32))
        blocks.append(block)
        forgetful._heads.clear()
        first, second = (_read(each, block, is_trailer=kind == 2) for each in (reader, forgetful))
        assert first == second
        if first is CompressionFailed:
            return


FIELDS = (
    b"\x82\x86\x84",  # GET, http, /
    b"\x83\x86\x44\x05/echo",  # POST, http, a path that the table keeps
    b"\x41\x01h", b"\x40\x01a\x01b", b"\x40\x04host\x01x", b"\x0f\x0d\x015", b"\x0f\x10\x10application/grpc", b"\xbe", b"\xbf",
    b"\x20", b"\x3f\xe1\x1f", b"\x00\x0aconnection\x05close", b"\x00\x02te\x08trailers", b"\x00\x06cookie\x03a=b",
)  # fmt: skip


def _read(reader: FieldReader, block: bytes, *, is_trailer: bool) -> object:
    try:
        if is_trailer:
            reader.trailers(block)
            return None
        head = reader.head(block)
    except (Malformed, CompressionFailed) as error:
        return type(error)
    check_head(head)
    return _said(head)
