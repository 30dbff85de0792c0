"""Open Inference over gRPC: what a message means, and what is refused."""

import contextlib
import math

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torpor.predictors.errors import InvalidInput, ModelFailed
from torpor.predictors.protocol import v2_grpc
from torpor.predictors.protocol.datatypes import BFLOAT16, DTYPES, datatype_of, encode_bytes
from torpor.predictors.protocol.inference import InferResponse
from torpor.predictors.protocol.messages import message

Request = message("inference.ModelInferRequest")
Response = message("inference.ModelInferResponse")


def decode(request):
    """The request in the bytes of a message, after a frame's prefix."""
    return v2_grpc.decode(b"\0\0\0\0\0" + request.SerializeToString(), 5).request


def encode(response: InferResponse, *, raw: bool):
    return Response.FromString(v2_grpc.encode(response, raw=raw))


FIELDS = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    datatype = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4))
    if datatype == "BYTES":
        array = np.empty(math.prod(shape), object)
        array[:] = draw(st.lists(st.binary(), min_size=array.size, max_size=array.size))
        return array.reshape(shape)
    dtype = DTYPES[datatype]
    elements = hnp.from_dtype(dtype, allow_nan=False) if dtype.kind == "f" else None
    return draw(hnp.arrays(dtype, shape, elements=elements))


tensors = st.dictionaries(st.text(min_size=1, max_size=5), arrays(), min_size=1, max_size=3)


def make(inputs: dict[str, np.ndarray], raw: bool):
    request = Request(model_name="m", id="abc")
    for name, array in inputs.items():
        tensor = request.inputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        if raw:
            request.raw_input_contents.append(encode_bytes(array) if array.dtype == object else array.tobytes())
        else:
            getattr(tensor.contents, FIELDS[tensor.datatype]).extend(array.ravel().tolist())
    return request


def as_request(response):
    """A response's outputs as a request's inputs: the messages differ in names only."""
    request = Request(raw_input_contents=response.raw_output_contents)
    for output in response.outputs:
        request.inputs.add().ParseFromString(output.SerializeToString())
    return request


def content(inputs: dict[str, np.ndarray]) -> list[object]:
    return [(name, array.dtype, array.shape, array.tolist()) for name, array in inputs.items()]


@given(tensors)
def test_raw_tensors_come_out_as_they_went_in(inputs: dict[str, np.ndarray]) -> None:
    """Every datatype and shape survives raw contents both ways."""
    assert content(decode(make(inputs, raw=True)).inputs) == content(inputs)
    response = encode(InferResponse("m", "1", inputs), raw=True)
    assert content(decode(as_request(response)).inputs) == content(inputs)


@given(tensors)
def test_typed_tensors_come_out_as_they_went_in(inputs: dict[str, np.ndarray]) -> None:
    """Every datatype with a typed field survives it both ways; FP16 and BF16 have none and make the response raw."""
    response = encode(InferResponse("m", "1", inputs), raw=False)
    has_half = any(array.dtype in (np.float16, BFLOAT16) for array in inputs.values())
    assert bool(response.raw_output_contents) == has_half
    assert content(decode(as_request(response)).inputs) == content(inputs)
    if not has_half:
        assert content(decode(make(inputs, raw=False)).inputs) == content(inputs)


@pytest.mark.parametrize(
    ("of", "parameter", "text"),
    [
        ("outputs", "classification", "output 'x': parameter classification is not supported"),
        ("outputs", "shared_memory_region", "output 'x': shared memory is not supported"),
        ("inputs", "shared_memory_region", "input 'x': shared memory is not supported"),
    ],
)
def test_parameters_that_change_what_a_tensor_means_are_refused(of: str, parameter: str, text: str) -> None:
    """Triton's extensions that are not here; any other parameter is passed over."""
    request = make({"x": np.ones(2, np.float32)}, raw=True)
    tensor = request.inputs[0] if of == "inputs" else request.outputs.add(name="x")
    tensor.parameters["other"].string_param = "a"
    decode(request)
    tensor.parameters[parameter].string_param = "a"
    with pytest.raises(InvalidInput, match=text):
        decode(request)


