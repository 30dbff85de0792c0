"""A transformer and its predictor answer as one model, wherever the predictor is."""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torpor.predictors.protocol.messages import message

MODELS = Path(__file__).parent / "models"
COUNTS = MODELS / "counts"

Chained = Callable[..., Any]


@pytest.fixture(scope="module")
def predictor(serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The predictor `counts` by itself, and its Unix socket."""
    socket = tmp_path_factory.mktemp("pod") / "predictor.sock"
    return serve(COUNTS, "--unix-socket", str(socket)), socket


@pytest.fixture(scope="module")
def started() -> dict[tuple[str, ...], Any]:
    return {}


@pytest.fixture(params=["process", "pod", "remote", "remote v1", "remote gRPC"])
def chained(request: pytest.FixtureRequest, serve: Callable[..., Any], started: dict[tuple[str, ...], Any]) -> Chained:
    """A transformer with the predictor `counts` behind it: in its process, in its pod, or elsewhere."""

    def run(transformer: str, *options: str) -> Any:
        key = (request.param, transformer, *options)
        if key not in started:
            where = ["--predictor", str(COUNTS)]
            if request.param != "process":
                behind, socket = request.getfixturevalue("predictor")
                where[1] = f"unix:{socket}" if request.param == "pod" else behind.address
            if protocol := {"remote v1": "v1", "remote gRPC": "grpc-v2"}.get(request.param):
                where += ["--predictor-protocol", protocol]
            started[key] = serve(MODELS / transformer, "--model-name", "counts", *where, *options)
        return started[key]

    return run


def said(connection: Any, words: list[str]) -> list[str]:
    reply = connection.request("POST", "/v1/models/counts:predict", json.dumps({"instances": words}).encode())
    assert reply.status == 200, reply
    return [prediction["said"] for prediction in reply.json()["predictions"]]


def infer(words: list[str], **fields: Any) -> bytes:
    tensor = {"name": "word", "datatype": "BYTES", "shape": [len(words)], "data": words}
    return json.dumps({"inputs": [tensor]} | fields).encode()


def total(word: str) -> str:
    return f"{sum(map(ord, word)):g}"


def test_rows_of_any_length_keep_their_order(chained: Chained, connect: Any) -> None:
    """Words of several lengths go to the predictor by length and come back in the caller's order."""
    connection = connect(chained("words"))
    words = ["torpor", "a", "sleeps", "b", "deep", "c"]
    assert said(connection, words) == [total(word) for word in words]
    reply = connection.request("POST", "/v2/models/counts/infer", infer(words, id="seven"))
    assert reply.json()["id"] == "seven"
    outputs = {output["name"]: output["data"] for output in reply.json()["outputs"]}
    assert outputs["said"] == [total(word) for word in words]
    assert outputs["total"] == [sum(map(ord, word)) for word in words]


def test_callers_at_the_same_time_get_their_own_rows(chained: Chained, connect_http1: Any) -> None:
    """Many callers, whose rows meet in both batches."""
    server = chained("words")
    words = [chr(97 + n) * (1 + n % 4) for n in range(24)]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda word: said(connect_http1(server), [word]), words))
    assert answers == [[total(word)] for word in words]


def test_an_event_is_answered_like_a_request(chained: Chained, connect_http1: Any) -> None:
    """Its headers go on to the predictor, to which it is an event too, and whose answer is read all the same."""
    headers = {"ce-specversion": "1.0", "ce-id": "7", "ce-source": "/here", "ce-type": "word"}
    reply = connect_http1(chained("words")).request("POST", "/", infer(["torpor", "a"]), headers)
    assert reply.status == 200, reply
    outputs = {output["name"]: output["data"] for output in reply.json()["outputs"]}
    assert outputs["said"] == [total("torpor"), total("a")]
    assert reply.headers["ce-correlationid"] == "7"


def test_what_is_declared_is_told(chained: Chained, connect: Any) -> None:
    """Callers see what the transformer takes and gives, not the predictor's tensors."""
    metadata = connect(chained("words")).request("GET", "/v2/models/counts").json()
    assert metadata["inputs"] == [{"name": "word", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in metadata["outputs"]] == ["said", "total"]


def test_grpc_asks_the_same_model(chained: Chained, grpc_infer: Any) -> None:
    """Raw contents both ways."""
    request = message("inference.ModelInferRequest")(
        model_name="counts", inputs=[{"name": "word", "datatype": "BYTES", "shape": [2]}],
        raw_input_contents=[b"".join(len(w).to_bytes(4, "little") + w for w in (b"ab", b"c"))],
    )  # fmt: skip
    response = grpc_infer(chained("words"))(request, timeout=20)
    by_name = dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=True))
    assert np.frombuffer(by_name["total"], "<f4").tolist() == [195.0, 99.0]


