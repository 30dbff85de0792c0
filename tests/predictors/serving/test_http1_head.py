"""The reader of HTTP/1 heads against llhttp, the parser of Node.js: nothing that we accept means anything else there."""

import contextlib
import itertools
import re
from collections.abc import Callable

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from torpor.predictors.errors import HeadTooLarge, InvalidInput, TorporError
from torpor.predictors.serving.http1_head import MAX_FIELDS, MAX_HEAD_BYTES, ChunkedBody, read_head, read_length

TOKENS = st.text("abcXYZ-_!1", min_size=1, max_size=8).map(str.encode)
PIECES = st.sampled_from([
    b"GET", b"POST", b" ", b"/", b"/v2?x=1", b"*", b"http://h/p", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0", b"\r\n", b"\n",
    b"\r", b"Host: h", b"host:h", b"Host: a b", b"Content-Length: 5", b"Content-Length: 05", b"content-length: +5",
    b"Content-Length: 5, 5", b"Transfer-Encoding: chunked", b"transfer-encoding: gzip", b"X: y", b"X : y", b" X: y", b"X:",
    b": y", b"X: \0", b"X: \xff", b"Connection: close", b"Expect: 100-continue", b"\t", b"\0", b"\x80",
])  # fmt: skip


class Seen:
    """What llhttp reports of a message."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


def by_llhttp(data: bytes) -> tuple[httptools.HttpRequestParser, Seen]:
    seen = Seen()
    parser = httptools.HttpRequestParser(seen)
    with contextlib.suppress(httptools.HttpParserUpgrade):
        parser.feed_data(data)
    return parser, seen


def check(block: bytes) -> None:
    try:
        head = read_head(block)
    except TorporError:
        return
    parser, seen = by_llhttp(block)
    assert parser.get_method() == head.method.encode()
    path = re.sub(rb"(?i)^https?://[^/?#]+", b"", seen.url).partition(b"?")[0].partition(b"#")[0]
    assert (path or b"/") == head.path.encode()
    assert dict(seen.headers).keys() == head.headers.keys()
    for name, value in head.headers.items():
        joined = (b"; " if name == b"cookie" else b", ").join([v for n, v in seen.headers if n == name])
        assert value == joined
    assert seen.complete == (head.length == 0)


KNOWN = st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS"])
VALUES = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=8).map(
    lambda t: t.encode("latin-1")
)


@given(st.lists(PIECES, max_size=12))
def test_any_head_is_refused_or_read_as_llhttp_does(pieces: list[bytes]) -> None:
    """Pieces of heads in any order."""
    check(b"".join(pieces) + b"\r\n\r\n")


@given(
    KNOWN, st.sampled_from([b"/", b"/v2/a%20b?c#d", b"http://h", b"*"]), st.lists(st.tuples(TOKENS, VALUES), max_size=6)
)
def test_headers_are_read_as_llhttp_does(method: bytes, target: bytes, fields: list[tuple[bytes, bytes]]) -> None:
    """Any names and values."""
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: h", *[name + b": " + value for name, value in fields]]
    check(b"\r\n".join(lines) + b"\r\n\r\n")


@given(st.binary(max_size=60), st.lists(st.integers(1, 20), max_size=8), st.lists(st.integers(0, 200), max_size=6))
def test_chunks_are_put_together_wherever_they_are_cut(body: bytes, sizes: list[int], cuts: list[int]) -> None:
    """Chunks of any sizes in pieces of any sizes give the body, and what follows it."""
    sent, at = b"", 0
    for size in [*sizes, 60]:
        if piece := body[at : at + size]:
            sent += b"%x;q=1\r\n%b\r\n" % (len(piece), piece)
        at += size
    body, sent = body[:at], sent + b"0\r\nx: y\r\n\r\nGET"
    places = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    chunks, read, rest = ChunkedBody(), b"", None
    for start, stop in itertools.pairwise(places):
        if rest is not None:
            rest += sent[start:stop]
            continue
        pieces, rest = chunks.feed(sent[start:stop])
        read += b"".join(pieces)
    assert (read, rest) == (body, b"GET")


@given(
    st.lists(
        st.sampled_from([b"5", b"\r\n", b"hello", b"0", b"\n", b";", b"x: y", b"g", b" ", b"-1", b"\r"]), max_size=9
    )
)
@example([b"0", b";", b"\r\n", b"\r\n"])
@example([b"0", b" ", b"\r\n", b"\r\n"])
@example([b"0", b";", b"g", b" ", b"\r\n", b"\r\n"])
def test_any_chunks_are_refused_or_read_as_llhttp_does(pieces: list[bytes]) -> None:
    """A body that we call whole is whole for llhttp, and the same."""
    sent = b"".join(pieces)
    try:
        read, rest = ChunkedBody().feed(sent)
    except TorporError:
        return
    if rest is None:
        return
    _, seen = by_llhttp(
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + sent[: len(sent) - len(rest)]
    )
    assert (seen.complete, seen.body) == (True, b"".join(read))


@pytest.mark.parametrize("version", [b"HTTP/1.2", b"HTTP/1.9", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.10", b"http/1.1"])
def test_other_versions_are_refused(version: bytes) -> None:
    """There is no HTTP/1.2, so nobody who says so is a client of ours."""
    with pytest.raises(InvalidInput, match="request line"):
        read_head(b"GET / %b\r\nHost: h\r\n\r\n" % version)


@pytest.mark.parametrize(
    "size",
    [
        *(b"%016x" % 5, b"10000000000000000", b"-5", b"0x5", b"5 5", b"", b"5 ", b"5\t", b" 5"),
        *(
            b"5;",
            b"5 ;a",
            b"5; a",
            b"5;a ",
            b"5;a\x7f",
            b"5;a b",
            b"5;;a",
            b"5;=a",
            b"5;a=",
            b"5;a =b",
            b"5;a= b",
            b'5;a="b',
            b'5;a="b"c',
        ),
    ],
)
def test_a_size_that_is_none_is_refused(size: bytes) -> None:
    """Hexadecimal digits, fifteen at most, and behind them whole extensions alone."""
    with pytest.raises(TorporError, match="must be its size in hexadecimal"):
        ChunkedBody().feed(size + b"\r\nhello\r\n0\r\n\r\n")


def test_a_head_has_as_many_fields_as_it_may() -> None:
    """The last that is allowed is read, one more is refused."""
    block = b"GET / HTTP/1.1\r\nHost: h\r\n" + b"".join(b"x-%d: 1\r\n" % n for n in range(MAX_FIELDS - 1))
    assert len(read_head(block + b"\r\n").headers) == MAX_FIELDS
    with pytest.raises(HeadTooLarge, match=f"header fields = {MAX_FIELDS + 1}, must be in"):
        read_head(block + b"x: 1\r\n\r\n")


def test_a_length_has_eighteen_digits_at_most() -> None:
    """No length needs more, and none beyond is taken for one."""
    assert read_length(b"9" * 18) == 10**18 - 1
    with pytest.raises(InvalidInput, match="must be digits, 18 at most"):
        read_length(b"9" * 19)


def test_a_target_is_a_path_a_url_or_a_star() -> None:
    """`OPTIONS *` has a path that nothing serves; a word is no target at all, nor is a URL without a host."""
    for target, path in ((b"*", "*"), (b"http://h", "/"), (b"HTTPS://h:1/a?b#c", "/a"), (b"/a#b", "/a")):
        assert read_head(b"OPTIONS %b HTTP/1.1\r\nHost: h\r\n\r\n" % target).path == path
    for target, query in ((b"http://h?x=1#f", "x=1"), (b"http://h#f?x=1", "")):
        head = read_head(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target)
        assert (head.path, head.query) == ("/", query)
    assert read_head(b"GET http://%b/p HTTP/1.1\r\nHost: h\r\n\r\n" % b'u@h;,="\\').path == "/p"
    for target in (b"word", b"http:///a", b"ftp://h/a", b"httpss://h/a"):
        with pytest.raises(InvalidInput, match="target must be a path or an http URL"):
            read_head(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target)


def test_a_field_has_a_name_and_perhaps_a_value() -> None:
    """And HTTP/1.0 may have no field at all."""
    head = read_head(b"GET / HTTP/1.1\r\nHost: h\r\nx:\r\ny: \t\r\n\r\n")
    assert head.headers == {b"host": b"h", b"x": b"", b"y": b""}
    with pytest.raises(InvalidInput, match="a header line is not NAME: VALUE"):
        read_head(b"GET / HTTP/1.1\r\nHost: h\r\n: y\r\n\r\n")
    assert read_head(b"GET / HTTP/1.0\r\n\r\n").headers == {}


def test_a_method_has_one_letter_to_32() -> None:
    """None has more; what is longer is no request line, nor is one without a method or without a target."""
    for method in (b"M", b"M" * 32):
        assert read_head(b"%b / HTTP/1.1\r\nHost: h\r\n\r\n" % method).method == method.decode()
    for line in (b" / HTTP/1.1", b"%b / HTTP/1.1" % (b"M" * 33), b"GET  HTTP/1.1"):
        with pytest.raises(InvalidInput, match="the request line is not"):
            read_head(line + b"\r\nHost: h\r\n\r\n")


@pytest.mark.parametrize("line", [b"%015x" % 5, b"5;a", b"5;a=b;c=d", b'5;a=""', b'5;a=" ;\\"\xe9\t";b'])
def test_a_size_may_have_zeros_and_extensions(line: bytes) -> None:
    """Which mean nothing here (RFC 9112, 7.1.1)."""
    assert ChunkedBody().feed(line + b"\r\nhello\r\n0\r\n\r\n") == ([b"hello"], b"")


LETTERS_AND_DIGITS = {*b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"}
TOKEN = {*b"!#$%&'*+-.^_`|~", *LETTERS_AND_DIGITS}
TEXT = {*b"\t", *range(0x20, 0x7F), *range(0x80, 0x100)}


def allowed(before: bytes, after: bytes, is_read: Callable[[bytes], bool]) -> set[int]:
    """The bytes that may be between these two."""

    def may_be(byte: int) -> bool:
        try:
            return is_read(before + bytes([byte]) + after)
        except InvalidInput:
            return False

    return set(filter(may_be, range(256)))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param(b"GE", b"T / HTTP/1.1\r\nHost: h", TOKEN, id="method"),
        pytest.param(b"GET /a", b"b HTTP/1.1\r\nHost: h", {*range(0x21, 0x7F)}, id="target"),
        pytest.param(b"GET / HTTP/1.", b"\r\nHost: h", {*b"01"}, id="version"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\na", b"b: c", TOKEN | {*b":"}, id="name of a field"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\na: b", b"c", TEXT, id="value of a field"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a", b"b", {*b"%._~!$&'()*+,;=:[]-", *LETTERS_AND_DIGITS}, id="host"),
    ],
)
def test_a_head_has_the_bytes_that_its_grammar_gives_it(before: bytes, after: bytes, expected: set[int]) -> None:
    """RFC 9110, 5.6, for names and values; RFC 3986, 3.2.2, for a host, which may have a port behind it."""
    assert allowed(before, after + b"\r\n\r\n", lambda block: bool(read_head(block))) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param(b"", b"", {*b"5"}, id="size"),
        pytest.param(b"5;", b"", TOKEN, id="name"),
        pytest.param(b"5;a=", b"", TOKEN, id="value"),
        pytest.param(b'5;a="', b'"', TEXT - {*b'"\\'}, id="quoted"),
        pytest.param(b'5;a="\\', b'"', TEXT, id="escaped"),
        pytest.param(b"5", b"a", {*b";"}, id="before an extension"),
        pytest.param(b"5;a", b"b", TOKEN | {*b"=;"}, id="in a name"),
        pytest.param(b"5;a=b", b"c", TOKEN | {*b";"}, id="in a value"),
        pytest.param(b'5;a="b"', b"c", {*b";"}, id="behind a quoted value"),
    ],
)
def test_extensions_have_the_bytes_that_their_grammar_gives_them(
    before: bytes, after: bytes, expected: set[int]
) -> None:
    """Names and values are tokens, or values quoted text, where a backslash stands before any of it (RFC 9110, 5.6)."""

    def is_read(line: bytes) -> bool:
        return ChunkedBody().feed(line + b"\r\nhello\r\n0\r\n\r\n") == ([b"hello"], b"")

    assert allowed(before, after, is_read) == expected


def test_a_trailer_has_the_bytes_of_a_field() -> None:
    """All of it, though it is dropped."""
    assert allowed(b"0\r\nx: a", b"b\r\n\r\n", lambda data: ChunkedBody().feed(data) == ([], b"")) == TEXT


def test_what_follows_a_body_is_not_its_trailers() -> None:
    """However much of it has come with the empty line that ends them."""
    chunks, following = ChunkedBody(), b"x" * (MAX_HEAD_BYTES + 1)
    assert chunks.feed(b"0\r\n") == ([], None)
    assert chunks.feed(b"\r\n" + following) == ([], following)


def test_a_head_has_what_its_fields_ask_for() -> None:
    """Beside the body, here how that is packed."""
    assert read_head(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Encoding: gzip\r\n\r\n").options.coding == b"gzip"


def test_a_size_is_hexadecimal_in_either_case() -> None:
    """0 to 9, a to f, A to F."""
    for digits in (b"0123456789", b"abcdef", b"ABCDEF"):
        for digit in digits:
            size = int(chr(digit), 16)
            chunk = b"1%c\r\n%b\r\n" % (digit, b"x" * (16 + size))
            assert ChunkedBody().feed(chunk) == ([b"x" * (16 + size)], None)


@pytest.mark.parametrize(("expected", "awaits"), [(b"100-Continue", True), (b"100", False), (b"tea", False)])
def test_only_100_continue_is_waited_for(expected: bytes, awaits: bool) -> None:
    """Another expectation is passed over, as RFC 9110, 10.1.1, allows."""
    block = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nExpect: %b\r\n\r\n" % expected
    assert read_head(block).awaits_continue is awaits


@pytest.mark.parametrize(("minor", "awaits"), [(1, True), (0, False)])
def test_who_speaks_http10_does_not_wait_to_continue(minor: int, awaits: bool) -> None:
    """It knows neither interim answers, so that its expectation is passed over (RFC 9110, 10.1.1), nor chunks."""
    block = b"POST / HTTP/1.%d\r\nHost: h\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n" % minor
    head = read_head(block)
    assert (head.awaits_continue, head.reads_chunks) == (awaits, awaits)


@pytest.mark.parametrize("end", [b"", b"\r", b"\r\n", b"\r\nhello"])
def test_a_size_line_may_be_long_but_not_endless(end: bytes) -> None:
    """An extension of 1 KiB is passed over, a byte more is refused, however much of what follows has come."""
    assert ChunkedBody().feed(b"5;" + b"q" * 1022 + end)[1] is None
    with pytest.raises(InvalidInput, match="must have at most 1024 bytes"):
        ChunkedBody().feed(b"5;" + b"q" * 1023 + end)


def test_trailers_may_be_as_large_as_a_head() -> None:
    """They are counted together."""
    line = b"x: " + b"y" * 1021 + b"\r\n"
    trailers = b"0\r\n" + line * (MAX_HEAD_BYTES // 1024)
    assert ChunkedBody().feed(trailers + b"\r\n") == ([], b"")
    with pytest.raises(HeadTooLarge, match=f"trailers = {MAX_HEAD_BYTES + 4} bytes, must be in"):
        ChunkedBody().feed(trailers + b"x: y\r\n\r\n")


@pytest.mark.parametrize("end", [b"", b"\r", b"\r\n"])
def test_a_trailer_may_be_as_long_as_all_of_them(end: bytes) -> None:
    """Whole or not: what limits a chunk's first line does not limit it."""
    line = b"0\r\nx: " + b"y" * (MAX_HEAD_BYTES - 3)
    assert ChunkedBody().feed(line + end) == ([], None)
    with pytest.raises(HeadTooLarge, match=f"trailers = {MAX_HEAD_BYTES + 1} bytes, must be in"):
        ChunkedBody().feed(line + b"y" + end)