@given(st.binary(max_size=200))
def test_any_message_is_a_request_or_invalid_input(data: bytes) -> None:
    """Whatever bytes come raise nothing but InvalidInput."""
    with contextlib.suppress(InvalidInput):
        v2_grpc.decode(data)


@given(tensors, st.data())
def test_a_message_means_what_protobuf_says(inputs: dict[str, np.ndarray], data: st.DataObject) -> None:
    """Fields in any order, or changed anywhere, found again or not: the same tensors, or both are refused."""
    said = make(inputs, raw=True).SerializeToString()
    for _ in range(2):  # the second time its layout is known
        assert content(v2_grpc.decode(said).request.inputs) == content(inputs)
    place = data.draw(st.integers(0, len(said) - 1))
    changed = said[:place] + bytes([data.draw(st.integers(0, 255))]) + said[place + 1 :]
    try:
        parsed = Request.FromString(changed)
    except DecodeError:
        with pytest.raises(InvalidInput):
            v2_grpc.decode(changed)
        return
    pieces = [Request(raw_input_contents=parsed.raw_input_contents)]
    rest = Request()
    rest.CopyFrom(parsed)
    rest.ClearField("raw_input_contents")
    backwards = b"".join(part.SerializeToString() for part in [*pieces, rest])  # the data first: protobuf's own way
    answers = []
    for form in (changed, backwards):
        try:
            call = v2_grpc.decode(form)
            answers.append((call.model_name, call.model_version, call.request.terms.id, content(call.request.inputs)))
        except InvalidInput as error:
            answers.append(str(error))
    assert repr(answers[0]) == repr(answers[1])


@pytest.mark.parametrize("size", [1, 127, 128, 16384])
def test_what_precedes_the_data_is_read_once(size: int) -> None:
    """Messages that differ in their data alone share their terms, however long the data."""
    one, other = (make({f"x{size}": np.full(size, value, np.uint8)}, raw=True) for value in (1, 2))
    first, second = decode(one), decode(other)
    assert second.terms is first.terms
    assert first.terms.are_kept
    assert (first.inputs[f"x{size}"] == 1).all()
    assert (second.inputs[f"x{size}"] == 2).all()


@pytest.mark.parametrize(("head_bytes", "is_kept"), [(2048, True), (2049, False)])
def test_only_short_messages_are_kept(head_bytes: int, is_kept: bool) -> None:
    """What precedes the data is kept up to 2 KiB of it: callers could otherwise fill the memory with it."""
    request = make({"x": np.ones(2, np.float32)}, raw=True)
    known_bytes = len(request.SerializeToString()) - len(request.model_name) - 10  # without the name and the raw data
    request.model_name = "m" * (head_bytes - known_bytes - 1)  # its length is a byte longer than that of "m"
    first, second = decode(request), decode(request)
    assert (second.terms is first.terms, first.terms.are_kept) == (is_kept, is_kept)


def test_a_message_without_raw_data_is_not_kept() -> None:
    """Its data are among what would have to be found again."""
    assert not decode(make({"x": np.ones(2, np.float32)}, raw=False)).terms.are_kept


DATA = b"\x3a\x06\0\0\0\0\0\0"  # two float32, which look like raw data of six bytes
HEAD = Request(inputs=[{"name": "x", "datatype": "FP32", "shape": [2]}]).SerializeToString()
RAW = b"\x3a\x08" + DATA


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (HEAD + RAW, HEAD + RAW + RAW, "raw_input_contents has 2 entries, must have 1"),
        (HEAD + RAW, HEAD + RAW[:-1], "not a valid inference.ModelInferRequest"),
        (HEAD + RAW, HEAD + RAW + b"\x3a", "not a valid inference.ModelInferRequest"),
        (HEAD + RAW, HEAD + b"\x3a\x07" + DATA[:7], "needs 8 bytes, got 7"),
        (HEAD + RAW, HEAD + b"\x3a\x88\x80\x80\x80\x80\x80\0" + DATA, ""),
        (HEAD + b"\x18\2" + RAW, HEAD + b"\x18\2" + RAW, ""),
        (HEAD + RAW + b"\x1a\1i", HEAD + RAW, ""),
    ],
    ids=[
        "one more",
        "cut off",
        "a byte more",
        "too short",
        "a size of seven bytes",
        "an unknown field",
        "a field behind the data",
    ],
)
def test_a_known_beginning_changes_nothing(first: bytes, second: bytes, text: str) -> None:
    """What follows what is known, or is behind the data, is read as if nothing were known."""
    v2_grpc.decode(first)
    if text:
        with pytest.raises(InvalidInput, match=text):
            v2_grpc.decode(second)
        return
    call = v2_grpc.decode(second)
    assert call.request.inputs["x"].tobytes() == DATA
    assert call.request.terms.id == ""


