"""Rows as bytes: what is written comes back, and nothing else is taken for a row."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torpor.predictors.protocol.datatypes import DTYPES
from torpor.transformers.features.codec import DATATYPES, MISSING, RowCodec

shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=5)
codecs = st.builds(RowCodec, st.sampled_from(DATATYPES), shapes)


@st.composite
def rows(draw: Any) -> tuple[RowCodec, np.ndarray]:
    codec = draw(codecs)
    return codec, draw(arrays.arrays(codec.dtype, codec.shape))


@given(rows())
def test_a_row_comes_back_as_it_was(row: tuple[RowCodec, np.ndarray]) -> None:
    """Bit for bit, NaN too, in its dtype and shape."""
    codec, array = row
    back = codec.decode(codec.encode(array))
    assert back is not None
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(codecs)
def test_that_there_is_no_row_comes_back_too(codec: RowCodec) -> None:
    """In two bytes."""
    assert codec.decode(codec.encode(None)) is None
    assert len(MISSING) == 2


@given(rows(), codecs)
def test_a_row_of_another_form_is_none_of_this_table(row: tuple[RowCodec, np.ndarray], other: RowCodec) -> None:
    """Of another dtype or shape, even where the bytes are as many."""
    codec, array = row
    if (codec.dtype, codec.shape) == (other.dtype, other.shape):
        assert other.decode(codec.encode(array)) is not None
    else:
        with pytest.raises(ValueError, match="not a row of this table"):
            other.decode(codec.encode(array))


@given(rows(), st.data())
def test_a_value_that_is_cut_or_longer_is_no_row(row: tuple[RowCodec, np.ndarray], data: Any) -> None:
    """And neither are any bytes that happen to be there."""
    codec, array = row
    value = codec.encode(array)
    cut = value[: data.draw(st.integers(0, len(value) - 1))]
    for wrong in (cut, value + b"\0", data.draw(st.binary(max_size=40).filter(lambda junk: junk[:1] != b"\x01"))):
        with pytest.raises(ValueError, match="not a row of this table"):
            codec.decode(wrong)


def test_the_bytes_are_those_of_the_format() -> None:
    """Written down, since pods of several versions share them."""
    codec = RowCodec("FP32", (2,))
    assert codec.encode(np.array([1, -2], np.float32)).hex() == "010401" + "02000000" + "0000803f" + "000000c0"
    assert RowCodec("INT64", ()).encode(np.array(258)).hex() == "010b00" + "0201000000000000"
    assert MISSING.hex() == "01ff"
    codes = [RowCodec(name, ()).encode(np.zeros((), DTYPES[name]))[1] for name in DATATYPES]
    assert dict(zip(DATATYPES, codes, strict=True)) == {
        "BOOL": 0, "UINT8": 1, "INT8": 2, "FP16": 3, "FP32": 4, "FP64": 5,
        "UINT16": 6, "UINT32": 7, "UINT64": 8, "INT16": 9, "INT32": 10, "INT64": 11,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], r"shape = \[1\], must be \[2\]"),
        ([[1.0, 2.0]], r"shape = \[1, 2\], must be \[2\]"),
        (["a", "b"], "dtype = <U1, must be float32"),
        ([1j, 2j], "dtype = complex128, must be float32"),
    ],
)
def test_what_a_loader_gives_must_fit(value: Any, message: str) -> None:
    """Lists and wider floats do, other shapes and dtypes don't."""
    codec = RowCodec("FP32", (2,))
    assert codec.row([1, 2.5]).tolist() == [1.0, 2.5]
    with pytest.raises(ValueError, match=message):
        codec.row(value)
    with pytest.raises(ValueError, match="dtype = float64, must be int64"):
        RowCodec("INT64", ()).row(1.5)
