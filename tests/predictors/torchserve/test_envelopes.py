"""Requests in TorchServe's envelopes: the rows that a handler gets, and the answer of what it gave back."""

import json
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from torpor.predictors.errors import InvalidInput
from torpor.predictors.torchserve.worker.answers import Unanswerable
from torpor.predictors.torchserve.worker.envelopes import Answer, Call, Envelope, KServeV1, KServeV2, Plain

FORM = "application/x-www-form-urlencoded"
V2 = KServeV2(True, "m", "1.0")


def asked(body: object = b"", kind: str = "application/json", **more: Any) -> Call:
    """A request with this body, an object as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Call("its-id", {"content-type": kind}, [data], **more)


def by_fields(**fields: bytes) -> Call:
    """As TorchServe's gRPC has it."""
    return Call("its-id", {}, [*fields.values()], fields=[*fields])


def opened(envelope: Envelope, call: Call) -> Any:
    envelope.open(call)
    return call.rows


def written(answer: Answer) -> tuple[str, Any]:
    """Its content type, and its JSON."""
    (blob,) = answer.blobs
    assert answer.outputs == []
    return answer.content_type, json.loads(blob)


def test_without_an_envelope_a_request_is_one_row() -> None:
    """Of its body, with the query's parameters behind it, and each field's type."""
    call = asked({"a": 1}, query="a=1&body=2")
    assert opened(Plain(True), call) == [{"a": b"1", "body": {"a": 1}}]
    assert call.types == {"a": "", "body": "application/json"}
    assert Plain(True).may_join(call)
    assert opened(Plain(False), asked({"a": 1})) == [{"body": b'{"a": 1}'}]
    call = by_fields(data=b"1", more=b"2")
    assert opened(Plain(True), call) == [{"data": b"1", "more": b"2"}]
    assert call.types == {"data": "", "more": ""}


@pytest.mark.parametrize(
    ("call", "row"),
    [
        (asked({"a": 1}), {"a": 1}),
        (asked(b"data=x&body=y", FORM), b"x"),
        (asked(b"data=&body=y", FORM), b"y"),
        (asked(b"other=y", FORM), None),
        (by_fields(body=b"y"), b"y"),
    ],
)
def test_in_the_envelope_body_a_row_is_what_was_sent(call: Call, row: Any) -> None:
    """As `data` or as `body`."""
    assert opened(Plain(True, "body"), call) == [row]


PART = (
    b'content-disposition: form-data; name="instances"; filename="f"\r\ncontent-type: application/json\r\n\r\n[5]\r\n'
)
MULTIPART = b"--x\r\n" + PART + b"--x--"


@pytest.mark.parametrize(
    ("call", "rows"),
    [
        (asked({"instances": [1, "a"]}), [1, "a"]),
        (asked(b'{"instances": [1]}', ""), [1]),
        (by_fields(data=b'{"instances": [1]}'), [1]),
        (asked(MULTIPART, "multipart/form-data; boundary=x"), [5]),
        (asked({"instances": [{"b64": "eA=="}]}), [b"x"]),
        (
            asked({"instances": [{"a": {"b64": "eA=="}, "b": {"b64": "eA==", "c": 1}, "c": "eA=="}]}),
            [{"a": b"x", "b": {"b64": "eA==", "c": 1}, "c": "eA=="}],
        ),
    ],
)
def test_in_the_envelope_json_rows_are_instances(call: Call, rows: list[Any]) -> None:
    """With bytes for what is base64."""
    assert opened(Plain(True, "json"), call) == rows


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "the body is not JSON: "),
        (b"", "the body is not JSON: "),
        ("[" * 100_000, "the body is a JSON str, must be an object"),
        (b"[" * 100_000, "the body is not JSON: "),
        ([], "the body is a JSON list, must be an object"),
        ({}, "instances must be a non-empty list"),
        ({"instances": []}, "instances must be a non-empty list"),
        ({"instances": {"a": 1}}, "instances must be a non-empty list"),
        ({"instances": [{"b64": 1}]}, "b64 is not base64: "),
        ({"instances": [{"a": {"b64": "eA"}}]}, "b64 is not base64: "),
        ({"instances": [{"b64": "é"}]}, "b64 is not base64: "),
    ],
)
def test_what_is_no_instances_is_named(body: object, reason: str) -> None:
    """Before the handler is asked."""
    with pytest.raises(InvalidInput, match=f"^{reason}"):
        opened(Plain(True, "json"), asked(body))


