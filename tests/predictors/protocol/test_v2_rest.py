"""Open Inference over REST: what a request's bytes mean, and what is refused."""

import contextlib
import json
import math
from random import Random
from unittest import mock

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torpor.predictors.errors import InvalidInput, ModelFailed
from torpor.predictors.protocol import v2_rest
from torpor.predictors.protocol.datatypes import (
    BFLOAT16,
    DTYPES,
    bfloat16_from_float32,
    datatype_of,
    encode_bytes,
    float32_from_bfloat16,
)
from torpor.predictors.protocol.inference import InferResponse
from torpor.predictors.protocol.json_tensor import array_from_json, json_from_array
from torpor.predictors.protocol.v2_rest import decode, encode

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn, texts: bool = False) -> np.ndarray:
    """An array of any datatype; texts: only what JSON can hold."""
    datatype = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        element = st.text().map(str.encode) if texts else st.binary()
        values = draw(st.lists(element, min_size=math.prod(shape), max_size=math.prod(shape)))
        array = np.empty(len(values), object)
        array[:] = values
        return array.reshape(shape)
    dtype = DTYPES[datatype]
    if texts and datatype == "BF16":
        numbers = hnp.arrays(np.float32, shape, elements=st.floats(-(2.0**127), 2.0**127, width=32))
        return bfloat16_from_float32(draw(numbers))
    finite = {"allow_nan": False, "allow_infinity": False} if texts and dtype.kind == "f" else {}
    return draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **finite)))


tensors = st.dictionaries(st.text(min_size=1, max_size=5), arrays(), min_size=1, max_size=3)
texts = st.dictionaries(st.text(min_size=1, max_size=5), arrays(texts=True), min_size=1, max_size=3)


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    def content(array: np.ndarray) -> object:
        return array.tolist() if array.dtype == object else array.tobytes()

    return [(n, a.dtype, a.shape, content(a)) for n, a in left.items()] == [
        (n, a.dtype, a.shape, content(a)) for n, a in right.items()
    ]


def binary_body(inputs: dict[str, np.ndarray], **fields: object) -> tuple[bytes, int]:
    entries, blobs = [], []
    for name, array in inputs.items():
        blobs.append(encode_bytes(array) if array.dtype == object else array.tobytes())
        parameters = {"binary_data_size": len(blobs[-1])}
        entries.append({"name": name, "datatype": datatype_of(array), "shape": array.shape, "parameters": parameters})
    head = orjson.dumps({"inputs": entries, **fields})
    return b"".join([head, *blobs]), len(head)


def read_response(body: bytes, json_length: int | None) -> dict[str, np.ndarray]:
    """A response's outputs, read by way of the decoder: a response has a request's form."""
    length = len(body) if json_length is None else json_length
    head = json.loads(body[:length])
    head["inputs"] = head.pop("outputs")
    text = orjson.dumps(head)
    return decode(text + body[length:], None if json_length is None else len(text)).inputs


def json_body(**changes: object) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]} | changes
    return json.dumps({"inputs": [{k: v for k, v in tensor.items() if v is not ...}]}).encode()


@given(tensors)
def test_binary_tensors_come_out_as_they_went_in(inputs: dict[str, np.ndarray]) -> None:
    """Every datatype and shape, BYTES and empty axes included, survives the binary form both ways."""
    assert same(decode(*binary_body(inputs)).inputs, inputs)
    assert same(read_response(*encode(InferResponse("m", "1", inputs), None)), inputs)


@given(texts)
def test_json_tensors_come_out_as_they_went_in(inputs: dict[str, np.ndarray]) -> None:
    """Every datatype and shape survives JSON, flat as in a response."""
    assert same(read_response(*encode(InferResponse("m", "1", inputs), frozenset())), inputs)


PARAMETERS = st.dictionaries(
    st.text(max_size=8).map(lambda name: "x-" + name),
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    max_size=2,
)


