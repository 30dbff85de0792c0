"""Where torpor answers otherwise than TorchServe 0.12, and why. `docs/torchserve.md` repeats the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Difference:
    reason: str
    """A sentence for the docs."""

    cases: dict[str, str]
    """By `scene/case` what differs, by a pattern of them what may: words of comparison.ASPECTS, with commas."""


DIFFERENCES = [
    Difference(
        "A message says what was wrong; TorchServe's is one of a few sentences",
        {"*": "message"},
    ),
    Difference(
        "On KServe's paths answers are as KServe's own server has them: `application/json`, compact, errors with `error` alone",
        dict.fromkeys(["v1*/*", "v2/*", "v2-batched/*"], "content type, spacing, error object"),
    ),
    Difference(
        "A handler that fails, or whose answer is none, is 500 on every path: TorchServe's 503 asks a client to try again; "
        "`--handler-failure-status 503` has it",
        dict.fromkeys(
            [
                *(
                    f"bare/{name}"
                    for name in (
                        "numpy array",
                        "numpy scalar",
                        "set",
                        "tuple of the batch",
                        "no answer at all",
                        "one answer too many",
                        "no answers",
                        "a mapping",
                        "exception",
                        "unknown mode",
                        "eager, wrong size",
                        "eager, no numbers",
                        "explanation of what can't",
                        "explanation that fails",
                    )
                ),
                *(
                    f"stock/{name}"
                    for name in (
                        "image as text",
                        "image as a form",
                        "no image",
                        "text with unknown words",
                        "base handler, no envelope",
                    )
                ),
                *(f"v1/{name}" for name in ("integers", "ragged", "exception", "explain what can't")),
                "v2/explain what can't",
                "v2/exception",
                "v2/more answers than inputs",
                "json-envelope/integers",
                "body-envelope/integers",
            ],
            "status",
        )
        | dict.fromkeys(
            [
                "bare/gRPC exception",
                "bare/gRPC wrong type",
                "bare/gRPC exception in a stream",
                "bare/gRPC chunks, then an exception",
            ],
            "status, body",
        ),
    ),
    Difference(
        "A body that is no JSON, or lacks `instances` or `inputs`, is the caller's fault: 400",
        {
            "v1/without the key": "status, body",
            "v1/instances is no list": "status, body",
            "v1/broken json": "status",
            "v2/no inputs": "status",
            "v2/broken json": "status",
            "v2/wrong size": "status",
            "v2-grpc/wrong size": "status, body",
            "json-envelope/without the key": "status, body",
        },
    ),
    Difference(
        "An empty list is an answer, and no instances have none",
        {"v1/empty answer": "status, body", "v1/no instances": "status, body"},
    ),
    Difference(
        "Batches above 1 work under KServe's envelopes, and a row that fails costs the others of its batch nothing",
        {
            "v1-batched/three at once": "status, body",
            "v2-batched/three at once": "status, body",
            "batched/a poisoned row among good ones": "status, content type, body",
        },
    ),
    Difference(
        "The path decides what the handler gets, not a label",
        {"bare/v1 path, no envelope": "status, content type, body", "bare/v2 path, no envelope": "content type, body"},
    ),
    Difference(
        "KServe's health and metadata are there",
        {
            "bare/root": "status, body",
            "v2/metadata": "status, body",
            "v2/ready": "status, body",
            "v2/server ready": "status, body",
            "v2-grpc/model metadata": "body",
        },
    ),
    Difference(
        "A header's name is found in any case: HTTP/2 has lower case alone",
        {"bare/at load and at a request": "body"},
    ),
    Difference(
        "A body may have 64 MiB where nobody says otherwise (`max_request_size`, `--max-body-bytes`)",
        {"bare/too large": "status, body"},
    ),
    Difference(
        "A path that nobody has is refused as on every other path of the server",
        {"bare/no model": "error object", "bare/unknown path": "error object"},
    ),
    Difference(
        "The description of the API is at `/openapi.json`; OPTIONS of a prediction is a prediction",
        {"bare/openapi of the api": "status, body", "bare/openapi of a model": "content type, body"},
    ),
    Difference(
        "An answer that fails after its first piece ends without its last, and what came can be read; TorchServe resets the "
        "connection",
        dict.fromkeys(
            [
                "bare/chunks, then an exception",
                "bare/chunks, then no answer",
                "bare/chunks, then a wrong type",
                "bare/chunks, then an exit",
                "bare/chunks, then too slow",
            ],
            "status",
        ),
    ),
    Difference(
        "A unary gRPC call has all pieces of its answer; TorchServe's has the first alone",
        {"bare/gRPC chunks in one message": "body"},
    ),
    Difference(
        "Sequences are not there, and `StreamPredictions2` says so; TorchServe ends it with UNKNOWN and no word for a model "
        "without them",
        {"bare/gRPC sequence": "status, body"},
    ),
    Difference(
        "The name is the one that was asked for, as KServe's wrapper has it",
        {"v2/another name than the archive's": "body"},
    ),
    Difference(
        "A registration by JSON without `max_batch_delay` has 100 ms, as one by a query; TorchServe has -10000",
        {"managed/register by json": "body"},
    ),
    Difference(
        "What is registered already is ALREADY_EXISTS by gRPC; TorchServe says UNKNOWN and no word",
        {"managed/gRPC register again": "status, body"},
    ),
    Difference(
        "A gRPC stream of an answer at once is one message; it ends TorchServe's worker",
        {"bare/gRPC stream of one": "status, body"},
    ),
    Difference(
        "What is unknown over gRPC is NOT_FOUND everywhere, in other words",
        {
            "v2-grpc/unknown model ready": "body",
            "v2-grpc/unknown model": "status, body",
            "bare/gRPC unknown version": "status, body",
            "bare/gRPC unknown model": "status, body",
            "bare/gRPC stream of nobody": "status, body",
            "managed/gRPC describe nobody": "body",
            "managed/gRPC describe no version": "body",
            "managed/gRPC register a missing file": "body",
            "managed/gRPC scale nobody": "body",
            "managed/gRPC default that is none": "body",
            "managed/gRPC default of nobody": "body",
            "managed/gRPC unregister nobody": "body",
            "managed/gRPC unregister": "status, body",
        },
    ),
    Difference(
        "Over gRPC an error says what was wrong and names no Java class, and want of memory is RESOURCE_EXHAUSTED",
        {
            "bare/gRPC PredictionException": "body",
            "bare/gRPC out of memory": "status, body",
            "managed/gRPC register nothing": "body",
            "managed/gRPC register no class": "body",
            "managed/gRPC scale to nonsense": "body",
        },
    ),
    Difference(
        "A text in a tensor is the text; TorchServe's gRPC has it as JSON, with its quotes",
        {"v2-grpc/answers of text": "body", "v2-grpc/bytes": "body"},
    ),
]


def is_known(case: str, found: Sequence[str]) -> bool:
    """Whether it differs in just what is listed: all of what its own entry says, and nothing that no entry says."""
    must: set[str] = set()
    may: set[str] = set()
    for one in DIFFERENCES:
        for name, aspects in one.cases.items():
            if name == case:
                must.update(aspects.split(", "))
            elif "*" in name and fnmatchcase(case, name):
                may.update(aspects.split(", "))
    return must <= set(found) <= must | may


def table() -> str:
    """As Markdown."""
    lines = ["| why | where, and in what |", "|---|---|"]
    for one in DIFFERENCES:
        by_aspects: dict[str, list[str]] = {}
        for case, aspects in one.cases.items():
            by_aspects.setdefault(aspects, []).append(f"`{case}`")
        where = "; ".join(f"{aspects}: {', '.join(cases)}" for aspects, cases in by_aspects.items())
        lines.append(f"| {one.reason} | {where} |")
    return "\n".join(lines)
