"""Each protocol's two directions: what the client writes the server reads, and what the server writes the client reads."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torpor.predictors.errors import InvalidInput, PredictorFailed
from torpor.predictors.protocol import v1, v2_grpc, v2_rest
from torpor.predictors.protocol.datatypes import BFLOAT16, DTYPES, NAMES, bfloat16_from_float32
from torpor.predictors.protocol.inference import InferRequest, InferResponse, Terms
from torpor.transformers.client import v2_grpc as client_grpc
from torpor.transformers.client.message import Reply
from torpor.transformers.client.v1 import V1
from torpor.transformers.client.v2_rest import V2Rest

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3)


@st.composite
def arrays(draw: st.DrawFn, texts: bool = False, shapes: st.SearchStrategy[tuple[int, ...]] = SHAPES) -> np.ndarray:
    """An array of any datatype; texts: only what JSON can hold."""
    datatype = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(shapes)
    if datatype == "BYTES":
        element = st.text(max_size=4).map(str.encode) if texts else st.binary(max_size=4)
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


NAMED = st.text(min_size=1, max_size=5)
TENSORS = st.dictionaries(NAMED, arrays(), min_size=1, max_size=3)
TEXTS = st.dictionaries(NAMED, arrays(texts=True), min_size=1, max_size=3)
TERMS = st.builds(
    Terms,
    outputs=st.lists(NAMED, unique=True, max_size=2).map(tuple),
    id=st.text(max_size=3),
    parameters=st.dictionaries(
        st.sampled_from("abc"), st.booleans() | st.integers(0, 2**64 - 1) | st.text(max_size=2), max_size=2
    ),
)


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    def content(array: np.ndarray) -> object:
        return array.tolist() if array.dtype == object else array.tobytes()

    return [(n, a.dtype, a.shape, content(a)) for n, a in left.items()] == [
        (n, a.dtype, a.shape, content(a)) for n, a in right.items()
    ]


def sent(wire: V1 | V2Rest, request: InferRequest) -> tuple[bytes, int | None]:
    """The body that the server gets, and the length of its JSON object; the head is a right one."""
    head, pieces = wire.encode(request)
    body = b"".join(pieces)
    assert b"content-length: %d\r\n" % len(body) in head
    assert head.startswith(b"POST /p")
    lines = dict(line.split(b": ") for line in head.split(b"\r\n")[1:-1])
    length = lines.get(b"inference-header-content-length")
    return body, None if length is None else int(length)


def binary() -> V2Rest:
    return V2Rest("m", "/p", "host", binary=True)


def as_json() -> V2Rest:
    return V2Rest("m", "/p", "host", binary=False)


@given(TENSORS, TERMS)
def test_a_binary_request_is_read_as_it_was(inputs: dict[str, np.ndarray], terms: Terms) -> None:
    """Every datatype, and what the request says beside its tensors; the second time from what was kept."""
    wire = binary()
    for _ in range(2):
        read = v2_rest.decode(*sent(wire, InferRequest(inputs, terms)))
        assert same(read.inputs, inputs)
        assert (read.terms.id, read.terms.outputs) == (terms.id, terms.outputs)
        assert read.terms.parameters == {**terms.parameters, "binary_data_output": True}
        assert read.terms.binary_outputs == (frozenset(terms.outputs) or None)


@given(TEXTS, TERMS)
def test_a_json_request_is_read_as_it_was(inputs: dict[str, np.ndarray], terms: Terms) -> None:
    """Every datatype that has a form in JSON."""
    read = v2_rest.decode(*sent(as_json(), InferRequest(inputs, terms)))
    assert same(read.inputs, inputs)
    assert (read.terms.id, read.terms.outputs, dict(read.terms.parameters)) == (
        terms.id,
        terms.outputs,
        terms.parameters,
    )
    assert read.terms.binary_outputs == frozenset()


@given(TENSORS, TERMS)
def test_a_grpc_request_is_read_as_it_was(inputs: dict[str, np.ndarray], terms: Terms) -> None:
    """With raw data, by the quick way and by protobuf's."""
    data = client_grpc.encode("m", InferRequest(inputs, terms))
    for _ in range(2):
        call = v2_grpc.decode(data)
        assert (call.model_name, call.model_version) == ("m", "")
        assert same(call.request.inputs, inputs)
        assert (call.request.terms.id, call.request.terms.outputs) == (terms.id, terms.outputs)
        assert call.request.terms.parameters == terms.parameters


