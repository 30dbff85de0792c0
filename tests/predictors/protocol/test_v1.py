"""KServe v1: rows in, rows out."""

import contextlib
import json
from unittest import mock

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.predictors.errors import InvalidInput, ModelFailed
from torpor.predictors.protocol import v1
from torpor.predictors.protocol.datatypes import DTYPES
from torpor.predictors.protocol.inference import InferResponse
from torpor.predictors.protocol.v1 import decode, encode


def body(*instances: object) -> bytes:
    return json.dumps({"instances": instances}).encode()


@pytest.mark.parametrize(
    ("instances", "names", "datatypes", "expected"),
    [
        ([[1, 2], [3, 4]], ("x",), {"x": "FP32"}, {"x": ("<f4", [[1.0, 2.0], [3.0, 4.0]])}),
        ([1, 2], ("x",), {"x": "INT8"}, {"x": ("i1", [1, 2])}),
        ([1, 2], (), {}, {"instances": ("<i8", [1, 2])}),
        ([1.5], ("x",), {}, {"x": ("<f4", [1.5])}),
        ([2**64 - 1, 0], ("x",), {}, {"x": ("<u8", [2**64 - 1, 0])}),
        ([2**63, 0.5], ("x",), {}, {"x": ("<f4", [2.0**63, 0.5])}),
        ([[True]], ("x",), {}, {"x": ("?", [[True]])}),
        (["a", "é"], ("x",), {}, {"x": ("O", [b"a", "é".encode()])}),
        ([{"b64": "AP8="}], ("x",), {"x": "BYTES"}, {"x": ("O", [b"\x00\xff"])}),
        ([{"a": 1, "b": [2.5]}, {"b": [3], "a": 4}], ("a", "b"), {"a": "INT64", "b": "FP64"},
         {"a": ("<i8", [1, 4]), "b": ("<f8", [[2.5], [3.0]])}),
        ([{"x": 1}], ("x",), {"x": "INT64"}, {"x": ("<i8", [1])}),
    ],
)  # fmt: skip
def test_instances_are_rows(instances: list, names: tuple[str, ...], datatypes: dict[str, str], expected: dict) -> None:
    """Rows of the only input, or objects by name; the declared datatype wins over what the elements look like."""
    (request,) = decode(body(*instances), names, datatypes)
    inputs = request.inputs
    assert {name: (array.dtype, array.tolist()) for name, array in inputs.items()} == {
        name: (np.dtype(dtype), values) for name, (dtype, values) in expected.items()
    }


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=5), st.sampled_from(["INT64", "FP32"]))
def test_rows_of_different_lengths_are_requests_of_their_own(rows: list[list[int]], datatype: str) -> None:
    """One request for all if they are one tensor, else one for each, in their order."""
    requests = decode(body(*rows), ("x",), {"x": datatype})
    assert len(requests) == (1 if len({len(row) for row in rows}) == 1 else len(rows))
    assert [row for request in requests for row in request.inputs["x"].tolist()] == rows


@pytest.mark.parametrize(
    ("text", "names", "datatypes", "message"),
    [
        (b"{}", ("x",), {}, "instances must be a non-empty list of rows"),
        (b'{"instances": []}', ("x",), {}, "instances must be a non-empty list of rows"),
        (b'{"instances": {"x": 1}}', ("x",), {}, "instances must be a non-empty list of rows"),
        (b'{"instances": [NaN]}', ("x",), {}, "the body is not JSON"),
        (b"\xff", ("x",), {}, "the body is not JSON"),
        (b"[1]", ("x",), {}, "the body is a JSON list, must be an object"),
        (body(1, 2), ("a", "b"), {}, "instances[0] must be an object with the inputs a, b"),
        (body({"a": 1}, {"b": 1}), ("a",), {}, "instances[1] must be an object with the inputs a"),
        (body({"a": 1}, 2), ("a",), {}, "instances[1] must be an object with the inputs a"),
        (body([1], [2, "a"]), ("x",), {"x": "FP32"}, "instances[1]: input 'x': elements must be numbers for FP32"),
        (body([1], [[2], [3, 4]]), ("x",), {"x": "FP32"}, "instances[1]: input 'x': data must be numbers in lists of"),
        (body(*[[1]] * 1024, [1, 2]), ("x",), {"x": "FP32"}, "instances = 1025 rows that are no tensor together"),
        (body([1], [2, 3]), ("x",), {}, "lists of equal lengths"),
        (body(["a", ["b"]]), (), {}, "strings must stand in lists of equal lengths"),
        (body(1.5), ("x",), {"x": "INT64"}, "elements must be integers for INT64"),
        (b'{"instancez":[1]}', ("x",), {"x": "INT64"}, "instances must be a non-empty list"),
        (b'{"instances":[1]]', ("x",), {"x": "INT64"}, "the body is not JSON"),
        (body(None), ("x",), {}, "elements must be numbers, booleans or strings"),
        (body(1, "a"), ("x",), {}, "elements must be numbers, booleans or strings"),
        (body("a", 1), ("x",), {}, "elements must be strings"),
    ],
)
def test_a_body_that_is_no_request_is_refused(
    text: bytes, names: tuple[str, ...], datatypes: dict[str, str], message: str
) -> None:
    """The error says which instance and what it must be."""
    with pytest.raises(InvalidInput) as error:
        decode(text, names, datatypes)
    assert message in str(error.value)


