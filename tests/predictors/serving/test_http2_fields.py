"""Header blocks: what a block means depends on those before it, also where it is found again by its bytes."""

from torpor.predictors.serving.http2_fields import FieldReader

NEWEST = b"\x83\x86\x84\xbe"
"""POST, http and / from the static table, and the newest field of the dynamic one (RFC 7541, 2.3.3)."""


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
