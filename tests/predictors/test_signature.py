"""Declarations of tensors, and requests held against them."""

import time

import numpy as np
import pytest
from torpor.predictors.errors import InvalidInput, ModelFailed
from torpor.predictors.signature import Request, Signature, TensorSpec


def signature(inputs: dict[str, str], outputs: dict[str, str] | None = None, **options: object) -> Signature:
    return Signature(
        tuple(inputs),
        {name: TensorSpec.parse(name, text) for name, text in inputs.items() if text},
        {name: TensorSpec.parse(name, text) for name, text in (outputs or {}).items()},
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("text", "datatype", "axes", "shape"),
    [
        ("float32[rows, 784]", "FP32", (784,), [-1, 784]),
        ("int64[-1, tokens]", "INT64", ("tokens",), [-1, -1]),
        ("bytes[rows]", "BYTES", (), [-1]),
        ("FP16[rows, -1, 3]", "FP16", (-1, 3), [-1, -1, 3]),
        ("uint8[rows,height,width,3]", "UINT8", ("height", "width", 3), [-1, -1, -1, 3]),
    ],
)
def test_declarations_are_read(text: str, datatype: str, axes: tuple[object, ...], shape: list[int]) -> None:
    """A dtype, then rows, then sizes, -1 and names."""
    spec = TensorSpec.parse("x", text)
    assert (spec.datatype, spec.axes, spec.shape) == (datatype, axes, shape)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("float32", "is not of the form"),
        ("float33[rows]", "dtype 'float33' must be one of"),
        ("float32[784]", "the first axis is '784', must be 'rows' or -1"),
        ("float32[rows, a b]", "axis 'a b' must be a size, -1 or a name"),
        ("float32[rows, -2]", "axis '-2' must be"),
        ("json[rows, 3]", r"'json\[rows, 3\]', must be 'json\[rows\]': a row is one JSON value"),
    ],
)
def test_a_wrong_declaration_says_what_is_wrong(text: str, message: str) -> None:
    """The message names the part, and what it must be."""
    with pytest.raises(ValueError, match=message):
        TensorSpec.parse("x", text)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input 'a' is missing, the model takes 'a', 'b'"),
        ({"a": np.zeros((2, 3), np.float32)}, "input 'b' is missing"),
        ({"a": np.zeros((2, 3), np.float64)}, "input 'a': datatype = FP64, must be FP32"),
        ({"a": np.zeros((2, 4), np.float32)}, r"input 'a': shape = \[2, 4\], must be \[-1, 3\]"),
        ({"a": np.zeros(2, np.float32)}, r"input 'a': shape = \[2\], must be \[-1, 3\]"),
        ({"a": np.zeros((), np.float32)}, r"input 'a': shape = \[\], must have rows on axis 0"),
        (
            {"a": np.zeros((2, 3), np.float32), "b": np.zeros((1, 5), np.int64)},
            "input 'b': rows = 1, must be 2 as in 'a'",
        ),
        (
            {"a": np.zeros((0, 3), np.float32), "b": np.zeros((1, 5), np.int64)},
            "input 'b': rows = 1, must be 0 as in 'a'",
        ),
        ({"a": np.zeros((0, 3), np.float32), "b": np.zeros((0, 5), np.int64)}, "rows = 0, must be at least 1"),
        ({"a": np.zeros((1, 3), np.float32), "c": np.zeros(1)}, "input 'c' is unknown, must be one of 'a', 'b'"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_precisely(inputs: dict[str, np.ndarray], message: str) -> None:
    """Input, value and what it must be."""
    with pytest.raises(InvalidInput, match=message):
        signature({"a": "float32[rows, 3]", "b": "int64[rows, n]"}).bind(inputs)


def test_json_is_bytes_that_v1_writes_out() -> None:
    """To v2 and gRPC there is no such datatype."""
    declared = signature({"row": "json[rows]", "x": "float32[rows]"}, {"answer": "json[rows]", "text": "bytes[rows]"})
    assert declared.inputs["row"].datatype == declared.outputs["answer"].datatype == "BYTES"
    assert declared.v1_datatypes == {"row": "JSON", "x": "FP32"}
    assert declared.json_outputs == {"answer"}


def test_inputs_share_their_named_axes() -> None:
    """Two inputs with the axis `tokens` must agree on its size."""
    both = signature({"ids": "int64[rows, tokens]", "mask": "int64[rows, tokens]"})
    with pytest.raises(InvalidInput, match="input 'mask': axis 'tokens' = 4, must be 3"):
        both.bind({"ids": np.zeros((1, 3), np.int64), "mask": np.zeros((1, 4), np.int64)})


def test_near_lengths_share_a_bucket_and_far_ones_do_not() -> None:
    """Named axes are rounded up to steps of eight in the bucket; the request's own size is kept."""
    ids = signature({"ids": "int64[rows, tokens]"})
    three, eight, nine = (ids.bind({"ids": np.zeros((1, n), np.int64)}) for n in (3, 8, 9))
    assert three.bucket == eight.bucket != nine.bucket
    assert three.bucket.family == nine.bucket.family
    assert (three.sizes, nine.sizes) == ((3,), (9,))


def test_unnamed_free_axes_are_never_padded_together() -> None:
    """-1 takes any size, and each size is a family of its own."""
    free = signature({"x": "float32[rows, -1]"})
    two, three = (free.bind({"x": np.zeros((1, n), np.float32)}) for n in (2, 3))
    assert two.bucket.family != three.bucket.family


def test_without_a_declaration_dtype_and_shape_decide_the_bucket() -> None:
    """Anything is taken; only what is alike shares a batch."""
    anything = signature({"x": ""})
    a, b, c = (anything.bind({"x": array}) for array in (np.zeros((1, 2)), np.ones((5, 2)), np.zeros((1, 2), np.int64)))
    assert a.bucket == b.bucket != c.bucket


def test_optional_inputs_may_be_left_out() -> None:
    """With and without them are different families."""
    s = signature({"a": "float32[rows]", "b": "float32[rows]"}, optional=frozenset({"b"}))
    one = s.bind({"a": np.zeros(1, np.float32)})
    two = s.bind({"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)})
    assert one.bucket != two.bucket


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 2), np.float32), "output 'y': shape = .3, 2., must have 2 rows"),
        (np.float32(1), "output 'y': shape = \\[\\], must have 2 rows"),
        (np.zeros((2, 2)), "output 'y': datatype = FP64, must be FP32"),
        (np.zeros((2, 5), np.float32), "output 'y': shape = .2, 5., must be .-1, 2."),
        (np.zeros((2, 2, 1), np.float32), "output 'y': shape = .2, 2, 1., must be .-1, 2."),
        (np.zeros((2, 2), np.complex64), "output 'y': dtype complex64 has no Open Inference datatype"),
    ],
)
def test_what_a_model_returns_must_fit_its_declaration(array: np.ndarray, message: str) -> None:
    """Rows first, then dtype and shape."""
    with pytest.raises(ModelFailed, match=message):
        signature({"x": ""}, {"y": "float32[rows, 2]"}).check_output("y", np.asarray(array), 2)