def test_an_answer_without_an_envelope_is_one_item() -> None:
    """In the envelope `json` all of them, with TorchServe's blanks."""
    call = asked()
    assert Plain(True).answer(call, [b"x"]) == Plain(True, "body").answer(call, ["x"]) == Answer("", [b"x"])
    assert Plain(True, "json").answer(call, [[1, 2]]) == Answer("", [b'{"predictions": [[1, 2]]}'])
    for results in ([], ["x", "y"]):
        with pytest.raises(Unanswerable, match=f"mismatched: {len(results)} items for one request"):
            Plain(True).answer(call, results)


@pytest.mark.parametrize(
    "call",
    [
        asked({"instances": [1, 2]}),
        asked({"instances": [1, 2]}, FORM),
        by_fields(other=b"1", body=b'{"instances": [1, 2]}'),
        by_fields(body=b"1", data=b'{"instances": [1, 2]}'),
    ],
)
def test_kserves_instances_are_rows(call: Call) -> None:
    """As they are, whatever type the body is said to have: curl says that it is a form."""
    assert opened(KServeV1(True), call) == [1, 2]
    assert KServeV1(True).may_join(call)


def test_a_request_without_instances_shares_no_call() -> None:
    """Its part of the handler's answer would be nothing."""
    call = asked({"instances": []})
    assert opened(KServeV1(True), call) == []
    assert not KServeV1(True).may_join(call)


@pytest.mark.parametrize(("call", "reason"), [(asked({}), "instances must be a list"), (by_fields(x=b""), "not JSON")])
def test_what_is_none_of_kserves_is_named(call: Call, reason: str) -> None:
    """A call without a body has none that is JSON."""
    with pytest.raises(InvalidInput, match=reason):
        opened(KServeV1(True), call)


def test_an_answer_is_kserves_by_its_path() -> None:
    """Elsewhere it is what TorchServe writes, without a type and indented."""
    assert written(KServeV1(True).answer(asked(), [1])) == ("application/json", {"predictions": [1]})
    assert KServeV1(True).answer(asked(is_explained=True), [1]).blobs == [b'{"explanations":[1]}']
    assert KServeV1(False).answer(asked(), [1]) == Answer("", [b'{\n  "predictions": [\n    1\n  ]\n}'])


def tensor(**more: Any) -> dict[str, Any]:
    """One of v2's JSON."""
    return {"name": "a", "datatype": "INT64", "shape": [2, 1], "data": [1, 2]} | more


def test_v2s_inputs_are_rows_in_their_shapes() -> None:
    """Of BYTES the first element; a request with one of them may share a call."""
    texts = tensor(name="b", datatype="BYTES", shape=["any"], data=["x", "y"])
    call = asked({"id": "mine", "inputs": [tensor(data=[[1, 2]], more=1), texts]})
    assert opened(V2, call) == [tensor(data=[[1], [2]], more=1), texts | {"data": "x"}]
    assert not V2.may_join(call)
    assert (call.names, call.v2_id) == (["a", "b"], "mine")
    call = by_fields(data=json.dumps({"inputs": [tensor()], "id": " "}).encode())
    assert opened(V2, call) == [tensor(data=[[1], [2]])]
    assert (V2.may_join(call), call.v2_id) == (True, "")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "inputs must be a non-empty list of tensors"),
        ({"inputs": []}, "inputs must be a non-empty list of tensors"),
        ({"inputs": {"a": 1}}, "inputs must be a non-empty list of tensors"),
        ({"inputs": [tensor(), 1]}, r"inputs\[1\] is a int, must be an object"),
        ({"inputs": [tensor(name=1)]}, r"inputs\[0\]\.name must be a str"),
        ({"inputs": [tensor(datatype=None)]}, r"inputs\[0\]\.datatype must be a str"),
        ({"inputs": [tensor(shape="2")]}, r"inputs\[0\]\.shape must be a list"),
        ({"inputs": [tensor(data={})]}, r"inputs\[0\]\.data must be a list"),
        ({"inputs": [tensor(shape=[True, 2])]}, r"inputs\[0\]\.shape must be a list of integers"),
        ({"inputs": [tensor(shape=[3])]}, r"inputs\[0\]: data do not fit shape = \[3\]"),
        ({"inputs": [tensor(data=[[1], [1, 2]])]}, r"inputs\[0\]: data do not fit shape"),
        ({"inputs": [tensor(datatype="BYTES", data=[])]}, r"inputs\[0\]\.data must have at least one element"),
        ({"inputs": [tensor()], "id": 1}, "id is a int, must be a string"),
        ({"inputs": [tensor()], "id": 0}, "id is a int, must be a string"),
    ],
)
def test_what_is_none_of_v2s_is_named(body: object, reason: str) -> None:
    """By its place."""
    with pytest.raises(InvalidInput, match=f"^{reason}"):
        opened(V2, asked(body))


