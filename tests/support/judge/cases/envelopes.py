"""Request envelopes, KServe's above all, and its gRPC protocol."""

import json
from typing import Any

from judge.calls import BYTES, JSON, case, infer, manage, opened, post, tensor, v1, v2
from judge.cases.images import IMAGE_TEXT
from judge.scenes import Call, Scene


def without_blanks(body: bytes) -> Any:
    return b"".join(body.split())


V1 = Scene(
    "v1",
    ["scripted", "instances", "classifier", "explained"],
    [
        case("floats", v1("scripted", [[1.0, 2.0, 3.0], [0.5, 0.5, 0.5]])),
        case("integers", v1("scripted", [[1, 2, 3]]), status=503),
        case("ragged", v1("scripted", [[1.0, 2.0], [1.0]]), status=503),
        case("instances of every type", v1("instances", [1, 1.5, "x", None, True, [1], {"a": 1}])),
        case("fewer answers than instances", v1("instances", ["short"])),
        case("empty answer", v1("instances", ["nothing"]), status=503),
        case("exception", v1("instances", ["raise"]), status=503),
        case("no instances", v1("instances", []), status=503),
        case("without the key", Call("POST", "/v1/models/instances:predict", b'{"inputs": [1]}', JSON)),
        case("instances is no list", v1("instances", "abc")),
        case("broken json", Call("POST", "/v1/models/instances:predict", b"{", JSON), status=503),
        case("json without a type", Call("POST", "/v1/models/instances:predict", b'{"instances": [1]}', BYTES)),
        case("unknown model", v1("nobody", [1]), status=404),
        case("by TorchServe's own path", post("instances", '{"instances": [1]}', JSON)),
        case("image", v1("classifier", [{"data": IMAGE_TEXT, "target": 0}])),
        case("two images", v1("classifier", [{"data": IMAGE_TEXT}, {"data": IMAGE_TEXT}])),
        case("explain", v1("explained", [{"x": [1.0, 2.0, 3.0], "target": 1}], "explain")),
        case("predict what explains", v1("explained", [{"x": [1.0, 2.0, 3.0]}])),
        case("explain what can't", v1("scripted", [[1.0, 2.0, 3.0]], "explain"), status=503),
        case("pieces", v1("instances", ["pieces"]), normal=without_blanks),
        case("model's state", manage("GET", "/v1/models/instances")),
        case("unknown model's state", manage("GET", "/v1/models/nobody"), status=404),
        case(
            "two at once",
            *(v1("instances", [number]) for number in range(2)),
            together=True,
        ),
    ],
    {"service_envelope": "kserve"},
    snapshot={"scripted": {}, "instances": {}, "classifier": {}, "explained": {}},
)

V1_BATCHED = Scene(
    "v1-batched",
    ["instances"],
    [
        case("alone", v1("instances", [1])),
        case("three at once", *(v1("instances", [number]) for number in range(3)), together=True, status=[503] * 3),
    ],
    {"service_envelope": "kserve"},
    snapshot={"instances": {"batchSize": 3, "maxBatchDelay": 500}},
)


def without_id(body: bytes) -> Any:
    answer = json.loads(body)
    return {**answer, "id": len(answer["id"])}


def v2_path(model: str, *inputs: Any) -> Call:
    """The same body by TorchServe's own path."""
    return post(model, v2(model, *inputs, id="one").body, JSON)