@given(texts, st.data())
def test_any_mix_of_json_and_binary_is_one_request(inputs: dict[str, np.ndarray], data: st.DataObject) -> None:
    """Each input as JSON, flat or nested, or as binary data; names, order, parameters, outputs and id as they were said."""
    entries, blobs, said = [], [], {}
    for name, array in inputs.items():
        entry: dict[str, object] = {"name": name, "datatype": datatype_of(array), "shape": array.shape}
        parameters = data.draw(PARAMETERS)
        if parameters:
            said[name] = parameters
        if data.draw(st.booleans()):
            blobs.append(encode_bytes(array) if array.dtype == object else array.tobytes())
            parameters = {**parameters, "binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = json_from_array(name, array if data.draw(st.booleans()) else array.ravel())
        if parameters or data.draw(st.booleans()):
            entry["parameters"] = parameters
        entries.append(entry)
    outputs = data.draw(st.none() | st.dictionaries(st.text(min_size=1), st.none() | st.booleans()))
    default, request_id, parameters = data.draw(st.booleans()), data.draw(st.text()), data.draw(PARAMETERS)
    request = {"inputs": entries, "id": request_id, "parameters": parameters | {"binary_data_output": default}}
    if outputs is not None:
        request["outputs"] = [
            {"name": name} if binary is None else {"name": name, "parameters": {"binary_data": binary}}
            for name, binary in outputs.items()
        ]
    text = orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY)
    for _ in range(2):  # the second time its layout may be known
        decoded = decode(b"".join([text, *blobs]), len(text) if blobs or data.draw(st.booleans()) else None)
        assert same(decoded.inputs, inputs)
        terms = decoded.terms
        assert (terms.id, terms.outputs, dict(terms.tensor_parameters)) == (request_id, tuple(outputs or ()), said)
        assert dict(terms.parameters) == parameters | {"binary_data_output": default}
        if outputs:
            assert terms.binary_outputs == {n for n, b in outputs.items() if (default if b is None else b)}
        else:
            assert terms.binary_outputs == (None if default else frozenset())


@given(texts, st.data())
def test_tritonclient_reads_any_answer(outputs: dict[str, np.ndarray], data: st.DataObject) -> None:
    """Each output as JSON or binary data, as asked; its own reader finds the same values under the same names."""
    read = pytest.importorskip("tritonclient.http").InferResult.from_response_body
    chosen = data.draw(st.none() | st.sets(st.sampled_from(sorted(outputs))).map(frozenset))
    body, length = encode(InferResponse("m", "1", outputs, data.draw(st.text())), chosen)
    result = read(body, header_length=length)
    for name, array in outputs.items():
        got = result.as_numpy(name)
        assert got.shape == array.shape
        if array.dtype == object:
            assert [e if isinstance(e, bytes) else e.encode() for e in got.ravel()] == array.ravel().tolist()
        elif array.dtype == BFLOAT16:
            np.testing.assert_array_equal(got.view(np.uint16), array.view(np.uint16))
        else:
            assert got.dtype == array.dtype
            np.testing.assert_array_equal(got, array)


@given(arrays(texts=True))
def test_nested_json_data_equal_flat_data(array: np.ndarray) -> None:
    """Data may be nested as the shape says."""
    is_text = array.dtype == object and array.size
    nested = np.vectorize(bytes.decode, otypes=[object])(array) if is_text else array
    if array.dtype == BFLOAT16:
        nested = float32_from_bfloat16(array)
    data = {"name": "x", "datatype": datatype_of(array), "shape": array.shape, "data": nested.tolist()}
    assert same(decode(orjson.dumps({"inputs": [data]}), None).inputs, {"x": array})