def test_a_thousand_rows_of_different_lengths_are_taken() -> None:
    """1 024, the most that may come: a request each."""
    assert len(decode(body(*[[1]] * 1023, [1, 2]), ("x",), {"x": "FP32"})) == 1024


def test_the_quick_way_is_taken() -> None:
    """Rows of numbers for the only input are read without an object for each number."""
    with mock.patch.object(v1, "parse_object", side_effect=AssertionError):
        (request,) = decode(b'{"instances":[[1.5, 2]]}', ("x",), {"x": "FP32"})
    assert request.inputs["x"].tolist() == [[1.5, 2.0]]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["b64", "x", "y"]), inner, max_size=2),
)


@given(
    JSON | st.fixed_dictionaries({"instances": st.lists(JSON)}),
    st.sampled_from([(), ("x",), ("x", "y")]),
    st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(sorted(DTYPES))),
)
def test_any_json_is_a_request_or_invalid_input(
    value: object, names: tuple[str, ...], datatypes: dict[str, str]
) -> None:
    """Values of any type in any place raise nothing but InvalidInput."""
    with contextlib.suppress(InvalidInput):
        decoded = decode(json.dumps(value).encode(), names, datatypes)
        assert all(array.dtype in DTYPES.values() for request in decoded for array in request.inputs.values())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_invalid_input(data: bytes) -> None:
    """No body raises anything but InvalidInput."""
    with contextlib.suppress(InvalidInput):
        decode(data, (), {})


def test_deep_nesting_is_invalid_input() -> None:
    """As deep as the parser goes, and deeper."""
    for depth in (100, 1000, 100_000):
        with pytest.raises(InvalidInput):
            decode(b'{"instances": ' + b"[" * depth + b"]" * depth + b"}", (), {})


@pytest.mark.parametrize(
    ("outputs", "predictions"),
    [
        ({"y": np.array([[1.5], [2.5]], "<f4")}, [[1.5], [2.5]]),
        ({"y": np.array([1, 2], "<f2")}, [1.0, 2.0]),
        ({"y": np.array([b"a", "é"], object)}, ["a", "é"]),
        ({"y": np.array([1, 2]), "z": np.array([[True], [False]])}, [{"y": 1, "z": [True]}, {"y": 2, "z": [False]}]),
        ({"y": np.zeros((2, 0)), "z": np.array([b"a", b"b"], object)}, [{"y": [], "z": "a"}, {"y": [], "z": "b"}]),
        ({"x": np.array([1], np.ulonglong), "y": np.array([-1], np.longlong)}, [{"x": 1, "y": -1}]),
    ],
)
def test_predictions_are_rows(outputs: dict[str, np.ndarray], predictions: list[object]) -> None:
    """Rows of the only output, or objects by name; model, version and id have no place in v1."""
    response = InferResponse("m", "1", outputs, "abc")
    assert orjson.loads(encode([response, response])) == {"predictions": predictions * 2}
    assert orjson.loads(encode([response])) == {"predictions": predictions}


def test_nan_fails_the_model() -> None:
    """JSON has no NaN: an error that says so, not a null."""
    with pytest.raises(ModelFailed, match="holds NaN or infinity"):
        encode([InferResponse("m", "1", {"y": np.array([np.nan])})])


def test_json_is_whatever_a_row_is() -> None:
    """To the model the text of each row, an object or one of its values; in the answer what the texts say, to the digit."""
    rows = [{"data": "aGk=", "target": 0}, [1, [2.5]], None]
    (request,) = decode(body(*rows), ("row",), {"row": "JSON"})
    assert [json.loads(text) for text in request.inputs["row"]] == rows
    assert request.inputs["row"].shape == (3,)
    (request,) = decode(body({"a": {"b": 1}, "n": 2}), ("a", "n"), {"a": "JSON", "n": "INT64"})
    assert (request.inputs["a"].tolist(), request.inputs["n"].tolist()) == ([b'{"b":1}'], [2])
    texts = np.array(['{"a": 0.10000000000000001}', b"[18446744073709551616]"], object)
    answer = encode([InferResponse("m", "1", {"y": texts}, json_outputs=frozenset({"y"}))])
    assert answer == b'{"predictions":[{"a": 0.10000000000000001},[18446744073709551616]]}'


@pytest.mark.parametrize("text", [b"{", b"NaN", "nan"])
def test_json_of_a_model_that_is_none_fails_it(text: object) -> None:
    """The caller gets an error, not half an answer."""
    response = InferResponse("m", "1", {"y": np.array([text], object)}, json_outputs=frozenset({"y"}))
    with pytest.raises(ModelFailed, match="output 'y' is declared json and is none"):
        encode([response])


def test_json_that_is_nested_too_deep_is_the_callers_fault() -> None:
    """It can be read, and not be written."""
    with pytest.raises(InvalidInput, match="input 'row': Recursion limit"):
        decode(b'{"instances":[' + b"[" * 300 + b"]" * 300 + b"]}", ("row",), {"row": "JSON"})
