"""Batches that overlap in a worker: one is prepared and finished while the device works on another."""

import concurrent.futures
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from archives import manifest, write_mar

KEEPER = """
import os, sys

class Keeper:
    def initialize(self, context):
        self.context = context
        self.loaded = [context.model_name]

    def preprocess(self, data):
        self.texts = [bytes(row["body"]).decode() if not isinstance(row["body"], str) else row["body"] for row in data]
        for text in self.texts:
            word, _, place = text.partition(" ")
            if word == "release":
                open(place, "w").write("go")
            if word == "unprepared":
                raise ValueError("in preprocess")
            if word == "exit":
                sys.exit(3)
        return list(self.texts)

    def inference(self, texts):
        import threading
        if texts[0].startswith("wait"):
            for place in texts[0].split()[1:]:
                open(place).read()
        if texts[0].startswith("fail"):
            raise ValueError("in inference")
        if texts[0].startswith("quit"):
            sys.exit(4)
        return [(text, threading.current_thread() is threading.main_thread()) for text in texts]

    def postprocess(self, pairs):
        if self.texts[0] == "unfinished":
            raise ValueError("in postprocess")
        self.context.metrics.add_counter("texts", len(pairs))
        header = self.context.get_request_header(0, "x-mine")
        return [{"text": text, "kept": self.texts, "header": header, "id": self.context.get_request_id(0),
                 "main": is_main, "pid": os.getpid(), "loaded": self.loaded} for text, is_main in pairs]

    def handle(self, data, context):
        return self.postprocess(self.inference(self.preprocess(data)))
"""


def archive(folder: Path, handler: str = KEEPER, overlaps: str = "true", **more: Any) -> Path:
    files = {"keeper.py": handler, "model.yaml": f"overlapBatches: {overlaps}\nminWorkers: 1\nresponseTimeout: 20\n"}
    return write_mar(folder / "keeper.mar", files, manifest("keeper", "keeper.py", configFile="model.yaml", **more))


@pytest.fixture(scope="module")
def server(serve, tmp_path_factory: pytest.TempPathFactory):
    return serve(archive(tmp_path_factory.mktemp("overlap")))


@pytest.fixture
def ask(server, connect_http1) -> Callable[[str], tuple[int, Any]]:
    def send(text: str) -> tuple[int, Any]:
        headers = {"content-type": "text/plain", "x-mine": text, "x-request-id": f"id of {text}"}
        reply = connect_http1(server).request("POST", "/predictions/keeper", text.encode(), headers)
        return reply.status, json.loads(reply.body)

    return send


def test_a_batch_is_prepared_while_the_device_works_on_another(ask, tmp_path: Path) -> None:
    """The first's inference ends by the second's preprocessing alone; each has its own state, context and answer."""
    gates = [tmp_path / "begun", tmp_path / "prepared"]
    for gate in gates:
        os.mkfifo(gate)
    texts = [f"wait {gates[0]} {gates[1]}", f"release {gates[1]}"]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(ask, texts[0])
        gates[0].write_text("")  # opens when the inference has
        second = pool.submit(ask, texts[1])
        answers = [first.result(), second.result()]
    for text, (status, answer) in zip(texts, answers, strict=True):
        assert status == 200
        assert (answer["text"], answer["kept"], answer["header"]) == (text, [text], text)
        assert (answer["id"], answer["main"], answer["loaded"]) == (f"id of {text}", True, ["keeper"])


def test_what_overlapping_batches_count_is_counted_once(ask, server, connect_http1) -> None:
    """Whichever lane counts."""

    def count() -> float:
        found = re.search(
            r"^texts_total{.*} (.*)$", connect_http1(server).request("GET", "/metrics").body.decode(), re.M
        )
        return float(found[1]) if found else 0.0

    ask("one")
    before = count()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert {status for status, _ in pool.map(ask, ["one"] * 20)} == {200}
    assert count() == before + 20


def test_an_error_is_its_own_batchs(ask) -> None:
    """Raised on the main thread, or by a lane."""
    texts = ["fail", "one", "unprepared", "two", "unfinished", "one", "fail"]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert [status for status, _ in pool.map(ask, texts)] == [500, 200, 500, 200, 500, 200, 500]


@pytest.mark.parametrize(("word", "status"), [("exit", 3), ("quit", 4)])
def test_a_handler_that_exits_ends_its_worker_and_costs_others_nothing(ask, word: str, status: int) -> None:
    """By whatever thread: those that it had beside it run again."""
    before = ask("one")[1]["pid"]
    texts = ["one", word, "two", "three"]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answers = dict(zip(texts, pool.map(ask, texts), strict=True))
    code, error = answers.pop(word)
    assert (code, error["message"]) == (500, f"Worker died: the handler ended its process with status {status}")
    assert {text: (found, said["text"]) for text, (found, said) in answers.items()} == {
        text: (200, text) for text in answers
    }
    assert ask("one")[1]["pid"] != before


FUNCTION = "def handle(data, context):\n    return data and ['x' for row in data]\n"


@pytest.mark.parametrize(
    ("handler", "overlaps", "reason"),
    [
        (
            FUNCTION,
            "true",
            "overlapBatches = true, must be false for a handler that is no class with a method inference",
        ),
        (KEEPER, "1", "keeper.mar: model.yaml: overlapBatches = 1, must be true or false"),
    ],
)
def test_what_cannot_overlap_is_said_at_the_start(
    failing_start, tmp_path: Path, handler: str, overlaps: str, reason: str
) -> None:
    """A function has no device's part."""
    status, log = failing_start(archive(tmp_path, handler, overlaps), "--host", "127.0.0.1")
    assert status in (1, 2)
    assert reason in log


@pytest.mark.parametrize("overlaps", ["false", "null"])
def test_a_handler_of_the_archives_own_does_not_overlap_unasked(
    start, connect_http1, tmp_path: Path, overlaps: str
) -> None:
    """It may keep more on itself than a copy keeps apart."""
    server = start(archive(tmp_path, KEEPER.replace("class Keeper", "COPIES = []\nclass Keeper").replace(
        "self.texts = [", "COPIES.append(id(self)); self.texts = ["
    ).replace('"loaded": self.loaded', '"loaded": len(set(COPIES))'), overlaps))  # fmt: skip

    def ask(text: str) -> Any:
        return json.loads(
            connect_http1(server)
            .request("POST", "/predictions/keeper", text.encode(), {"content-type": "text/plain"})
            .body
        )

    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert {answer["loaded"] for answer in pool.map(ask, ["one"] * 10)} == {1}
