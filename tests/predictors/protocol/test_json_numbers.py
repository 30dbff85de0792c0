"""The quick way for lists of numbers takes what the general way takes, and leaves it everything else."""

import pytest
from torpor.predictors.errors import InvalidInput
from torpor.predictors.protocol import v1
from torpor.predictors.protocol.json_numbers import numbers

LEFT = {
    "deeper than simdjson goes": b"[" * 3000 + b"]" * 3000,
    "an integer of more than 64 bits": b"[-99999999999999999999]",
    "as many brackets and numbers as two rows of two have": b"[5,[6,[7,8]]]",
    "a list inside a row": b"[0,[1,2,[]]]",
    "an object": b'{"a":[1]}',
    "a number": b"5",
    "no list at all": b"",
    "nothing": b"[]",
}


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
@pytest.mark.parametrize("datatype", ["FP32", "INT64"])
def test_what_is_no_row_of_numbers_is_left_to_the_general_way(text: bytes, datatype: str) -> None:
    """It is never read as something else, and its caller learns what is wrong."""
    assert numbers(text, datatype) is None
    if datatype == "INT64":
        with pytest.raises(InvalidInput):
            v1.decode(b'{"instances":' + text + b"}", ("x",), {"x": datatype})


def test_rows_of_rows_are_left_to_the_general_way() -> None:
    """Which reads them."""
    assert numbers(b"[[[1,2]],[[3,4]]]", "FP32") is None


def test_rows_of_different_lengths_are_left_to_the_general_way() -> None:
    """Which makes a request of each."""
    assert numbers(b"[[1],[2,3]]", "FP32") is None


@pytest.mark.parametrize(
    ("text", "datatype"),
    [
        (b"[1, 1e39]", "FP32"),
        (b"[-1e39, 1]", "FP32"),
        (b"[2147483648]", "INT32"),
        (b"[-2147483649, 1]", "INT32"),
        (b"[1]", "INT8"),
        (b"[1]", None),
    ],
)
def test_what_the_datatype_cannot_hold_is_left_to_the_general_way(text: bytes, datatype: str | None) -> None:
    """Which says what is wrong: it never becomes infinity or another number. Nor are other datatypes read here."""
    assert numbers(text, datatype) is None


def test_the_ends_of_a_datatype_are_taken() -> None:
    """The least and the greatest number that it has."""
    array = numbers(b"[-2147483648, 2147483647]", "INT32")
    assert array is not None
    assert array.tolist() == [-(2**31), 2**31 - 1]


def test_equal_rows_of_numbers_are_taken() -> None:
    """The shape is that of the lists."""
    array = numbers(b"[[1,2,3],[4,5,6]]", "INT64")
    assert array is not None
    assert array.tolist() == [[1, 2, 3], [4, 5, 6]]
