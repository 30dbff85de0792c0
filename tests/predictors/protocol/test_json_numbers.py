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
}


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
@pytest.mark.parametrize("datatype", ["FP32", "INT64"])
def test_what_is_no_row_of_numbers_is_left_to_the_general_way(text: bytes, datatype: str) -> None:
    """It is never read as something else, and its caller learns what is wrong."""
    assert numbers(text, datatype) is None
    if datatype == "INT64":
        with pytest.raises(InvalidInput):
            v1.decode(b'{"instances":' + text + b"}", ("x",), {"x": datatype})


def test_rows_of_different_lengths_are_left_to_the_general_way() -> None:
    """Which makes a request of each."""
    assert numbers(b"[[1],[2,3]]", "FP32") is None


def test_equal_rows_of_numbers_are_taken() -> None:
    """The shape is that of the lists."""
    array = numbers(b"[[1,2,3],[4,5,6]]", "INT64")
    assert array is not None
    assert array.tolist() == [[1, 2, 3], [4, 5, 6]]
