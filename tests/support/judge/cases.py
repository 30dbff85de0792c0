"""The list of calls: every scene with what is asked, and TorchServe 0.12's statuses as known."""

import base64
import json
import re
import struct
import zlib
from typing import Any

from judge.scenes import BYTES, JSON, TEXT, Call, Case, GrpcCall, Scene, form, manage, multipart, post, tensor, v1, v2


def png(width: int, height: int) -> bytes:
    """An image of plain patterns, without a library that writes images."""
    lines = b"".join(
        b"\0" + bytes(value for x in range(width) for value in (x % 256, y % 256, x * y % 256)) for y in range(height)
    )
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(lines))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*chunks, (b"IEND", b"")]
    )


IMAGE = png(300, 260)
IMAGE_TEXT = base64.b64encode(IMAGE).decode()


def dumps(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode()


def case(name: str, *calls: Call | GrpcCall, status: Any = 200, **more: Any) -> Case:
    """A case whose calls all have that status, or one each."""
    statuses = status if isinstance(status, list) else [status] * len(calls)
    return Case(name, calls, statuses, **more)


def moded(name: str, mode: str, status: int | str = 200, **more: Any) -> Case:
    return case(name, post("modes", mode, TEXT), status=status, **more)


# What a request becomes --------------------------------------------------------------------------------------------

REQUESTS = [
    case("raw bytes", post("echo", b"\x00\xffab"), body=dumps({"body": ["bytearray", "\x00\u00ffab"]})),
    case("json object", post("echo", '{"a": [1, 2.5, null], "b": "x"}', JSON)),
    case("json list", post("echo", "[1, 2]", JSON)),
    case("json with a charset", post("echo", '{"a": 1}', {"content-type": "application/json; charset=utf-8"})),
    case("json in capitals", post("echo", '{"a": 1}', {"content-type": "Application/JSON"})),
    case("json suffix", post("echo", '{"a": 1}', {"content-type": "application/vnd.x+json"})),
    case("broken json", post("echo", '{"a": ', JSON)),
    case("json NaN", post("echo", '{"a": NaN}', JSON)),
    case("json key twice", post("echo", '{"a": 1, "a": 2}', JSON)),
    case("json with a byte order mark", post("echo", b"\xef\xbb\xbf[1]", JSON)),
    case("plain text", post("echo", "gr\u00fc\u00df".encode(), TEXT), body=dumps({"body": ["str", "gr\u00fc\u00df"]})),
    case("text that is no utf-8", post("echo", b"\xff\xfe", TEXT)),
    case("csv", post("echo", "1,2", {"content-type": "text/csv"})),
    case("no content type", post("echo", b"abc", {})),
    case("unknown content type", post("echo", b"abc", {"content-type": "image/png"})),
    case("empty body", post("echo"), body=dumps({"body": ["bytearray", ""]})),
    case("empty json body", post("echo", b"", JSON)),
    case("form", form("echo", data="1", other="x+y%21")),
    case("curl's json without a type", post("echo", '{"a": 1}', {"content-type": "application/x-www-form-urlencoded"})),
    case("multipart fields", multipart("echo", ("data", "", "", b"1"), ("b", "", "application/json", b"[1]"))),
    case("multipart file", multipart("echo", ("data", "a.bin", "application/octet-stream", b"\x00\xff"))),
    case("multipart json file", multipart("echo", ("data", "a.json", "application/json", b'{"a": 1}'))),
    case("multipart text file", multipart("echo", ("data", "a.txt", "text/plain", b"text"))),
    case("multipart name twice", multipart("echo", ("data", "", "", b"1"), ("data", "", "", b"2"))),
    case("GET", Call("GET", "/predictions/echo")),
    case("PUT", Call("PUT", "/predictions/echo", b"abc", BYTES)),
    case("HEAD", Call("HEAD", "/predictions/echo")),
    case("DELETE", Call("DELETE", "/predictions/echo")),
    case("query", post("echo?a=1&b=2", b"abc")),
    case("slash at the end", post("echo/", b"abc")),
    case("version", post("echo/1.0", b"abc")),
    case("path behind the version", post("echo/1.0/more/path", b"abc")),
    case("unknown version", post("echo/2.0", b"abc"), status=404),
    case("unknown model", post("nobody", b"abc"), status=404),
    case("no model", Call("POST", "/predictions"), status=404),
    case("unknown path", Call("GET", "/nothing"), status=404),
    case("root", Call("GET", "/"), status=405),
    case("ping", Call("GET", "/ping"), body=dumps({"status": "Healthy"}) + b"\n"),
    case("ping by POST", Call("POST", "/ping")),
    case("invocations", Call("POST", "/invocations?model_name=echo", b"abc", BYTES)),
    case("invocations without a name", Call("POST", "/invocations", b"abc", BYTES), status=400),
    case("invoke", Call("POST", "/models/echo/invoke?a=1", b"abc", BYTES)),
    case("older predict", Call("POST", "/echo/predict?a=1", b"abc", BYTES)),
    case("explanations of a function", post("echo", b"abc", path="/explanations/")),
    case("openapi of the api", Call("OPTIONS", "/"), normal=lambda body: sorted(json.loads(body))),
    case("openapi of a model", Call("OPTIONS", "/predictions/echo"), normal=lambda body: sorted(json.loads(body))),
    case("v1 path, no envelope", v1("echo", [1])),
    case("v2 path, no envelope", v2("echo", tensor("x", "FP32", [1], [1.5]))),
    case("too large", post("echo", b"x" * 6_553_501), status=413),
    case("largest", post("echo", b"x" * 6_000_000), normal=len),
]

# What an answer may be, and how a handler fails ---------------------------------------------------------------------

ANSWERS = [
    moded("bytes", "bytes", body=b"\x00\xff raw"),
    moded("bytearray", "bytearray"),
    moded("string", "text", body="gr\u00fc\u00df".encode()),
    moded("object", "object", body=dumps({"name": "gr\u00fc\u00df", "nested": {"list": [1, 2.5, None, True]}})),
    moded("nested list", "list"),
    moded("integer", "integer", body=b"3"),
    moded("None as a row's answer", "none"),
    moded("NaN", "nan", body=b'{\n  "x": NaN,\n  "y": Infinity\n}'),
    moded("empty string", "empty"),
    moded("tensor", "tensor"),
    moded("numpy array", "numpy", 503),
    moded("numpy scalar", "numpy_scalar", 503),
    moded("set", "set", 503),
    moded("tuple of the batch", "tuple", 503),
    moded("no answer at all", "nothing", 503),
    moded("one answer too many", "many", 503),
    moded("no answers", "few", 503),
    moded("a mapping", "mapping", 503),
    moded("exception", "raise broken", 503),
    moded("unknown mode", "unheard", 503),
    moded("MemoryError", "memory", 507),
    moded("an exception that says CUDA", "raise CUDA error", 507),
    moded("PredictionException", "prediction broken", 500),
    moded("PredictionException with a code", "prediction_code 418", 418),
    moded("status", "status 202", 202),
    moded("status of an error", "status 422", 422),
    moded("status of all", "all_status 201", 201),
    moded("status 204", "status 204", 204),
    moded("content type", "content_type image/png"),
    moded("header", "header seen", headers=("x-own",)),
    moded("chunks", "chunks 3", body=b"0 1 2 end"),
    moded("chunks, then an exception", "chunks_raise later", status="ConnectionResetError"),
    moded("after an error", "text"),
    moded("printing", "print lines"),
]

CONTEXT = [
    case("at load and at a request", post("context", b"x", {"X-Own": "seen", **BYTES}), normal=lambda body: context(body)),
    case("at an explanation", post("context", b"x", BYTES, "/explanations/"), normal=lambda body: context(body)),
    case("explain by header", post("context", b"x", {"explain": "True", **BYTES}), normal=lambda body: context(body)),
    case("path behind the version, seen", post("context/1.0/a/b", b"x"), normal=lambda body: context(body)),
    case(
        "parts' types",
        multipart("context", ("data", "a.png", "image/png", b"1"), ("b", "", "", b"2")),
        normal=lambda body: context(body),
    ),
]


def context(body: bytes) -> Any:
    """Without the date, which the archiver sets."""
    told = json.loads(body)
    told["loaded"]["manifest"].pop("createdOn")
    return told


EAGER = [
    case("json", post("eager", '{"x": [1, 2, 3]}', JSON)),
    case("json bytes", post("eager", '{"x": [1, 2, 3]}')),
    case("form", form("eager", x="[1,2,3]")),
    case("multipart", multipart("eager", ("x", "", "", b"[1,2,3]"))),
    case("wrong size", post("eager", '{"x": [1, 2]}', JSON), status=503),
    case("no numbers", post("eager", '{"x": "abc"}', JSON), status=503),
]

FORMATS = [
    case(name, post(name, b"x")) for name in ("stored", "unpacked", "packed")
] + [
    case("function by name", post("named", b"x"), body=b"by name"),
    case("function beside a class", post("both", b"x"), body=b"the function"),
    case("imported classes", post("imports", b"x")),
    case("neighbours", post("neighbours", b"x")),
]  # fmt: skip

DYING = [
    case("sys.exit, then good", post("dying", "exit", TEXT), post("dying", "text", TEXT), status=[500, 200]),
    case("os._exit, then good", post("dying", "die", TEXT), post("dying", "text", TEXT), status=[500, 200]),
    case("too slow, then good", post("dying", "sleep 30", TEXT), post("dying", "text", TEXT), status=[500, 200]),
    case("slow, but in time", post("dying", "sleep 1", TEXT), body=b"slept"),
]

GRPC = "org.pytorch.serve.grpc.inference.InferenceAPIsService/"
GRPC_MANAGEMENT = "org.pytorch.serve.grpc.management.ManagementAPIsService/"


def predictions(model: str, streams: bool = False, version: str = "", **fields: bytes) -> GrpcCall:
    message = {"model_name": model, "model_version": version, "input": fields}
    return GrpcCall(GRPC + ("StreamPredictions" if streams else "Predictions"), message, streams)


def asked(method: str, **message: Any) -> GrpcCall:
    return GrpcCall(GRPC_MANAGEMENT + method, message, is_management=True)


CALLS = [
    case("gRPC ping", GrpcCall(GRPC + "Ping"), status="OK"),
    case("gRPC data", predictions("echo", data=b"abc"), status="OK"),
    case("gRPC body", predictions("echo", body=b"[1]"), status="OK"),
    case("gRPC several fields", predictions("echo", a=b"1", b=b"2"), status="OK"),
    case("gRPC no field", predictions("echo"), status="OK"),
    case("gRPC version", predictions("echo", version="1.0", data=b"x"), status="OK"),
    case("gRPC unknown version", predictions("echo", version="9.0", data=b"x"), status="INTERNAL"),
    case("gRPC unknown model", predictions("nobody", data=b"x"), status="INTERNAL"),
    case("gRPC object", predictions("modes", body=b"object"), status="OK"),
    case("gRPC exception", predictions("modes", body=b"raise broken"), status="UNAVAILABLE"),
    case("gRPC wrong type", predictions("modes", body=b"tuple"), status="UNAVAILABLE"),
    case("gRPC PredictionException", predictions("modes", body=b"prediction broken"), status="INTERNAL"),
    case("gRPC out of memory", predictions("modes", body=b"memory"), status="INTERNAL"),
    case("gRPC status", predictions("modes", body=b"status 422"), status="OK"),
    case("gRPC chunks", predictions("modes", True, body=b"chunks 3"), status="OK"),
    case("gRPC stream of one", predictions("modes", True, body=b"text"), status="INTERNAL"),
    case("gRPC exception in a stream", predictions("modes", True, body=b"raise broken"), status="UNAVAILABLE"),
]

BARE = Scene(
    "bare",
    ["echo", "modes", "context", "eager", "dying", "named", "both", "imports", "neighbours", "stored", "unpacked", "packed"],
    [*REQUESTS, *ANSWERS, *CONTEXT, *EAGER, *FORMATS, *DYING, *CALLS],
)

# Stock handlers -----------------------------------------------------------------------------------------------------

STOCK = Scene(
    "stock",
    ["classifier", "unlabelled", "detector", "segmenter", "text", "onnx", "compiled", "scripted"],
    [
        case("image", post("classifier", IMAGE)),
        case("image by multipart", multipart("classifier", ("data", "a.png", "image/png", IMAGE))),
        case("image as text", post("classifier", json.dumps({"data": IMAGE_TEXT}), JSON), status=503),
        case("image as base64 text", post("classifier", IMAGE_TEXT, TEXT)),
        case("image as a form", form("classifier", data="x"), status=503),
        case("no image", post("classifier", b"no image"), status=503),
        case("image, no labels", post("unlabelled", IMAGE)),
        case("image explained", post("classifier", IMAGE, path="/explanations/"), normal=len),
        case("detector", post("detector", IMAGE)),
        case("segmenter", post("segmenter", IMAGE)),
        case("text", post("text", "The film I'm good", TEXT)),
        case("text as bytes", post("text", "<b>The film</b>")),
        case("text with unknown words", post("text", "unheard", TEXT), status=503),
        case("text explained", post("text", "the film", TEXT, "/explanations/")),
        case("onnx", post("onnx", "[1.0, 2.0, 3.0]", JSON)),
        case("compiled", post("compiled", "[1.0, 2.0, 3.0]", JSON)),
        case("base handler, no envelope", post("scripted", "[1.0, 2.0, 3.0]", JSON), status=503),
    ],
)

# KServe's envelopes ---------------------------------------------------------------------------------------------------

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


V2 = Scene(
    "v2",
    ["scripted", "v2_echo"],
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
        case("metadata", Call("GET", "/v2/models/v2_echo"), status=404),
        case("ready", Call("GET", "/v2/models/v2_echo/ready"), status=404),
        case("server ready", Call("GET", "/v2/health/ready"), status=404),
    ],
    {"service_envelope": "kservev2"},
    snapshot={"scripted": {}, "v2_echo": {}},
)

