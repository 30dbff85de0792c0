"""Rows of a transformer: cut to requests, grouped by shape for the predictor, and in their order again."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.predictors.errors import ModelFailed
from torpor.transformers.rows import by_shape, check_even, cut, in_order, is_ragged

lengths = st.lists(st.integers(0, 3), min_size=1, max_size=8)


def ids(lengths: list[int]) -> list[np.ndarray]:
    """Rows that tell their number, of these lengths."""
    return [np.full(length, number) for number, length in enumerate(lengths)]


@given(lengths)
def test_rows_of_any_lengths_come_back_in_their_order(lengths: list[int]) -> None:
    """Groups are tensors, together they have each row once, and put together they are the rows as they were."""
    (rows,) = cut({"ids": ids(lengths), "text": [f"{n}" for n in lengths]}, [len(lengths)])
    groups = by_shape(rows)
    assert all(not is_ragged(array) for group, _ in groups for array in group.values())
    assert len(groups) == len(set(lengths))
    assert sorted(place for _, places in groups for place in places) == list(range(len(lengths)))
    whole = in_order(groups)
    assert whole["text"].tolist() == [f"{n}" for n in lengths]
    for row, expected in zip(whole["ids"], ids(lengths), strict=True):
        np.testing.assert_array_equal(row, expected)


@given(lengths, st.data())
def test_each_request_gets_its_own_rows(lengths: list[int], data: st.DataObject) -> None:
    """Whatever the rows are, and however they are spread over requests."""
    counts: list[int] = []
    while sum(counts) < len(lengths):
        counts.append(data.draw(st.integers(1, len(lengths) - sum(counts))))
    pieces = cut({"ids": ids(lengths), "n": np.array(lengths)}, counts)
    assert [len(piece["n"]) for piece in pieces] == counts
    assert [n for piece in pieces for n in piece["n"].tolist()] == lengths
    assert [len(row) for piece in pieces for row in piece["ids"]] == lengths


@pytest.mark.parametrize(
    ("value", "shape", "dtype"),
    [
        pytest.param([1, 2.5], (2,), "float64", id="numbers"),
        pytest.param([[1, 2], [3, 4]], (2, 2), "int64", id="nested lists"),
        pytest.param(["a", b"b"], (2,), "object", id="strings"),
        pytest.param(np.array([["a"], ["b"]]), (2, 1), "object", id="numpy's own strings"),
        pytest.param([np.zeros(3, np.float32), np.ones(3, np.float32)], (2, 3), "float32", id="arrays of a shape"),
        pytest.param([np.zeros(3), np.ones(2)], (2,), "object", id="arrays of several"),
        pytest.param([[1, 2], [3]], (2,), "object", id="lists of several lengths"),
    ],
)
def test_what_a_method_may_return(value: Any, shape: tuple[int, ...], dtype: str) -> None:
    """An array, or a list with an element a row."""
    (rows,) = cut({"x": value}, [2])
    assert (rows["x"].shape, str(rows["x"].dtype)) == (shape, dtype)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float32(1), "'x' has no rows, must be an array or a list of 2 rows"),
        ([1, 2, 3], "'x' has 3 rows, must have 2, one for each row of the input"),
        (np.zeros((1, 2)), "'x' has 1 rows, must have 2, one for each row of the input"),
        (np.zeros(2, np.complex64), "'x': dtype complex64 has no Open Inference datatype"),
        ([np.zeros(1), np.zeros(2, np.complex64)], "'x': dtype complex64 has no Open Inference datatype"),
        ([1, [2]], "'x' has rows that are numbers and rows that are not"),
        ([1, 2.5j], "'x': dtype complex128 has no Open Inference datatype"),
    ],
)
def test_what_a_method_may_not_return(value: Any, message: str) -> None:
    """The message says what was expected."""
    with pytest.raises(ModelFailed) as failure:
        cut({"x": value}, [2])
    assert str(failure.value) == message


def test_an_answer_must_be_tensors() -> None:
    """Ragged rows are for the way to the predictor; a caller cannot be given them."""
    (rows,) = cut({"x": [np.zeros(1), np.zeros(2)]}, [2])
    with pytest.raises(ModelFailed, match=r"output 'x': rows differ in shape \(\(1,\), \(2,\)\), must be one tensor"):
        check_even(rows)


def test_outputs_that_differ_by_shape_are_ragged_for_postprocess() -> None:
    """A predictor that answers each length with its own shape."""
    whole = in_order([({"y": np.zeros((2, 3))}, [0, 2]), ({"y": np.ones((1, 5))}, [1])])
    assert [row.shape for row in whole["y"]] == [(3,), (5,), (3,)]


def test_outputs_must_have_the_same_names_for_all_rows() -> None:
    """What came for some rows only has no rows for the others."""
    with pytest.raises(ModelFailed, match="have other names for some rows than for others"):
        in_order([({"y": np.zeros(1)}, [0]), ({"z": np.zeros(1)}, [1])])