@given(st.binary(max_size=300), st.none() | st.integers(0, 400))
def test_any_bytes_are_a_request_or_invalid_input(body: bytes, json_length: int | None) -> None:
    """No body raises anything but InvalidInput."""
    with contextlib.suppress(InvalidInput):
        decode(body, json_length)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4)
    | st.sampled_from([*DTYPES, "x", "AAECAw=="]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["b64", "x"]), inner, max_size=2),
    max_leaves=8,
)  # fmt: skip
ENTRY = st.fixed_dictionaries(
    {"name": st.just("x") | JSON, "datatype": st.sampled_from(sorted(DTYPES)) | JSON},
    optional={"shape": st.lists(st.integers(0, 3) | st.integers(), max_size=4) | JSON, "data": JSON,
              "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(0, 8) | JSON}) | JSON},
)  # fmt: skip
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(ENTRY, max_size=3) | JSON},
    optional={"outputs": st.lists(st.fixed_dictionaries({"name": JSON}, optional={"parameters": JSON})) | JSON,
              "id": JSON, "parameters": st.fixed_dictionaries({"binary_data_output": JSON}) | JSON},
)  # fmt: skip


@given(REQUEST, st.binary(max_size=16), st.booleans())
def test_any_json_is_a_request_or_invalid_input(request: object, data: bytes, is_binary: bool) -> None:
    """Values of the wrong type, size or kind anywhere in the object raise InvalidInput, or nothing."""
    text = json.dumps(request).encode()
    with contextlib.suppress(InvalidInput):
        decoded = decode(text + data if is_binary else text, len(text) if is_binary else None)
        assert all(array.dtype in DTYPES.values() for array in decoded.inputs.values())


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("FP32", [1, 2], [1.0, 2.0]),
        ("FP64", [2**64 - 1, -1], [2.0**64, -1.0]),
        ("UINT64", [2**64 - 1, 1], [2**64 - 1, 1]),
        ("UINT64", [[2**64 - 1], [0]], [2**64 - 1, 0]),
        ("INT8", [-128, 127], [-128, 127]),
        ("BOOL", [True, False], [True, False]),
        ("BYTES", ["é", {"b64": "AP8="}], ["é".encode(), b"\x00\xff"]),
    ],
)
def test_json_data_are_read_exactly(datatype: str, data: list[object], expected: list[object]) -> None:
    """Integers are fine for floats, 64-bit ones keep all their digits, and bytes have a form in JSON."""
    shape = [2, 1] if isinstance(data[0], list) else [2]
    array = decode(json_body(datatype=datatype, data=data, shape=shape), None).inputs["x"]
    assert array.ravel().tolist() == expected
    assert array.dtype == DTYPES[datatype]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datatype": "INT64", "data": [1, 2.0]}, "elements must be integers for INT64"),
        ({"datatype": "INT64", "data": [2**63, 1]}, f"element {2**63}, must be in [{-(2**63)}, {2**63 - 1}] for INT64"),
        ({"datatype": "UINT64", "data": [2**63, -1]}, f"element -1, must be in [0, {2**64 - 1}] for UINT64"),
        ({"datatype": "INT8", "data": [1, 128]}, "element 128, must be in [-128, 127] for INT8"),
        ({"datatype": "INT8", "data": [-128, 128]}, "element 128, must be in [-128, 127] for INT8"),
        ({"datatype": "UINT8", "data": [-1, 1]}, "element -1, must be in [0, 255] for UINT8"),
        ({"datatype": "FP16", "data": [1, 1e6]}, "elements must be in [-65504.0, 65504.0] for FP16"),
        ({"datatype": "BF16", "data": [1, 3.4e38]}, "elements must be in [-3.3895313892515355e+38, 3.38"),
        ({"datatype": "BF16", "data": [1, 1e39]}, "3.3895313892515355e+38] for BF16"),
        ({"datatype": "BF16", "data": [1, "2"]}, "elements must be numbers for BF16"),
        ({"datatype": "BOOL", "data": [0, 1]}, "elements must be booleans for BOOL"),
        ({"data": [True, False]}, "elements must be numbers for FP32"),
        ({"data": ["1", "2"]}, "elements must be numbers for FP32"),
        ({"data": [None, 1]}, "elements must be numbers for FP32"),
        ({"data": [[1], [2, 3]]}, "data must be numbers in lists of equal lengths"),
        ({"data": [1, 2, 3]}, "shape [2] needs 2 elements, data has 3"),
        ({"data": [[1, 2]]}, "shape = [2], data is nested as [1, 2]"),
        ({"data": 1}, "data must be a list"),
        ({"data": ...}, "data or parameters.binary_data_size must be given"),
        ({"parameters": {"binary_data_size": 8}}, "exclude one another"),
        ({"data": ..., "parameters": {"binary_data_size": 9}}, "shape [2] of FP32 needs 8 bytes, got 9"),
        ({"data": ..., "parameters": {"binary_data_size": True}}, "binary_data_size = True, must be an integer"),
        ({"data": ..., "parameters": {"binary_data_size": -8}}, "binary_data_size = -8, must be an integer"),
        ({"datatype": "BYTES", "data": ["a", 1]}, "elements must be strings, or objects with b64 alone"),
        ({"datatype": "BYTES", "data": ["a", {"b64": "?"}]}, "b64 must hold valid base64"),
        ({"datatype": "BYTES", "data": [["a"], "b"]}, "strings must stand in lists of equal lengths"),
        ({"datatype": "BYTES", "data": ["a", ["b"]]}, "strings must stand in lists of equal lengths"),
        ({"datatype": "BYTES", "data": [["a"], ["b", "c"]]}, "strings must stand in lists of equal lengths"),
        ({"datatype": "FLOAT"}, "datatype = 'FLOAT', must be one of BOOL, UINT8"),
        ({"datatype": 1}, "datatype = 1, must be one of"),
        ({"shape": [-1]}, "shape = [-1], must be a list of integers of at least 0"),
        ({"shape": [2.0]}, "shape = [2.0], must be a list of integers"),
        ({"shape": 2}, "shape = 2, must be a list of integers"),
        ({"shape": ...}, "shape = None, must be a list of integers"),
        ({"shape": [1] * 17}, "shape has 17 axes, must be in [1, 16]"),
        ({"shape": [0, 2**32 + 1], "data": []}, "must have a product of at most 4294967296 beside the 0"),
        ({"shape": [2**33]}, "shape [8589934592] needs 8589934592 elements, data has 2"),
        ({"name": ""}, "inputs[0].name must be a non-empty string"),
        ({"name": 1}, "inputs[0].name must be a non-empty string"),
    ],
)
def test_a_tensor_that_contradicts_itself_is_refused(changes: dict[str, object], message: str) -> None:
    """The error says which input, which field, and what it must be."""
    with pytest.raises(InvalidInput) as error:
        decode(json_body(**changes), None)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b'{"inputs": [NaN]}', "the body is not JSON"),
        (b'{"id": "\\ud800"}', "the body is not JSON"),
        (b'{"inputs": [1e999]}', "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"[]", "the body is a JSON list, must be an object"),
        (b"null", "the body is a JSON null, must be an object"),
        (b"{}", "inputs must be a non-empty list"),
        (b'{"inputs": []}', "inputs must be a non-empty list"),
        (b'{"inputs": {}}', "inputs must be a non-empty list"),
        (b'{"inputs": 1}', "inputs must be a non-empty list"),
        (b'{"inputs": [1]}', "inputs[0] is a JSON number, must be an object"),
        (b'{"inputs": [' + b",".join([json_body()[12:-2]] * 2) + b"]}", "input 'x' is given twice"),
        (json_body()[:-1] + b', "id": 1}', "id is a JSON number, must be a string"),
        (json_body()[:-1] + b', "parameters": {"a": []}}', "parameters must be an object of strings"),
        (json_body()[:-1] + b', "parameters": {"binary_data_output": 1}}', "binary_data_output = 1, must be true"),
        (json_body()[:-1] + b', "outputs": 1}', "outputs is a JSON number, must be a list"),
        (json_body()[:-1] + b', "outputs": [1]}', "outputs[0] must be an object with a name"),
        (json_body()[:-1] + b', "outputs": [{}]}', "outputs[0] must be an object with a name"),
        (json_body()[:-1] + b', "outputs": [{"name": 1}]}', "outputs[0] must be an object with a name"),
        (json_body()[:-1] + b', "outputs": [{"name": ""}]}', "outputs[0] must be an object with a name"),
        (json_body()[:-1] + b', "outputs": [{"name": "y"}, {"name": "y"}]}', "output 'y' is asked for twice"),
        (json_body()[:-1] + b', "outputs": [{"name": "y", "parameters": {"classification": 3}}]}', "is not supported"),
        (json_body(data=..., parameters={"shared_memory_region": "a"}), "input 'x': shared memory is not supported"),
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes, message: str) -> None:
    """The error says what is wrong with the object."""
    with pytest.raises(InvalidInput) as error:
        decode(body, None)
    assert message in str(error.value)