JSON_ENVELOPE = Scene(
    "json-envelope",
    ["scripted"],
    [
        case("instances", post("scripted", '{"instances": [[1.0, 2.0, 3.0]]}', JSON)),
        case("integers", post("scripted", '{"instances": [[1, 2, 3]]}', JSON), status=503),
        case("without the key", post("scripted", "{}", JSON), status=503),
    ],
    {"service_envelope": "json"},
)

BODY_ENVELOPE = Scene(
    "body-envelope",
    ["scripted"],
    [case("rows", post("scripted", "[1.0, 2.0, 3.0]", JSON)), case("integers", post("scripted", "[1, 2, 3]", JSON), status=503)],
    {"service_envelope": "body"},
)

# Batches ------------------------------------------------------------------------------------------------------------


def rows(body: bytes) -> Any:
    """Whose answer it is; how many came together is a matter of the moment."""
    return json.loads(body)["row"]


BATCHED = Scene(
    "batched",
    ["batched"],
    [
        case("alone", post("batched", b"a")),
        case("four at once", *(post("batched", row) for row in "abcd"), together=True, normal=rows),
        case("nine at once", *(post("batched", row) for row in "abcdefghi"), together=True, normal=rows),
        case("queue full", *(post("batched", b"slow 0.2") for _ in range(20)), together=True, status=[], is_a_set=True, normal=rows),
        case("a poisoned row among good ones", *(post("batched", row) for row in ("a", "b", "poison", "c")),
             together=True, status=[503] * 4),
        case("after it", post("batched", b"a")),
    ],
)  # fmt: skip