def tensors(*inputs: tuple[str, str, list[int], bytes]) -> Call:
    said = [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape, _ in inputs]
    return Call("its-id", {}, [blob for *_, blob in inputs], inputs=said)


def test_tensors_are_rows_as_kserve_makes_them() -> None:
    """Lists of numbers, and base64 of BYTES' first element."""
    call = tensors(
        ("a", "INT32", [2, 1], np.int32([1, 2]).tobytes()),
        ("b", "BF16", [1], np.array([1.5], bfloat16).tobytes()),
        ("c", "BYTES", [2], b"\x01\0\0\0x\x01\0\0\0y"),
    )
    assert opened(V2, call) == [
        {"name": "a", "datatype": "INT32", "shape": [2, 1], "data": [[1], [2]]},
        {"name": "b", "datatype": "BF16", "shape": [1], "data": [1.5]},
        {"name": "c", "datatype": "BYTES", "shape": [2], "data": "eA=="},
    ]
    assert call.names == ["a", "b", "c"]
    with pytest.raises(InvalidInput, match="input 'c' must have at least one element"):
        opened(V2, tensors(("c", "BYTES", [0], b"")))


def test_v2s_answer_has_an_output_for_each_item() -> None:
    """Flat, by the inputs' names, with the datatype that numpy gives; fewer than the inputs may come."""
    call = asked({"inputs": [tensor(), tensor(name="b")]})
    V2.open(call)
    content = {
        "id": "its-id",
        "model_name": "m",
        "model_version": "1.0",
        "outputs": [
            {"name": "a", "datatype": "FP64", "shape": [2], "data": [1.5, 2.5]},
            {"name": "b", "datatype": "BYTES", "shape": [1], "data": ["x"]},
        ],
    }
    assert written(V2.answer(call, [[[1.5], [2.5]], "x"])) == ("application/json", content)
    call.v2_id = "mine"
    content |= {"id": "mine", "outputs": content["outputs"][:1]}
    assert written(KServeV2(False, "m", "1.0").answer(call, [[1.5, 2.5]])) == ("", content)


def test_tensors_are_answered_with_tensors() -> None:
    """Of BYTES each element in its bytes, as JSON what is none."""
    call = tensors(*((name, "INT8", [1], b"\x01") for name in "abcd"))
    V2.open(call)
    answer = V2.answer(call, [np.float32([[1], [2]]), ["x", "y"], [{"a": [1, 2]}], [b"\xff", None]])
    assert answer.content_type == ""
    assert answer.outputs == [
        {"name": "a", "datatype": "FP32", "shape": [2]},
        {"name": "b", "datatype": "BYTES", "shape": [2]},
        {"name": "c", "datatype": "BYTES", "shape": [1]},
        {"name": "d", "datatype": "BYTES", "shape": [2]},
    ]
    assert answer.blobs == [
        np.float32([1, 2]).tobytes(),
        b"\x01\0\0\0x\x01\0\0\0y",
        b'\x0b\0\0\0{"a":[1,2]}',
        b"\x01\0\0\0\xff\x04\0\0\0null",
    ]


class NoArray:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __array__(self, *_: object, **__: object) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ([1, 2], "the handler returned 2 items for 1 inputs"),
        ([[[1], [1, 2]]], "output 'a' is no array: "),
        ([NoArray(TypeError("no"))], "output 'a' is no array: no"),
        ([NoArray(RuntimeError("requires grad"))], "output 'a' is no array: requires grad"),
        ([np.datetime64("2026-01-01")], r"output 'a': dtype datetime64\[D\] has no Open Inference datatype"),
        ([[object()]], "Unsupported model output data type: "),
    ],
)
def test_what_is_no_output_is_named(results: list[Any], reason: str) -> None:
    """Whether it was asked for by tensors or by JSON."""
    for call in (tensors(("a", "INT8", [1], b"\x01")), asked({"inputs": [tensor()]})):
        V2.open(call)
        with pytest.raises(Unanswerable, match=reason):
            V2.answer(call, results)


def test_a_text_that_is_none_is_no_tensor() -> None:
    """JSON can have it."""
    call = tensors(("a", "INT8", [1], b"\x01"))
    V2.open(call)
    with pytest.raises(Unanswerable, match="not valid Unicode"):
        V2.answer(call, ["\ud800"])
