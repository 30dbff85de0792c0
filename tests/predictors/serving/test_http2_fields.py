"""Header blocks: what a block means depends on those before it, also where it is found again by its bytes."""

import hpack
import pytest
from torpor.predictors.serving.http2_fields import (
    CompressionFailed,
    FieldReader,
    Malformed,
    encode_field,
    read_fields,
    status_field,
)

NEWEST = b"\x83\x86\x84\xbe"
"""POST, http and / from the static table, and the newest field of the dynamic one (RFC 7541, 2.3.3)."""

OLDER = NEWEST[:-1] + b"\xbf"
"""The same with the field before it."""

ALICE, BOB = (NEWEST[:-1] + field for field in (b"\x40\x06x-user\x05alice", b"\x40\x06x-user\x03bob"))
"""The same with a field that becomes the newest: of 43 and 41 bytes, as the table counts them."""

ROOM_FOR_ONE, ROOM_FOR_TWO, ALL_ROOM = (
    b"\x3f\x21" + NEWEST[:-1],
    b"\x3f\x45" + NEWEST[:-1],
    b"\x3f\xe1\x1f" + NEWEST[:-1],
)
"""Requests before whose fields the table gets 64, 100 or 4096 bytes."""


def test_a_block_means_what_the_table_says_now() -> None:
    """Equal bytes are an equal request only until the table changes; then the same index names another field."""
    reader = FieldReader()
    reader.head(b"\x83\x86\x84\x40\x06x-user\x05alice")
    assert [reader.head(NEWEST).headers for _ in range(2)] == [{b"x-user": b"alice"}] * 2
    reader.head(b"\x83\x86\x84\x40\x06x-user\x03bob")
    assert [reader.head(NEWEST).headers for _ in range(2)] == [{b"x-user": b"bob"}] * 2


def test_trailers_change_the_table_too() -> None:
    """What follows a body counts like any other block."""
    reader = FieldReader()
    reader.head(b"\x83\x86\x84\x40\x06x-user\x05alice")
    assert [reader.head(NEWEST).headers for _ in range(2)] == [{b"x-user": b"alice"}] * 2
    reader.trailers(b"\x40\x06x-user\x03bob")
    assert reader.head(NEWEST).headers == {b"x-user": b"bob"}


def test_a_block_that_changes_the_table_does_so_each_time() -> None:
    """Its bytes may be known; what they do to later blocks is not done with that."""
    reader = FieldReader()
    for _ in range(2):
        assert reader.head(ALICE).headers == {b"x-user": b"alice"}
    assert reader.head(OLDER).headers == {b"x-user": b"alice"}


def test_a_field_that_pushes_another_out_changes_the_table() -> None:
    """As many entries as before are not the same ones."""
    reader = FieldReader()
    for block in (ROOM_FOR_ONE, ALICE, NEWEST, BOB):
        reader.head(block)
    assert reader.head(NEWEST).headers == {b"x-user": b"bob"}


def test_a_field_that_is_there_already_changes_the_table_too() -> None:
    """The newest entry is equal to the newest before, and the one behind it is another."""
    reader = FieldReader()
    for block in (ROOM_FOR_TWO, ALICE, BOB):
        reader.head(block)
    assert reader.head(OLDER).headers == {b"x-user": b"alice"}
    reader.head(BOB)
    assert reader.head(OLDER).headers == {b"x-user": b"bob"}


def test_a_field_larger_than_the_table_empties_it() -> None:
    """RFC 7541, 4.4: then there is nothing to be named by its index."""
    reader = FieldReader()
    reader.head(ALICE)
    reader.head(NEWEST)
    reader.head(NEWEST[:-1] + b"\x40\x06x-user\x7f\x81\x1f" + b"a" * 4096)
    with pytest.raises(CompressionFailed):
        reader.head(NEWEST)


def test_a_size_of_the_table_is_obeyed_each_time() -> None:
    """Also by a block that was known before another changed the size."""
    reader = FieldReader()
    for block in (ROOM_FOR_ONE, ALL_ROOM, ROOM_FOR_ONE, ALICE, BOB):
        reader.head(block)
    with pytest.raises(CompressionFailed):
        reader.head(OLDER)


PSEUDO = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a")]


@pytest.mark.parametrize(
    ("content_type", "is_grpc"),
    [
        (b"application/grpc", True), (b"application/grpc+proto", True), (b"application/grpc;charset=utf-8", True),
        (b"application/grpc-web", False), (b"application/json", False), (b"", False),
    ],
)  # fmt: skip
def test_the_media_type_says_what_is_grpc(content_type: bytes, is_grpc: bool) -> None:
    """With a format or parameters behind it, but no other name."""
    assert read_fields([*PSEUDO, (b"content-type", content_type)]).is_grpc is is_grpc


def test_the_authority_is_the_host() -> None:
    """Unless a proxy passes a `host` on."""
    authority = (b":authority", b"a:80")
    assert read_fields([*PSEUDO, authority]).headers == {b"host": b"a:80"}
    assert read_fields([*PSEUDO, authority, (b"host", b"b")]).headers == {b"host": b"b"}
    assert read_fields(PSEUDO).headers == {}


@pytest.mark.parametrize("path", [b"/\xc3\xa9", b"a", b"", b"**"])
def test_a_path_is_ascii_and_begins_with_a_slash(path: bytes) -> None:
    """Or is the server itself."""
    with pytest.raises(Malformed):
        read_fields([*PSEUDO[:2], (b":path", path)])
    assert read_fields([*PSEUDO[:2], (b":path", b"*")]).path == "*"


@pytest.mark.parametrize("missing", PSEUDO, ids=lambda field: field[0].decode())
def test_a_request_has_method_scheme_and_path(missing: tuple[bytes, bytes]) -> None:
    """RFC 9113, 8.3.1."""
    with pytest.raises(Malformed):
        read_fields([field for field in PSEUDO if field is not missing])


def test_only_trailers_may_be_asked_for() -> None:
    """In any case of letters (RFC 9110, 10.1.4); another coding belongs to HTTP/1.1."""
    for value in (b"trailers", b"Trailers"):
        assert read_fields([*PSEUDO, (b"te", value)]).headers == {b"te": value}
    with pytest.raises(Malformed, match="te belongs"):
        read_fields([*PSEUDO, (b"te", b"trailers, gzip")])


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 256, 20_000])
@pytest.mark.parametrize("name", [b"content-type", b"x-%s"])
def test_fields_are_written_as_others_read_them(name: bytes, size: int) -> None:
    """Names and values of all lengths."""
    name = name.replace(b"%s", b"n" * size)
    assert hpack.Decoder(1 << 20).decode(encode_field(name, b"v" * size), raw=True) == [(name, b"v" * size)]


def test_statuses_are_written_as_others_read_them() -> None:
    """Those of the static table and all others."""
    for status in range(200, 600):
        assert hpack.Decoder().decode(status_field(status)) == [(":status", str(status))]