@given(st.integers(1, 3), st.data())
def test_a_v1_request_is_read_as_it_was(rows: int, data: st.DataObject) -> None:
    """One input as bare rows, several as objects by name; BYTES that are no UTF-8 as base64."""
    shapes = st.lists(st.integers(1, 3), max_size=2).map(lambda axes: (rows, *axes))
    of_rows = arrays(texts=True, shapes=shapes)
    names = st.text(min_size=1, max_size=5).filter(lambda name: name != "b64")
    inputs = data.draw(st.dictionaries(names, of_rows, min_size=1, max_size=3))
    for array in inputs.values():
        if array.dtype == object:
            array.flat[0] = b"\xff\xfe"
    datatypes = {name: NAMES[array.dtype] for name, array in inputs.items()}
    body, _ = sent(V1("m", "/p", "host"), InferRequest(inputs))
    (read,) = v1.decode(body, tuple(inputs), datatypes)
    assert same(read.inputs, inputs)


@given(TENSORS, st.text(max_size=3), st.data())
def test_any_v2_answer_is_read(outputs: dict[str, np.ndarray], request_id: str, data: st.DataObject) -> None:
    """All, some or none of its tensors binary; the second time from what was kept."""
    json_able = {n for n, a in outputs.items() if a.dtype.kind in "biu"}
    as_text = frozenset(data.draw(st.sets(st.sampled_from(sorted(json_able))))) if json_able else frozenset()
    response = InferResponse("m", "3", outputs, request_id)
    body, length = v2_rest.encode(response, frozenset(outputs) - as_text)
    headers = {} if length is None else {b"inference-header-content-length": b"%d" % length}
    for _ in range(2):
        read = binary().decode(Reply(200, headers, body), InferRequest({}))
        assert same(read.outputs, outputs)
        assert (read.model_name, read.model_version, read.id) == ("m", "3", request_id)


@given(TEXTS)
def test_any_json_answer_is_read(outputs: dict[str, np.ndarray]) -> None:
    """Every datatype that has a form in JSON."""
    body, length = v2_rest.encode(InferResponse("m", "3", outputs), frozenset())
    assert length is None
    assert same(as_json().decode(Reply(200, {}, body), InferRequest({})).outputs, outputs)


@given(TENSORS, st.booleans(), st.text(max_size=3))
def test_any_grpc_answer_is_read(outputs: dict[str, np.ndarray], raw: bool, request_id: str) -> None:
    """Raw, and typed where there is a field for the datatype."""
    read = client_grpc.decode(v2_grpc.encode(InferResponse("m", "3", outputs, request_id), raw=raw))
    assert same(read.outputs, outputs)
    assert (read.model_name, read.model_version, read.id) == ("m", "3", request_id)


@pytest.mark.parametrize(
    ("outputs", "asked", "expected"),
    [
        ({"y": np.array([[1, 2]], np.int64)}, (), {"predictions": np.array([[1, 2]], np.int64)}),
        ({"y": np.array([1.5], np.float32)}, ("y",), {"y": np.array([1.5], np.float32)}),
        (
            {"a": np.array([True]), "b": np.array([b"x"], object)},
            ("b",),
            {"b": np.array([b"x"], object)},
        ),
        ({"a": np.array([1.0]), "b": np.array([2])}, (), {"a": np.array([1.0], np.float32), "b": np.array([2])}),
    ],
)
def test_a_v1_answer_gets_the_names_and_datatypes_that_it_shows(outputs: dict, asked: tuple, expected: dict) -> None:
    """v1 says neither: the only output is called as asked, and elements tell int64, float32, bool or BYTES."""
    body = v1.encode([InferResponse("m", "3", outputs)])
    reply = Reply(200, {b"torpor-model-version": b"3"}, body)
    read = V1("m", "", "host").decode(reply, InferRequest({}, Terms(outputs=asked, id="9")))
    assert same(read.outputs, expected)
    assert (read.model_name, read.model_version, read.id) == ("m", "3", "9")


@pytest.mark.parametrize(
    ("body", "length", "message"),
    [
        (b"", None, "is not JSON"),
        (b"[]", None, "is a JSON list"),
        (b"{}", None, "outputs must be a non-empty list"),
        (b'{"outputs": 5}', None, "outputs must be"),
        (b'{"outputs": [{"name": "y"}]}', None, "output 'y': datatype = None"),
        (b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1]}]}', None, "output 'y': shape"),
        (
            b'{"model_name": 5, "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1]}]}',
            None,
            "model_name",
        ),
        (b"{}", b"x", "Content-Length = 'x', must be in"),
        (b"{}", b"3", r"must be in \[0, 2\]"),
        (
            b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}]}abc',
            b"104",
            "add up to 4 bytes, 3 follow",
        ),
    ],
)
def test_what_is_no_v2_answer_is_an_error_that_says_so(body: bytes, length: bytes | None, message: str) -> None:
    """In the words for outputs, and as a failure of the predictor."""
    headers = {} if length is None else {b"inference-header-content-length": length}
    if length == b"104":
        headers[b"inference-header-content-length"] = b"%d" % (len(body) - 3)
    with pytest.raises(PredictorFailed, match=f"the predictor's answer: .*{message}"):
        binary().decode(Reply(200, headers, body), InferRequest({}))