# Management ---------------------------------------------------------------------------------------------------------


def described(body: bytes) -> Any:
    """Without what differs from run to run."""
    answer = json.loads(body)
    for model in answer if isinstance(answer, list) else []:
        for worker in model["workers"]:
            for key in ("id", "startTime", "memoryUsage", "pid", "gpuUsage"):
                worker[key] = type(worker[key]).__name__
        model["modelUrl"] = model["modelUrl"].rpartition("/")[2]
    return answer


def plain(body: bytes) -> Any:
    """Paths and times of a message gone."""
    return re.sub(r"(/[\w.-]+)+/", "/…/", body.decode())


def registered(file: str, **query: Any) -> Call:
    more = "".join(f"&{key}={value}" for key, value in query.items())
    return manage("POST", f"/models?url={file}{more}")


MANAGED = Scene(
    "managed",
    ["echo", "two-1", "two-2", "named", "modes", "two_classes", "no_class", "bad_import", "bad_initialize", "vllm",
     "no_weights", "weightless", "explained"],
    [
        case("list", manage("GET", "/models")),
        case("list, one a page", manage("GET", "/models?limit=1")),
        case("describe", manage("GET", "/models/echo"), normal=described),
        case("describe a version", manage("GET", "/models/echo/1.0"), normal=described),
        case("describe all versions", manage("GET", "/models/echo/all"), normal=described),
        case("describe nobody", manage("GET", "/models/nobody"), status=404),
        case("describe no version", manage("GET", "/models/echo/7.0"), status=404),
        case("describe with the handler's words", manage("GET", "/models/echo?customized=true"), normal=described),
        case("register", registered("named.mar", initial_workers=1, synchronous="true"), post("named", b"x")),
        case("register again", registered("named.mar", initial_workers=1, synchronous="true"), status=409),
        case("register nothing", manage("POST", "/models"), status=400),
        case("register a missing file", registered("missing.mar"), status=404),
        case("register outside the store", registered("../config/config.properties"), status=404),
        case("register under another name", registered("modes.mar", model_name="other", initial_workers=1, synchronous="true"),
             post("other", "text", TEXT)),
        case("register with settings",
             registered("explained.mar", batch_size=3, max_batch_delay=70, response_timeout=9, initial_workers=1, synchronous="true"),
             manage("GET", "/models/explained"), normal=described),
        case("describe with the handler's own words", manage("GET", "/models/explained?customized=true"), normal=described),
        case("register without workers", registered("modes.mar", model_name="idle", initial_workers=0), post("idle", "text", TEXT), status=[200, 503]),
        case("ping beside a model without workers", Call("GET", "/ping")),
        case("scale from none", manage("PUT", "/models/idle?min_worker=1&synchronous=true"), post("idle", "text", TEXT)),
        case("scale by and by", manage("PUT", "/models/idle?min_worker=1"), status=202),
        case("scale to none", manage("PUT", "/models/idle?min_worker=0&synchronous=true"), post("idle", "text", TEXT), status=[200, 503]),
        case("scale to nonsense", manage("PUT", "/models/idle?min_worker=5&max_worker=1"), status=400),
        case("scale nobody", manage("PUT", "/models/nobody?min_worker=1"), status=404),
        *(case(f"register {name.replace('_', ' ')}", registered(f"{name}.mar", initial_workers=1, synchronous="true"),
               manage("GET", f"/models/{name}"), status=[500, 404], normal=plain)
          for name in ("two_classes", "no_class", "bad_import", "bad_initialize", "vllm", "no_weights")),
        case("register eager without weights", registered("weightless.mar", initial_workers=1, synchronous="true")),
        case("first version", registered("two-1.mar", initial_workers=1, synchronous="true"), post("two", b"x")),
        case("second version", registered("two-2.mar", initial_workers=1, synchronous="true"), post("two/2.0", b"x"), post("two", b"x")),
        case("describe both", manage("GET", "/models/two/all"), normal=described),
        case("another default", manage("PUT", "/models/two/2.0/set-default"), post("two", b"x")),
        case("a default that is none", manage("PUT", "/models/two/9.0/set-default"), status=404),
        case("unregister the default", manage("DELETE", "/models/two/2.0"), status=403),
        case("unregister the other", manage("DELETE", "/models/two/1.0"), post("two/1.0", b"x"), status=[200, 404]),
        case("unregister the last", manage("DELETE", "/models/two"), post("two", b"x"), status=[200, 404]),
        case("unregister nobody", manage("DELETE", "/models/nobody"), status=404),
        case("wrong method", manage("PATCH", "/models/echo"), status=405),
        case("gRPC describe", asked("DescribeModel", model_name="echo"), status="OK", normal=described),
        case("gRPC describe nobody", asked("DescribeModel", model_name="nobody"), status="NOT_FOUND"),
        case("gRPC list", asked("ListModels", limit=1), status="OK"),
        case("gRPC unregister", asked("UnregisterModel", model_name="other"), predictions("other", body=b"text"),
             status=["OK", "INTERNAL"]),
        case("inference on the management port", Call("POST", "/predictions/echo", b"x", BYTES, True), status=404),
        case("management on the inference port", Call("GET", "/models"), status=404),
    ],
    loaded="echo.mar",
    models=["echo"],
)  # fmt: skip

# The Open Inference Protocol over gRPC ---------------------------------------------------------------------------------

def opened(method: str, **message: Any) -> GrpcCall:
    """The server puts its own package in front: TorchServe's is not KServe's."""
    return GrpcCall(f"GRPCInferenceService/{method}", message)


def infer(name: str, datatype: str, shape: list[int], model: str = "v2_echo", **contents: Any) -> GrpcCall:
    tensor = {"name": name, "datatype": datatype, "shape": shape, "contents": contents}
    return opened("ModelInfer", model_name=model, model_version="1.0", id="one", inputs=[tensor])


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

SCENES = {scene.name: scene for scene in [BARE, STOCK, V1, V1_BATCHED, V2, V2_GRPC, JSON_ENVELOPE, BODY_ENVELOPE, BATCHED, MANAGED]}