V2 = Scene(
    "v2",
    ["scripted", "v2_echo", "explained"],
    [
        case("floats", v2("v2_echo", tensor("floats", "FP32", [2], [1, 2]), id="one")),
        case("integers", v2("v2_echo", tensor("integers", "INT32", [2], [1, 2]), id="one")),
        case("strings", v2("v2_echo", tensor("strings", "FP32", [1], [1]), id="one")),
        case("objects", v2("v2_echo", tensor("objects", "FP32", [1], [1]), id="one")),
        case("nested", v2("v2_echo", tensor("nested", "FP32", [1], [1]), id="one")),
        case("scalar", v2("v2_echo", tensor("scalar", "FP32", [1], [1]), id="one")),
        case("tensor as it came", v2("v2_echo", tensor("x", "INT64", [2, 2], [1, 2, 3, 4]), id="one")),
        case("size -1", v2("v2_echo", tensor("x", "FP32", [-1, 2], [1.5, 2, 3, 4]), id="one")),
        case("wrong size", v2("v2_echo", tensor("x", "FP32", [3], [1, 2]), id="one"), status=503),
        case("bytes", v2("v2_echo", tensor("x", "BYTES", [2], ["aGVsbG8=", "more"]), id="one")),
        case("booleans", v2("v2_echo", tensor("x", "BOOL", [2], [True, False]), id="one")),
        case("two inputs", v2("v2_echo", tensor("floats", "FP32", [1], [1]), tensor("y", "FP64", [1], [2]), id="one")),
        case("no id", v2("v2_echo", tensor("x", "FP32", [1], [1])), normal=without_id),
        case("parameters", v2("v2_echo", tensor("x", "FP32", [1], [1]), id="one", parameters={"a": 1})),
        case("chosen outputs", v2("v2_echo", tensor("x", "FP32", [1], [1]), id="one", outputs=[{"name": "y"}])),
        case("no inputs", Call("POST", "/v2/models/v2_echo/infer", b'{"id": "one"}', JSON), status=503),
        case("broken json", Call("POST", "/v2/models/v2_echo/infer", b"{", JSON), status=503),
        case("unknown model", v2("nobody", tensor("x", "FP32", [1], [1])), status=404),
        case("explain what can't", v2("scripted", tensor("x", "FP32", [1, 3], [1, 2, 3]), verb="explain"), status=503),
        case("explain", v2("explained", tensor("x", "FP32", [3], [1, 2, 3]), verb="explain", id="one")),
        case("predict what explains", v2("explained", tensor("x", "FP32", [3], [1.0, 2.0, 3.0]), id="one")),
        case("exception", v2("explained", tensor("x", "BYTES", [1], ["abc"]), id="one"), status=503),
        case("more answers than inputs", v2("v2_echo", tensor("many", "FP32", [1], [1]), id="one"), status=503),
        case("by TorchServe's own path", v2_path("v2_echo", tensor("x", "FP32", [2], [1.5, 2]))),
        case("another name than the archive's", v2("alias", tensor("x", "FP32", [1], [1]), id="one")),
        case("metadata", Call("GET", "/v2/models/v2_echo"), status=404),
        case("ready", Call("GET", "/v2/models/v2_echo/ready"), status=404),
        case("server ready", Call("GET", "/v2/health/ready"), status=404),
    ],
    {"service_envelope": "kservev2"},
    snapshot={"scripted": {}, "v2_echo": {}, "explained": {}, "alias": {"marName": "v2_echo.mar"}},
    models=["scripted", "v2_echo", "explained", "alias"],
)

V2_BATCHED = Scene(
    "v2-batched",
    ["v2_echo"],
    [
        case("alone", v2("v2_echo", tensor("floats", "FP32", [1], [1]), id="one")),
        case("three at once", *(v2("v2_echo", tensor("x", "INT64", [1], [number]), id="one") for number in range(3)),
             together=True, status=[503] * 3),
    ],
    {"service_envelope": "kservev2"},
    snapshot={"v2_echo": {"batchSize": 3, "maxBatchDelay": 500}},
)  # fmt: skip

JSON_ENVELOPE = Scene(
    "json-envelope",
    ["scripted", "explained"],
    [
        case("instances", post("scripted", '{"instances": [[1.0, 2.0, 3.0]]}', JSON)),
        case("integers", post("scripted", '{"instances": [[1, 2, 3]]}', JSON), status=503),
        case("without the key", post("scripted", "{}", JSON), status=503),
        case("explain", post("explained", '{"instances": [{"x": [1.0, 2.0, 3.0]}]}', JSON, "/explanations/")),
        case("by v1's path", v1("scripted", [[1.0, 2.0, 3.0]])),
    ],
    {"service_envelope": "json"},
)

BODY_ENVELOPE = Scene(
    "body-envelope",
    ["scripted", "explained"],
    [
        case("rows", post("scripted", "[1.0, 2.0, 3.0]", JSON)),
        case("integers", post("scripted", "[1, 2, 3]", JSON), status=503),
        case("explain", post("explained", '{"x": [1.0, 2.0, 3.0], "target": 1}', JSON, "/explanations/")),
    ],
    {"service_envelope": "body"},
)

V2_GRPC = Scene(
    "v2-grpc",
    ["v2_echo"],
    [
        case("live", opened("ServerLive"), status="OK"),
        case("ready", opened("ServerReady"), status="OK"),
        case("model ready", opened("ModelReady", name="v2_echo"), status="OK"),
        case("unknown model ready", opened("ModelReady", name="nobody"), status="NOT_FOUND"),
        case("model metadata", opened("ModelMetadata", name="v2_echo"), status="OK"),
        case("floats", infer("x", "FP32", [2], fp32_contents=[0.5, 1.5]), status="OK"),
        case("integers", infer("x", "INT64", [2, 2], int64_contents=[1, 2, 3, 4]), status="OK"),
        case("answers of floats", infer("floats", "FP32", [1], fp32_contents=[1.0]), status="OK"),
        case("answers of text", infer("strings", "FP32", [1], fp32_contents=[1.0]), status="OK"),
        case("bytes", infer("x", "BYTES", [1], bytes_contents=[b"aGVsbG8="]), status="OK"),
        case("booleans", infer("x", "BOOL", [2], bool_contents=[True, False]), status="OK"),
        case("wrong size", infer("x", "FP32", [3], fp32_contents=[0.5, 1.5]), status="UNAVAILABLE"),
        case("unknown model", infer("x", "FP32", [1], "nobody", fp32_contents=[0.5]), status="INTERNAL"),
    ],
    {"service_envelope": "kservev2"},
    snapshot={"v2_echo": {}},
    grpc_protocol="oip",
)