@pytest.mark.parametrize(
    ("body", "asked", "message"),
    [
        (b"{}", (), "predictions must be a non-empty list"),
        (b'{"predictions": {"a": 1}}', (), "predictions must be a non-empty list"),
        (b'{"predictions": [[1], [1, 2]]}', (), "lists of equal lengths"),
        (b'{"predictions": [null]}', (), "elements must be"),
        (b'{"predictions": [{"a": 1}, {"b": 1}]}', (), r"predictions\[1\] must be an object"),
        (b'{"predictions": [{"a": 1}]}', ("c",), "no output 'c', only a"),
        (b'{"predictions": [{}]}', (), "predictions.0. = {}, must have an output"),
    ],
)
def test_what_is_no_v1_answer_is_an_error_that_says_so(body: bytes, asked: tuple[str, ...], message: str) -> None:
    """KServe's predictors give almost anything."""
    with pytest.raises(PredictorFailed, match=f"the predictor's answer: .*{message}"):
        V1("m", "", "host").decode(Reply(200, {}, body), InferRequest({}, Terms(outputs=asked)))


@given(st.binary(max_size=64))
def test_any_bytes_are_an_answer_or_a_failure(data: bytes) -> None:
    """Nothing that a predictor sends is another exception."""
    for read in (
        lambda: binary().decode(Reply(200, {}, data), InferRequest({})),
        lambda: V1("m", "", "host").decode(Reply(200, {}, data), InferRequest({})),
        lambda: client_grpc.decode(data),
    ):
        with pytest.raises(PredictorFailed):
            read()


@pytest.mark.parametrize("wire", [binary, as_json, lambda: V1("m", "/p", "h")], ids=["v2-binary", "v2-json", "v1"])
def test_a_dtype_without_a_datatype_is_refused(wire) -> None:
    """Before anything is sent; other byte orders too."""
    for dtype in ("c8", ">f4", "U3", "M8[s]"):
        with pytest.raises(InvalidInput, match=r"input 'x': dtype .* has no Open Inference datatype"):
            wire().encode(InferRequest({"x": np.zeros(2, dtype)}))
    with pytest.raises(InvalidInput, match=r"input 'x'.*holds a int"):
        wire().encode(InferRequest({"x": np.array([5, None], object)}))


def test_what_json_has_no_number_for_is_refused() -> None:
    """NaN would arrive as null."""
    for wire in (as_json(), V1("m", "/p", "h")):
        with pytest.raises(InvalidInput, match=r"input 'x' cannot go as JSON: .*NaN"):
            wire.encode(InferRequest({"x": np.array([np.nan], np.float32)}))


def test_large_tensors_are_not_copied() -> None:
    """They are sent from where they lie, whatever their layout says of a copy."""
    large = np.arange(1 << 16, dtype=np.float32)
    _, (_, piece) = binary().encode(InferRequest({"x": large}))
    assert np.shares_memory(np.frombuffer(piece, np.uint8), large)
    _, pieces = binary().encode(InferRequest({"x": large.reshape(256, 256).T}))
    read = v2_rest.decode(b"".join(pieces), len(pieces[0]))
    assert (read.inputs["x"] == large.reshape(256, 256).T).all()
    half = bfloat16_from_float32(large)
    assert half.dtype == BFLOAT16
    _, pieces = binary().encode(InferRequest({"x": half}))
    assert same(v2_rest.decode(b"".join(pieces), len(pieces[0])).inputs, {"x": half})


def test_a_name_is_escaped_in_the_path() -> None:
    """A model's name may hold a slash."""
    head, _ = V2Rest("a/b c", "/p", "host", binary=False).encode(InferRequest({"x": np.zeros(1)}))
    assert head.startswith(b"POST /p/v2/models/a%2Fb%20c/infer HTTP/1.1\r\nhost: host\r\n")


def test_a_binary_request_is_tritons_to_the_letter(small: InferRequest) -> None:
    """By the binary tensor data extension: an object with each tensor's size, then the data."""
    _, (text, blob) = binary().encode(small)
    assert json.loads(text) == {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}],
        "parameters": {"binary_data_output": True},
    }
    assert blob == np.array([1, 2, 3], np.float32).tobytes()