@given(
    st.lists(st.tuples(st.sampled_from(["x", "y", ""]), st.sampled_from([*DTYPES, "FLOAT"]),
                       st.lists(st.integers(-1, 3) | st.integers(-(2**63), 2**63 - 1), max_size=18),
                       st.dictionaries(st.sampled_from(sorted(set(FIELDS.values()))), st.just([1]), max_size=2))),
    st.lists(st.binary(max_size=24), max_size=3),
)  # fmt: skip
def test_any_fields_are_a_request_or_invalid_input(inputs: list, raw: list[bytes]) -> None:
    """Shapes, datatypes, contents and raw contents that contradict one another raise nothing but InvalidInput."""
    request = Request(raw_input_contents=raw)
    for name, datatype, shape, contents in inputs:
        values = {field: [b"1"] if field == "bytes_contents" else [1] for field in contents}
        request.inputs.add(name=name, datatype=datatype, shape=shape, contents=values)
    with contextlib.suppress(InvalidInput):
        decode(request)


@pytest.mark.parametrize("raw", [True, False])
def test_the_answer_is_raw_if_the_request_was(raw: bool) -> None:
    """`binary_outputs` carries the caller's choice to the response."""
    decoded = decode(make({"x": np.zeros(2, "<f4")}, raw))
    assert (decoded.terms.binary_outputs is None) == raw
    assert decoded.terms.id == "abc"


def tensor(**changes: object):
    return Request(
        inputs=[{"name": "x", "datatype": "FP32", "shape": [2], "contents": {"fp32_contents": [1, 2]}} | changes]
    )


def raw_tensor(*raw: bytes, **changes: object):
    fields = {"name": "x", "datatype": "FP32", "shape": [2]} | changes
    return Request(inputs=[fields], raw_input_contents=raw)


@pytest.mark.parametrize(
    ("request_message", "message"),
    [
        (Request(), "inputs must not be empty"),
        (tensor(name=""), "inputs[0].name = '', must be given"),
        (Request(inputs=[tensor().inputs[0]] * 2), "inputs[1].name = 'x', must be given, and once only"),
        (tensor(datatype="FLOAT"), "datatype = 'FLOAT', must be one of BOOL"),
        (tensor(shape=[-1]), "shape = [-1], must be integers of at least 0"),
        (tensor(shape=[1] * 17), "shape has 17 axes, must be in [1, 16]"),
        (tensor(shape=[0, 2**62], contents={}), "must have a product of at most"),
        (tensor(shape=[3]), "shape [3] needs 3 elements, fp32_contents has 2"),
        (tensor(contents={}), "shape [2] needs 2 elements, fp32_contents has 0"),
        (tensor(contents={"fp64_contents": [1, 2]}), "contents has fp64_contents, must have fp32_contents alone"),
        (tensor(datatype="FP16"), "FP16 must come in raw_input_contents"),
        (tensor(datatype="INT8", contents={"int_contents": [1, 128]}), "elements must be in [-128, 127] for INT8"),
        (tensor(datatype="INT8", contents={"int_contents": [1, -129]}), "elements must be in [-128, 127] for INT8"),
        (tensor(datatype="UINT16", contents={"uint_contents": [1, 65536]}), "must be in [0, 65535] for UINT16"),
        (raw_tensor(b"1234567"), "shape [2] of FP32 needs 8 bytes, got 7"),
        (raw_tensor(b"12345678", b""), "raw_input_contents has 2 entries, must have 1"),
        (raw_tensor(b"\2", datatype="BOOL", shape=[1]), "bytes of 0 or 1"),
        (raw_tensor(b"\xff\xff\xff\xff", datatype="BYTES", shape=[1]), "element 0 says 4294967295 bytes"),
        (raw_tensor(b"12345678", contents={"fp32_contents": [1, 2]}), "exclude one another"),
        (Request(inputs=tensor().inputs, outputs=[{"name": "y"}, {"name": "y"}]), "each name once only"),
        (Request(inputs=tensor().inputs, outputs=[{}]), "must each have a name"),
        (Request(inputs=tensor().inputs, parameters={"a": {}}), "parameter a has no value"),
    ],
)
def test_a_message_that_contradicts_itself_is_refused(request_message: object, message: str) -> None:
    """The error says which field, its value and what it must be."""
    with pytest.raises(InvalidInput) as error:
        decode(request_message)
    assert message in str(error.value)