def test_an_output_has_any_size_along_axes_without_a_fixed_one() -> None:
    """A named axis, of which its input's size counts, and -1."""
    s = signature({"x": "int64[rows, tokens]"}, {"y": "float32[rows, tokens, -1, 2]"})
    s.check_output("y", np.zeros((1, 5, 7, 2), np.float32), 1)
    with pytest.raises(ModelFailed, match=r"must be \[-1, -1, -1, 2\]"):
        s.check_output("y", np.zeros((1, 5, 7, 3), np.float32), 1)


def test_who_names_no_inputs_takes_any() -> None:
    """As a class with `**inputs` does; rows must agree all the same."""
    anything = Signature()
    assert anything.bind({"a": np.zeros(2), "b": np.zeros((2, 3))}).rows == 2
    with pytest.raises(InvalidInput, match="input 'b': rows = 3, must be 2"):
        anything.bind({"a": np.zeros(2), "b": np.zeros(3)})


def test_an_output_that_is_not_declared_fails() -> None:
    """Beside declared ones; where none is declared, any is fine."""
    with pytest.raises(ModelFailed, match="output 'z' is not declared, must be one of 'y'"):
        signature({"x": ""}, {"y": "float32[rows]"}).check_output("z", np.zeros(2, np.float32), 2)
    signature({"x": ""}).check_output("z", np.zeros(2, np.float32), 2)


def test_an_output_axis_must_belong_to_an_input() -> None:
    """Otherwise nobody could tell how far to cut it back."""
    with pytest.raises(ValueError, match="output 'y': axis 'words' belongs to no input"):
        signature({"x": "int64[rows, tokens]"}, {"y": "float32[rows, words]"})


@pytest.mark.parametrize(("wants", "alone"), [("", False), ("requests", False), ("request", True)])
def test_who_takes_one_request_at_a_time_has_it_run_alone(wants: str, alone: bool) -> None:
    """The policy learns its times as of any family, and waits for no company."""
    assert signature({"x": "float32[rows]"}, wants=wants).bind({"x": np.zeros(2, np.float32)}).bucket.alone is alone


def test_only_declared_outputs_may_be_asked_for() -> None:
    """Without a declaration of outputs there is nothing to hold the names against."""
    signature({"x": ""}).ask(("anything",))
    declared = signature({"x": ""}, {"y": "float32[rows]", "z": "float32[rows]"})
    declared.ask(("z", "y"))
    with pytest.raises(InvalidInput, match="output 'a' is unknown, must be one of 'y', 'z'"):
        declared.ask(("y", "a"))


def test_only_named_axes_may_be_padded() -> None:
    """Each once, in order of appearance; sizes and -1 are not among them."""
    both = signature({"a": "float32[rows, 3, width, -1]", "b": "int64[rows, tokens, width]"})
    assert both.named_axes == ("width", "tokens")


def test_a_request_that_is_not_split_is_not_copied() -> None:
    """A part is made of views, the whole is the request itself."""
    bound = signature({"x": "float32[rows]"}).bind({"x": np.arange(3, dtype=np.float32)})
    assert bound.part(0, 3) is bound
    part = bound.part(1, 3)
    assert (part.rows, part.arrays["x"].tolist()) == (2, [1.0, 2.0])
    assert np.shares_memory(part.arrays["x"], bound.arrays["x"])


def test_what_remains_until_a_deadline_is_never_negative() -> None:
    """0 when it has passed, None without one."""
    now_s = time.monotonic()
    early, late = (Request({}, {}, "", deadline_s=now_s + seconds).remaining_s for seconds in (-5, 60))
    assert early == 0
    assert late is not None
    assert 0 < late <= 60
    assert Request({}, {}, "").remaining_s is None


def test_what_is_remembered_of_requests_is_bounded() -> None:
    """Callers decide how many shapes there are, and each is checked as it was before."""
    of = signature({"x": "float32[rows, -1]"})
    for width in range(1200):
        assert of.bind({"x": np.zeros((2, width), np.float32)}).rows == 2
    assert len(of._fits) <= 512
    with pytest.raises(InvalidInput, match="datatype = FP64, must be FP32"):
        of.bind({"x": np.zeros((2, 1199))})