@pytest.mark.parametrize("field", ["inputs", "name", "datatype", "shape", "data", "parameters", "id", "outputs"])
@pytest.mark.parametrize("brackets", [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_anywhere_is_invalid_input(field: str, brackets: tuple[str, str]) -> None:
    """A thousand brackets in any field, as deep as the parser goes, cost no RecursionError."""
    deep = brackets[0] * 1000 + "1" + brackets[1] * 1000
    fields = {"name": '"x"', "datatype": '"FP32"', "shape": "[2]", "data": "[1, 2]"}
    outer = {"inputs": "[{" + ",".join(f'"{k}": {deep if k == field else v}' for k, v in fields.items()) + "}]"}
    if field not in fields:
        outer[field] = deep
    with pytest.raises(InvalidInput):
        decode(("{" + ",".join(f'"{k}": {v}' for k, v in outer.items()) + "}").encode(), None)


@pytest.mark.parametrize("change", [-1, 1, 100])
def test_binary_data_must_fill_the_body_exactly(change: int) -> None:
    """A byte too few or too many after the JSON object is refused, also when the object is known already."""
    body, length = binary_body({"x": np.zeros(4, "<f4")})
    decode(body, length)
    with pytest.raises(InvalidInput, match=f"add up to 16 bytes, {16 + change} follow"):
        decode(body[:change] if change < 0 else body + b"\0" * change, length)


def test_the_json_length_cannot_go_past_the_body() -> None:
    """A header length beyond the body is refused with the range that it must be in."""
    with pytest.raises(InvalidInput, match=r"= 5, must be in \[0, 2\]"):
        decode(b"{}", 5)


def test_binary_booleans_are_zero_or_one() -> None:
    """Other bytes would be true and unequal to true."""
    body, length = binary_body({"x": np.array([True])})
    with pytest.raises(InvalidInput, match="bytes of 0 or 1"):
        decode(body[:-1] + b"\2", length)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x05\0\0\0abc", "element 0 says 5 bytes, 3 are left"),
        (b"\xff\xff\xff\xffabc", "element 0 says 4294967295 bytes"),
        (b"\x01\0\0\0abc", "2 bytes are left after 1 elements"),
        (b"\x01\0", "needs 4 bytes or more, got 2"),
    ],
)
def test_bytes_elements_with_lying_lengths_are_refused(data: bytes, message: str) -> None:
    """The lengths in BYTES data must add up to the data."""
    head = json.dumps({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1],
                                   "parameters": {"binary_data_size": len(data)}}]}).encode()  # fmt: skip
    with pytest.raises(InvalidInput) as error:
        decode(head + data, len(head))
    assert message in str(error.value)