@pytest.mark.parametrize("datatype", ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"])
def test_integers_reach_from_end_to_end_of_their_datatype(datatype: str) -> None:
    """The least and the greatest are numbers as any other."""
    limits = np.iinfo(DTYPES[datatype])
    ends = np.array([limits.min, limits.max], limits.dtype)
    assert content(decode(make({"x": ends}, raw=False)).inputs) == content({"x": ends})


def test_every_datatype_with_a_typed_field_may_stand_in_one_typed_answer() -> None:
    """None of them makes it raw."""
    outputs = {datatype: np.zeros(1, DTYPES[datatype]) for datatype in FIELDS if datatype != "BYTES"}
    outputs["BYTES"] = np.array([b"a"], object)
    assert not encode(InferResponse("m", "1", outputs), raw=False).raw_output_contents


@pytest.mark.parametrize("size", [127, 128, 16383, 16384])
def test_a_raw_answer_is_written_as_protobuf_writes_it(size: int) -> None:
    """The sizes of raw data too, which we write ourselves, and when all but the data are known."""
    for value in (1, 2):
        said = v2_grpc.encode(InferResponse("m", "1", {"y": np.full(size, value, np.uint8)}), raw=True)
        parsed = Response.FromString(said)
        assert parsed.raw_output_contents == [bytes([value]) * size]
        assert parsed.SerializeToString() == said


def test_an_id_comes_back_in_its_own_answer_only() -> None:
    """Answers that are alike but for their id are not taken for one another."""
    ids = ["a", "b", "", "c"]
    answers = [encode(InferResponse("m", "1", {"y": np.ones(1)}, id), raw=True).id for id in ids]
    assert answers == ids


def test_parameters_come_as_plain_values() -> None:
    """Each kind of parameter gives the Python value of its field."""
    values = {
        "a": {"bool_param": True},
        "b": {"int64_param": -1},
        "c": {"string_param": "x"},
        "d": {"double_param": 0.5},
    }
    decoded = decode(Request(inputs=tensor().inputs, parameters=values))
    assert dict(decoded.terms.parameters) == {"a": True, "b": -1, "c": "x", "d": 0.5}


@pytest.mark.parametrize("raw", [True, False])
def test_elements_that_are_no_bytes_fail_the_model(raw: bool) -> None:
    """A BYTES output with a number in it is the model's fault."""
    array = np.empty(1, object)
    array[0] = 5
    with pytest.raises(ModelFailed, match="holds a int, must hold bytes or str"):
        encode(InferResponse("m", "1", {"y": array}), raw=raw)


@pytest.mark.parametrize("raw", [True, False])
def test_nan_goes_through(raw: bool) -> None:
    """Protobuf has NaN and infinity: no error, unlike JSON."""
    response = encode(InferResponse("m", "1", {"y": np.array([np.nan, np.inf], "<f4")}), raw=raw)
    values = decode(as_request(response)).inputs["y"]
    np.testing.assert_array_equal(values, [np.nan, np.inf])
