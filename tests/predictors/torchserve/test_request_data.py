"""What a handler gets of a body, by its content type."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.predictors.errors import InvalidInput
from torpor.predictors.torchserve.worker.request_data import loads, parameters, read

MULTIPART = "multipart/form-data; boundary=x--y"
PART = b"--x--y\r\ncontent-disposition: form-data; name=a\r\n\r\n1\r\n"


def row(content_type: str, body: bytes, decodes: bool = True) -> dict[str, object]:
    return read({"content-type": content_type} if content_type else {}, body, decodes)[0]


@pytest.mark.parametrize(
    ("content_type", "body", "value"),
    [
        ("application/json", b'{"a": [1, 2.5]}', {"a": [1, 2.5]}),
        ("application/json; charset=utf-8", b"1", 1),
        ("application/json ; charset=utf-8", b"1", 1),
        ("application/json", b'{"x": NaN', bytearray(b'{"x": NaN')),
        ("Application/JSON", b"1", bytearray(b"1")),
        ("text/plain", "é".encode(), "é"),
        ("text/plain", b"\xff", bytearray(b"\xff")),
        ("image/png", b"\x89PNG", bytearray(b"\x89PNG")),
        ("application/json", b"[" * 100_000, bytearray(b"[" * 100_000)),
        ("", b"1", bytearray(b"1")),
        ("", b"", bytearray()),
    ],
)
def test_a_body_is_read_by_its_type(content_type: str, body: bytes, value: object) -> None:
    """JSON and text, and what is neither, or is broken, as a bytearray."""
    found = row(content_type, body)
    assert found == {"body": value}
    assert type(found["body"]) is type(value)


def test_nothing_is_read_where_that_is_switched_off() -> None:
    """decode_input_request=false."""
    for kind in ("application/json", "text/plain"):
        assert read({"content-type": kind}, b"1", False) == ({"body": bytearray(b"1")}, {"body": kind})


def test_a_form_is_its_fields() -> None:
    """Of `curl -d`; values are bytes whatever they look like, of a name that comes twice the last."""
    form = "application/x-www-form-urlencoded"
    assert row(form, b"a=1&b=%C3%A9+%2B&c&a=2") == {"a": b"2", "b": "é +".encode(), "c": b""}
    assert row(form, b"a=1&c") == {"a": b"1"}
    assert read({"content-type": form.upper() + " ; charset=utf-8"}, b"a=1", True) == ({"a": b"1"}, {"a": ""})
    assert row(form, b'{"instances": [1]}') == {}


def test_a_multipart_body_is_its_parts() -> None:
    """A file is read by its own type, a field never."""
    body = (
        b'--x--y\r\nContent-Disposition: form-data; name="a"\r\nContent-Type: application/json\r\n\r\n1\r\n'
        b'--x--y\r\ncontent-disposition: form-data; name=b; filename="f.json"\r\ncontent-type: application/json\r\n\r\n{"x": 1}'
        b'\r\n--x--y\r\nContent-Disposition: form-data; name="c"; filename="f"\r\n\r\n\r\n--x\r\n\xff\r\n--x--y--\r\n'
    )
    found, types = read({"content-type": MULTIPART}, body, True)
    assert found == {"a": b"1", "b": {"x": 1}, "c": b"\r\n--x\r\n\xff"}
    assert types == {"a": "", "b": "application/json", "c": ""}


@pytest.mark.parametrize("boundary", ["boundary=x--y", 'Boundary="x--y"; charset=utf-8', ";boundary=x--y;a=b"])
def test_a_multipart_body_may_have_many_parts(boundary: str) -> None:
    """Of a name that comes twice the last, between boundaries in either spelling."""
    body = b"\r\n" + PART * 999 + PART.replace(b"\n1\r", b"\n2\r") + b"--x--y--"
    found, types = read({"content-type": f"Multipart/Form-Data; {boundary}"}, body, True)
    assert (found, types) == ({"a": b"2"}, {"a": ""})


def test_a_parts_name_may_be_quoted_or_empty() -> None:
    """In whatever case it is said, and with what is no UTF-8 in it."""
    heads = (b'NAME="a b"; x=y', b'name=""', b"name=\xff", b"filename=name; name = c", rb'name="d\"; name=e"')
    body = b"".join(b"--x--y\r\nContent-Disposition : form-data; " + head + b"\r\n\r\n1\r\n" for head in heads)
    assert [*row(MULTIPART, body + b"--x--y--")] == ["a b", "", "\ufffd", "c", r"d\"; name=e"]


def test_a_querys_parameters_are_fields() -> None:
    """As those of a form."""
    assert parameters("a=1&b=%C3%A9+%2B&&c&a=2=3") == {"a": b"2=3", "b": "é +".encode(), "c": b""}
    assert parameters("") == {}


@pytest.mark.parametrize(
    ("content_type", "body", "reason"),
    [
        ("multipart/form-data", b"", "must name a boundary"),
        (MULTIPART, b"", "does not begin and end with its boundary"),
        (MULTIPART, b"--x--y\r\ncontent-disposition: form-data; name=a\r\n--x--y--", "has no name"),
        (MULTIPART, b"--x--y\r\n\r\n1", "does not begin and end with its boundary"),
        (MULTIPART, b"junk\r\n--x--y--", "does not begin and end with its boundary"),
        (MULTIPART, b"--x--y\r\nContent-Type: a/b\r\n\r\n1\r\n--x--y--", "has no name"),
        (MULTIPART, PART * 1001 + b"--x--y--", r"has 1001 parts, must be at most 1000"),
    ],
)
def test_a_broken_multipart_body_is_refused(content_type: str, body: bytes, reason: str) -> None:
    """Half of a form would be half an answer."""
    with pytest.raises(InvalidInput, match=reason):
        row(content_type, body)


@given(st.binary(max_size=300))
def test_any_multipart_body_is_read_or_refused(body: bytes) -> None:
    """Nothing else comes of it."""
    try:
        row(MULTIPART, b"--x--y\r\n" + body + b"\r\n--x--y--")
    except InvalidInput:
        return


@pytest.mark.parametrize(("text", "value"), [(b'{"x": NaN}', "{'x': nan}"), (b'"\\ud800"', "'\\ud800'"), (b"1", "1")])
def test_json_is_what_the_standard_library_reads(text: bytes, value: str) -> None:
    """Also where the quick reader does not."""
    assert repr(loads(text)) == value