def test_numeric_binary_tensors_are_views_of_the_body() -> None:
    """A request costs no copy of its data, and cannot be written to."""
    body, length = binary_body({"x": np.arange(8, dtype="<f4")})
    array = decode(body, length).inputs["x"]
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_equal_objects_with_other_data_give_other_tensors() -> None:
    """The layout that is kept by the object's bytes holds no data."""
    first, length = binary_body({"x": np.array([1.0], "<f4")})
    second, _ = binary_body({"x": np.array([2.0], "<f4")})
    assert [decode(body, length).inputs["x"].tolist() for body in (first, second)] == [[1.0], [2.0]]


def test_many_different_objects_do_not_break_the_kept_layouts() -> None:
    """More objects than are kept, each with its own id, are all read right."""
    for number in range(1500):
        body, length = binary_body({"x": np.array([number], "<i4")}, id=str(number))
        decoded = decode(body, length)
        assert (decoded.terms.id, decoded.inputs["x"].tolist()) == (str(number), [number])


@pytest.mark.parametrize(
    ("fields", "names", "binary"),
    [
        ({}, (), frozenset()),
        ({"parameters": {"binary_data_output": True}}, (), None),
        ({"outputs": []}, (), frozenset()),
        ({"outputs": [{"name": "a"}, {"name": "b", "parameters": {"binary_data": True}}]}, ("a", "b"), {"b"}),
        (
            {"outputs": [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}],
             "parameters": {"binary_data_output": True}},
            ("a", "b"), {"a"},
        ),
    ],
)  # fmt: skip
def test_outputs_are_asked_for_each_in_its_form(fields: dict[str, object], names: tuple, binary: object) -> None:
    """An output's own parameter wins over the request's."""
    decoded = decode(*binary_body({"x": np.zeros(1)}, **fields))
    assert (decoded.terms.outputs, decoded.terms.binary_outputs) == (names, binary)