@pytest.mark.parametrize(
    ("word", "status", "text"),
    [
        pytest.param("", 400, "word = '', must have a letter", id="preprocess refuses it"),
        pytest.param("?", 500, "preprocess raised RuntimeError", id="preprocess fails"),
        pytest.param("!", 500, "the model raised RuntimeError", id="predict fails"),
        pytest.param("#", 500, "postprocess raised RuntimeError", id="postprocess fails"),
    ],
)
def test_a_bad_row_costs_its_caller_alone(
    chained: Chained, connect_http1: Any, word: str, status: int, text: str
) -> None:
    """Whichever step it fails in, and whoever was in the same batches."""
    server = chained("words")
    with ThreadPoolExecutor(9) as pool:
        path, good = "/v2/models/counts/infer", [f"{letter}" for letter in "abcdefgh"]
        bad = pool.submit(lambda: connect_http1(server).request("POST", path, infer([word])))
        answers = list(pool.map(lambda one: said(connect_http1(server), [one]), good))
    assert answers == [[total(one)] for one in good]
    assert bad.result().status == status
    assert text in bad.result().error()


def test_a_bad_row_fails_its_whole_request(chained: Chained, connect_http1: Any) -> None:
    """Of rows that went apart by length one fails: the caller gets its error, once."""
    connection = connect_http1(chained("words"))
    reply = connection.request("POST", "/v2/models/counts/infer", infer(["ab", "!", "abc"]))
    assert (reply.status, reply.error()[:9]) == (500, "the model")
    assert said(connection, ["a"]) == ["97"]


def test_outputs_are_those_asked_for(chained: Chained, connect_http1: Any) -> None:
    """Of what postprocess gives; another name is refused before anything runs."""
    connection = connect_http1(chained("words"))
    path = "/v2/models/counts/infer"
    reply = connection.request("POST", path, infer(["a"], outputs=[{"name": "said"}]))
    assert [output["name"] for output in reply.json()["outputs"]] == ["said"]
    refused = connection.request("POST", path, infer(["a"], outputs=[{"name": "doubled"}]))
    assert refused.error() == "output 'doubled' is unknown, must be one of 'said', 'total'"


def test_coroutines_see_their_caller(chained: Chained, connect: Any) -> None:
    """Headers, id and parameters reach both methods, which run on the event loop."""
    connection = connect(chained("late"))
    reply = connection.request("POST", "/v2/models/counts/infer", infer(["a", "bc"], id="7"), {"x-who": "me"})
    (output,) = reply.json()["outputs"]
    assert output["data"] == ["me 7 97", "me 7 197"]


def test_a_deadline_ends_a_coroutine(chained: Chained, connect: Any) -> None:
    """Its caller is told, and its rows count no more."""
    connection = connect(chained("late", "--max-queue-rows", "1"))
    for _ in range(2):
        reply = connection.request("POST", "/v2/models/counts/infer", infer(["wait"]), {"grpc-timeout": "20m"})
        assert reply.status == 504
    assert connection.request("POST", "/v2/models/counts/infer", infer(["a"], id="1")).status == 200


def test_a_transformer_may_have_one_half(chained: Chained, connect: Any) -> None:
    """Without a preprocess its callers send what the predictor takes."""
    connection = connect(chained("plain"))
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    reply = connection.request("POST", "/v2/models/counts/infer", json.dumps({"inputs": [tensor]}).encode())
    assert reply.json()["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [1], "data": [1.5]}]


def test_steps_are_counted(chained: Chained, connect: Any) -> None:
    """By KServe's names."""
    connection = connect(chained("late"))
    said = connection.request("POST", "/v2/models/counts/infer", infer(["a"], id="1"))
    assert said.status == 200
    text = connection.request("GET", "/metrics").body.decode()
    for method in ("preprocess", "postprocess"):
        assert re.search(rf'^request_{method}_seconds_count{{model_name="counts",model_version="1"}} [1-9]', text, re.M)
