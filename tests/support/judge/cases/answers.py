"""What an answer may be, and how a handler fails."""

from typing import Any

from judge.calls import TEXT, case, dumps, post
from judge.scenes import Case


def moded(name: str, mode: str, status: int | str = 200, **more: Any) -> Case:
    return case(name, post("modes", mode, TEXT), status=status, **more)


def pieces(name: str, mode: str, status: int | str = 200, **more: Any) -> Case:
    return moded(name, mode, status, has_pieces=True, **more)


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
    pieces("chunks", "chunks 3", body=b"0 1 2 end"),
    pieces("chunks of every type", "chunks_of_types"),
    pieces("chunks, some of them empty", "chunks_with_empty"),
    moded("a large chunk", "chunks_large 100000", normal=len),
    pieces("chunks with status and headers", "chunks_headed seen", 202, headers=("x-own",)),
    pieces("chunks, then status and headers", "chunks_late seen", headers=("x-own",)),
    pieces("chunks, then an object", "chunks_then object"),
    pieces("chunks, then an exception", "chunks_then raise later", "ConnectionResetError"),
    pieces("chunks, then no answer", "chunks_then few", "ConnectionResetError"),
    pieces("chunks, then a wrong type", "chunks_then set", "ConnectionResetError"),
    case("chunks, explained", post("modes", "chunks 2", TEXT, "/explanations/"), has_pieces=True),
    moded("after an error", "text"),
    moded("printing", "print lines"),
]


DYING = [
    case("sys.exit, then good", post("dying", "exit", TEXT), post("dying", "text", TEXT), status=[500, 200]),
    case("os._exit, then good", post("dying", "die", TEXT), post("dying", "text", TEXT), status=[500, 200]),
    case("too slow, then good", post("dying", "sleep 30", TEXT), post("dying", "text", TEXT), status=[500, 200]),
    case(
        "chunks, then an exit",
        post("dying", "chunks_then exit", TEXT),
        post("dying", "text", TEXT),
        status=["ConnectionResetError", 200],
    ),
    case(
        "chunks, then too slow",
        post("dying", "chunks_then sleep 30", TEXT),
        post("dying", "text", TEXT),
        status=["ConnectionResetError", 200],
    ),
    case("slow, but in time", post("dying", "sleep 1", TEXT), body=b"slept"),
]