def test_a_response_says_whose_it_is() -> None:
    """Model, version and the caller's id come back; no id, no field."""
    outputs = {"y": np.array([[1.5]], "<f4")}
    body, length = encode(InferResponse("m", "7", outputs, "abc"), frozenset())
    tensor = {"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [1.5]}
    assert length is None
    assert json.loads(body) == {"model_name": "m", "model_version": "7", "id": "abc", "outputs": [tensor]}
    assert b'"id"' not in encode(InferResponse("m", "7", outputs), frozenset())[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_what_json_has_no_number_for_fails_as_json_and_goes_as_binary(value: float, dtype: str) -> None:
    """NaN and infinity are an error that says what to do, and are fine as binary data."""
    response = InferResponse("m", "1", {"y": np.array([value], dtype)})
    with pytest.raises(ModelFailed, match="NaN or infinity, which JSON cannot: ask for it as binary data"):
        encode(response, frozenset())
    assert same(read_response(*encode(response, None)), response.outputs)


@pytest.mark.parametrize(
    ("element", "as_json", "as_binary"),
    [
        (b"\xff", "is no UTF-8, which JSON needs", None),
        ("\ud800", "not valid Unicode", "not valid Unicode"),
        (5, "holds a int, must hold bytes or str", "holds a int, must hold bytes or str"),
        (None, "holds a NoneType, must hold bytes or str", "holds a NoneType, must hold bytes or str"),
    ],
)
def test_elements_that_are_no_bytes_fail_the_model(element: object, as_json: str, as_binary: str | None) -> None:
    """A BYTES output with anything but bytes or valid str in it is the model's fault, never guessed at."""
    array = np.empty(1, object)
    array[0] = element
    for binary, message in ((frozenset(), as_json), (None, as_binary)):
        if message is None:
            encode(InferResponse("m", "1", {"y": array}), binary)
        else:
            with pytest.raises(ModelFailed, match=message):
                encode(InferResponse("m", "1", {"y": array}), binary)


@given(
    st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-9, 9), min_size=2, max_size=2
        ),
        min_size=1,
    ),
    st.sampled_from(["FP32", "FP64"]),
)
def test_nested_numbers_are_read_as_numpy_reads_them(rows: list[list[float]], datatype: str) -> None:
    """Floats take a shorter way than other lists of numbers: both end at the same tensor."""
    read = array_from_json("x", rows, datatype, (len(rows), 2))
    assert same({"x": read}, {"x": np.array(rows, np.float64).astype(DTYPES[datatype])})


@pytest.mark.parametrize(
    "data",
    [
        [1.5, None],
        [1.5, "2"],
        [1.5, [2.5]],
        [[1.5], 2.5],
        [[1.5], [2.5, 3.5]],
        [1.5, {}],
        [True, False],
        [1e39, 2.5],
        [],
    ],
)
def test_a_list_that_begins_with_floats_is_read_to_its_end(data: list[object]) -> None:
    """What is no float32 after the first element, or makes the lists uneven, is refused all the same."""
    with pytest.raises(InvalidInput, match="input 'x': "):
        array_from_json("x", data, "FP32", (2,))


