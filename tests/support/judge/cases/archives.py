"""Archives of every form with handlers of every kind, on TorchServe's own paths and its gRPC services."""

import json
from typing import Any

from judge.calls import BYTES, JSON, case, form, multipart, post, predictions, sequence
from judge.cases.answers import ANSWERS, DYING
from judge.cases.requests import REQUESTS
from judge.messages import INFERENCE
from judge.scenes import GrpcCall, Scene


def context(body: bytes) -> Any:
    """Without the date, which the archiver sets."""
    told = json.loads(body)
    told["loaded"]["manifest"].pop("createdOn")
    return told


CONTEXT = [
    case("at load and at a request", post("context", b"x", {"X-Own": "seen", **BYTES}), normal=context),
    case("at an explanation", post("context", b"x", BYTES, "/explanations/"), normal=context),
    case("explain by header", post("context", b"x", {"explain": "True", **BYTES}), normal=context),
    case("path behind the version, seen", post("context/1.0/a/b", b"x"), normal=context),
    case(
        "parts' types",
        multipart("context", ("data", "a.png", "image/png", b"1"), ("b", "", "", b"2")),
        normal=context,
    ),
]


EXPLANATIONS = [
    case("explanation", post("explained", '{"x": [1.0, 2.0, 3.0]}', JSON, "/explanations/")),
    case("explanation by a version", post("explained/1.0", '{"x": [1.0, 2.0, 3.0]}', JSON, "/explanations/")),
    case("explanation by no version", post("explained/2.0", '{"x": [1.0]}', JSON, "/explanations/"), status=404),
    case("explanation by nobody", post("nobody", '{"x": [1.0]}', JSON, "/explanations/"), status=404),
    case("explanation of what can't", post("eager", '{"x": [1, 2, 3]}', JSON, "/explanations/"), status=503),
    case("explanation that fails", post("explained", '{"x": "abc"}', JSON, "/explanations/"), status=503),
    case("prediction of what explains", post("explained", '{"x": [1.0, 2.0, 3.0]}', JSON)),
]

EAGER = [
    case("eager, json", post("eager", '{"x": [1, 2, 3]}', JSON)),
    case("eager, json bytes", post("eager", '{"x": [1, 2, 3]}')),
    case("eager, form", form("eager", x="[1,2,3]")),
    case("eager, multipart", multipart("eager", ("x", "", "", b"[1,2,3]"))),
    case("eager, wrong size", post("eager", '{"x": [1, 2]}', JSON), status=503),
    case("eager, no numbers", post("eager", '{"x": "abc"}', JSON), status=503),
]

FORMATS = [
    case(name, post(name, b"x")) for name in ("stored", "unpacked", "packed")
] + [
    case("function by name", post("named", b"x"), body=b"by name"),
    case("function beside a class", post("both", b"x"), body=b"the function"),
    case("imported classes", post("imports", b"x")),
    case("neighbours", post("neighbours", b"x")),
]  # fmt: skip

CALLS = [
    case("gRPC ping", GrpcCall(f"{INFERENCE}.InferenceAPIsService/Ping"), status="OK"),
    case("gRPC data", predictions("echo", data=b"abc"), status="OK"),
    case("gRPC body", predictions("echo", body=b"[1]"), status="OK"),
    # A map has no order: protobuf writes it in any.
    case("gRPC several fields", predictions("echo", a=b"1", b=b"2"), status="OK", normal=json.loads),
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
    case("gRPC chunks", predictions("modes", True, body=b"chunks 3"), status="OK", has_pieces=True),
    case(
        "gRPC chunks of every type", predictions("modes", True, body=b"chunks_of_types"), status="OK", has_pieces=True
    ),
    case(
        "gRPC chunks, some of them empty",
        predictions("modes", True, body=b"chunks_with_empty"),
        status="OK",
        has_pieces=True,
    ),
    case(
        "gRPC chunks with a status",
        predictions("modes", True, body=b"chunks_headed seen"),
        status="OK",
        has_pieces=True,
    ),
    case("gRPC stream of one", predictions("modes", True, body=b"text"), status="INTERNAL"),
    case("gRPC exception in a stream", predictions("modes", True, body=b"raise broken"), status="UNAVAILABLE"),
    case(
        "gRPC chunks, then an exception",
        predictions("modes", True, body=b"chunks_then raise later"),
        status="UNAVAILABLE",
        has_pieces=True,
    ),
    case("gRPC chunks in one message", predictions("modes", body=b"chunks 3"), status="OK"),
    case("gRPC stream of nobody", predictions("nobody", True, body=b"chunks 3"), status="INTERNAL"),
    case("gRPC sequence", sequence("echo", data=b"abc"), status="UNKNOWN"),
]

BARE = Scene(
    "bare",
    [
        "echo",
        "modes",
        "context",
        "explained",
        "eager",
        "dying",
        "named",
        "both",
        "imports",
        "neighbours",
        "stored",
        "unpacked",
        "packed",
    ],
    [*REQUESTS, *ANSWERS, *CONTEXT, *EXPLANATIONS, *EAGER, *FORMATS, *DYING, *CALLS],
)