@pytest.mark.parametrize(("datatype", "element"), [("BYTES", "a"), ("FP32", 1.5)])
@pytest.mark.parametrize("depth", [16, 17, 70])
def test_lists_are_sixteen_deep_at_most(datatype: str, element: object, depth: int) -> None:
    """numpy has 64 axes at most, and floats and strings are not put into arrays by numpy."""
    data: object = element
    for _ in range(depth):
        data = [data]
    if depth == 16:
        assert array_from_json("x", data, datatype, None).shape == (1,) * 16
    elif datatype == "BYTES" or depth == 70:
        with pytest.raises(InvalidInput, match="input 'x': "):
            array_from_json("x", data, datatype, None)


def test_responses_alike_in_all_but_their_data_keep_their_own() -> None:
    """The JSON object is kept by what it says: another shape, dtype, name or version is another object."""
    arrays = [np.zeros((1, 2), "<f4"), np.ones((1, 2), "<f4"), np.ones((2, 1), "<f4"), np.ones((1, 1), "<f8")]
    arrays += [np.array([text], object) for text in (b"a", b"", b"long")]
    for version, name, array in [*(("1", "y", a) for a in arrays), ("2", "y", arrays[0]), ("2", "z", arrays[0])] * 2:
        body, length = encode(InferResponse("m", version, {name: array}), None)
        assert same(read_response(body, length), {name: array})
        assert orjson.loads(body[:length])["model_version"] == version


def test_terms_of_a_request_with_data_in_its_json_are_not_kept() -> None:
    """Whoever keeps something by the terms must not hold on to a request's tensors: JSON data have none to keep by."""
    x = np.ones((1, 2), "<f4")
    first, second = (decode(*binary_body({"x": x})).terms for _ in range(2))
    assert first is second
    assert first.are_kept
    strings = {"name": "x", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}
    assert not decode(orjson.dumps({"inputs": [strings]}), None).terms.are_kept


NUMBERS = st.recursive(
    st.integers(-(2**70), 2**70) | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | st.just(1e39),
    lambda inner: st.lists(inner, max_size=4), max_leaves=12,
)  # fmt: skip
DATA = st.lists(NUMBERS | st.sampled_from([True, None, "data", ["#"], {}]), max_size=4) | NUMBERS


@given(
    st.lists(st.tuples(st.sampled_from(["data", "name", "shape", "datatype", "parameters"]),
                       DATA | st.sampled_from(["x", '"data":[1]', [2], [1, 2], "FP32", "INT64", "INT32", "BOOL", {}]))),
    DATA, st.sampled_from(["FP32", "FP64", "INT32", "INT64", "FP16"]),
    st.sampled_from([[0], [1], [2], [1, 2], [2, 2], [4]]), st.integers(0, 3), st.randoms(use_true_random=False),
)  # fmt: skip
def test_one_list_of_numbers_is_read_as_any_data(
    others: list, data: object, datatype: str, shape: list[int], rank: int, random: Random
) -> None:
    """The quick way gives the array or leaves it to the other way: with keys in any order, twice, or with other values."""
    if rank:
        data = np.arange(math.prod(shape)).reshape(shape[:rank] if rank == len(shape) else -1).tolist()
    pairs = [
        ("name", "x"),
        ("datatype", datatype),
        ("shape", shape),
        ("data", data),
        *others[: random.choice([0, 0, 2])],
    ]
    random.shuffle(pairs)
    space = random.choice(["", " "])
    entry = ",".join(f"{json.dumps(k)}:{space}{json.dumps(v)}" for k, v in pairs)
    end = random.choice(["", ',"id":"7"', ',"outputs":[{"name":"data"}]'])
    body = f'{{"inputs":[{{{entry}}}]{end}}}'.encode()

    def outcome() -> object:
        try:
            request = decode(body, None)
        except InvalidInput as error:
            return str(error)
        terms = request.terms
        inputs = [(name, a.dtype, a.shape, a.tolist()) for name, a in request.inputs.items()]
        return inputs, terms.id, terms.outputs, terms.binary_outputs, dict(terms.parameters)

    quick = outcome(), outcome()  # the second finds the layout of the first
    with mock.patch.object(v2_rest, "_decode_numbers", return_value=None):
        assert quick == (outcome(),) * 2


@pytest.mark.parametrize(
    "body",
    [
        '{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":%s}]}',
        '{"inputs":[{"data": %s, "name":"x","datatype":"FP32","shape":[2]}]}',
        '{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":%s}],"outputs":[{"name":"[]}"}]}',
        '{"id":"x","inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":%s}],"parameters":{}}',
    ],
)
def test_what_stands_around_a_list_of_numbers_is_read_once(body: str) -> None:
    """Bodies that differ in their numbers alone share their terms, wherever the list stands."""
    first, second = (decode((body % data).encode(), None) for data in ("[1.5, 2]", "[-3, 4e1]"))
    assert second.terms is first.terms
    assert [request.inputs["x"].tolist() for request in (first, second)] == [[1.5, 2.0], [-3.0, 40.0]]


@pytest.mark.parametrize(("around_bytes", "is_kept"), [(2048, True), (2049, False)])
def test_only_little_around_a_list_of_numbers_is_kept(around_bytes: int, is_kept: bool) -> None:
    """Up to 2 KiB beside the list: callers could otherwise fill the memory with it."""
    before, after = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":', b'}],"id":"%b"}'
    after %= b"a" * (around_bytes - len(before + after) + 2)
    first, second = (decode(before + data + after, None) for data in (b"[1.5]", b"[2.5]"))
    assert (second.terms is first.terms) is is_kept


@pytest.mark.parametrize(("text_bytes", "is_kept"), [(2048, True), (2049, False)])
def test_only_short_objects_are_kept(text_bytes: int, is_kept: bool) -> None:
    """A longer one is read anew each time, and whoever keeps something by its terms is told not to."""
    _, length = binary_body({"x": np.ones(1)}, id="")
    body, length = binary_body({"x": np.ones(1)}, id="a" * (text_bytes - length))
    assert length == text_bytes
    first, second = decode(body, length), decode(body, length)
    assert (second.terms is first.terms, first.terms.are_kept) == (is_kept, is_kept)


def test_the_largest_shapes_are_taken() -> None:
    """Sixteen axes, and 2**32 elements beside an empty axis."""
    for shape in ([1] * 15 + [2], [0, 2**32]):
        data = [1, 2][: math.prod(shape)]
        assert decode(json_body(shape=shape, data=data), None).inputs["x"].shape == tuple(shape)


def test_empty_strings_are_strings() -> None:
    """Four bytes each, which say that there are none, are enough."""
    array = np.array([b"", b""], object)
    assert same(decode(*binary_body({"x": array})).inputs, {"x": array})


def test_each_output_goes_in_its_own_form() -> None:
    """As JSON beside one that is binary."""
    body, length = encode(InferResponse("m", "1", {"a": np.ones(1, "<f4"), "b": np.zeros(1, "<f4")}), frozenset({"b"}))
    first, second = json.loads(body[:length])["outputs"]
    assert first["data"] == [1.0]
    assert (second["parameters"], body[length:]) == ({"binary_data_size": 4}, b"\0\0\0\0")


def test_an_id_comes_back_in_its_own_answer_only() -> None:
    """Answers that are alike but for their id are not taken for one another."""
    for request_id in ("a", "b", "", "c"):
        body, length = encode(InferResponse("m", "1", {"y": np.ones(1)}, request_id), None)
        assert json.loads(body[:length]).get("id", "") == request_id


def test_the_quick_way_is_taken() -> None:
    """The bodies of the benchmarks, flat and in rows, are read without an object for each number."""
    for data in ([1.5, 2], [[1.5, 2]]):
        body = orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": data}]})
        request = v2_rest._decode_numbers(body)
        assert request is not None
        assert request.inputs["x"].tolist() == [[1.5, 2.0]]
        assert request.terms.are_kept
