"""Handlers that raise, end their process, hang or answer wrongly: what it costs them, and nobody else."""

import concurrent.futures
import json
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from archives import entry, manifest, write_mar, write_storage

FAULTY = """
import os, sys, time

SEEN = {}

class PredictionException(Exception):
    def __init__(self, message, error_code=500):
        super().__init__(message)
        self.message, self.error_code = message, error_code

def handle(data, context):
    if data is None:
        return None
    texts = [row["body"] for row in data]
    for text in texts:
        SEEN[text] = SEEN.get(text, 0) + 1
    if any(text.startswith("slow") for text in texts):
        time.sleep(0.3)
    if "raise" in texts:
        raise ValueError("a secret")
    if "refuse" in texts:
        raise PredictionException("not today", 418)
    if "memory" in texts:
        raise MemoryError
    if "exit" in texts:
        sys.exit(3)
    if "hang" in texts:
        time.sleep(600)
    if "count" in texts:
        return ["x"] * (len(texts) + 1)
    if "tuple" in texts:
        return tuple(texts)
    if "first" in texts and len(texts) > 1:
        return texts[:1]
    return [{1} if text == "type" else {"text": text, "pid": os.getpid()} for text in texts]
"""


@pytest.fixture(scope="module")
def server(serve, tmp_path_factory: pytest.TempPathFactory):
    """Two models of the same handler, one of them with several requests a batch, on one worker each."""
    root = tmp_path_factory.mktemp("faulty")
    write_mar(root / "model-store/faulty.mar", {"handler.py": FAULTY})
    settings = {"single": entry("faulty.mar"), "batched": entry("faulty.mar", batchSize=4, maxBatchDelay=1000)}
    return serve(write_storage(root, {name: {"1.0": said | {"responseTimeout": 2}} for name, said in settings.items()}))


@pytest.fixture
def ask(server, connect_http1):
    """Send a text to a model: status, and its answer's object or the error's text."""

    def send(model: str, text: str) -> tuple[int, Any]:
        reply = connect_http1(server).request(
            "POST", f"/predictions/{model}", text.encode(), {"content-type": "text/plain"}
        )
        answer = json.loads(reply.body)
        return reply.status, answer.get("message", answer)

    return send


@pytest.fixture
def together(ask):
    """Send texts to the batched model so that they wait for one another behind a slow one; the answers by text."""

    def send(*texts: str) -> dict[str, tuple[int, Any]]:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            asked = {text: pool.submit(ask, "batched", text) for text in ("slow", *texts)}
            return {text: future.result() for text, future in asked.items()}

    return send


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("raise", 500, "Prediction failed: the handler raised ValueError"),
        ("refuse", 418, "not today"),
        ("memory", 507, "the device ran out of memory with rows = 1"),
        ("count", 500, "number of batch response mismatched: 2 items for one request"),
        ("tuple", 500, "Invalid model predict output: tuple, must be a list"),
        ("type", 500, "Unsupported model output data type: Object of type set is not JSON serializable"),
        ("exit", 500, "Worker died: the handler ended its process with status 3"),
        ("hang", 500, "Worker died: the handler took more than 2 s"),
    ],
)
def test_a_fault_is_its_own_requests(ask, together, text: str, status: int, message: str) -> None:
    """Whether it comes alone or with others, which are answered; the model goes on."""
    assert ask("single", text) == (status, message)
    assert ask("single", "good")[1]["text"] == "good"
    answers = together(text, "one", "two", "three", "four")
    assert answers.pop(text) == (status, message)
    assert {asked: (found, said["text"]) for asked, (found, said) in answers.items()} == {
        asked: (200, asked) for asked in answers
    }


def test_a_handlers_failure_is_torchserves_503_where_that_is_wanted(serve, connect_http1, tmp_path: Path) -> None:
    """On every path; a worker that ends is 500 there too, and what a handler says itself is as it says."""
    write_mar(tmp_path / "model-store/faulty.mar", {"handler.py": FAULTY})
    root = write_storage(tmp_path, {"single": {"1.0": entry("faulty.mar")}})
    client = connect_http1(serve(root, "--handler-failure-status", "503"))
    text = {"content-type": "text/plain"}
    for said, status in (("raise", 503), ("tuple", 503), ("refuse", 418), ("memory", 507), ("exit", 500)):
        reply = client.request("POST", "/predictions/single", said.encode(), text)
        assert (reply.status, "retry-after" in reply.headers) == (status, False)
    reply = client.request("POST", "/predictions/single", b"raise", text)
    assert reply.json()["type"] == "InternalServerException"
    assert client.request("POST", "/v1/models/single:predict", b'{"instances": [1]}').status == 503


def test_a_handler_that_answers_one_request_at_a_time_is_asked_so(together) -> None:
    """What it returned for several belongs to nobody."""
    answers = together("first", "one", "two", "three")
    assert Counter(status for status, _ in answers.values()) == {200: 5}
    assert all(said["text"] == asked for asked, (_, said) in answers.items())


def test_a_killed_worker_is_back(ask) -> None:
    """A process of its own: the kernel may kill it for want of memory."""
    before = ask("single", "good")[1]["pid"]
    os.kill(before, signal.SIGKILL)
    assert ask("single", "good")[1]["pid"] != before


def test_a_worker_that_dies_before_it_begins_costs_nothing(ask, server, connect_http1) -> None:
    """What it had not read was not its end; TorchServe answers 500."""
    before = ask("single", "good")[1]["pid"]
    os.kill(before, signal.SIGSTOP)
    client = connect_http1(server)
    stream = client.send("POST", "/predictions/single", b"late", {"content-type": "text/plain"})
    for _ in range(
        3
    ):  # the server has taken the request and handed it over, most likely; the answer is the same if not
        connect_http1(server).request("GET", "/ping")
    os.kill(before, signal.SIGKILL)
    reply = client.receive(stream)
    assert reply.status == 200
    assert json.loads(reply.body)["pid"] != before


def test_a_callers_error_is_of_the_path(server, connect_http1) -> None:
    """A handler's exception has one status by all protocols, and no path shows its text."""
    client = connect_http1(server)
    for body in (b"raise", b"[1]"):
        reply = client.request("POST", "/v1/models/single:predict", b'{"instances": [%s]}' % body)
        assert reply.status in (400, 500)
        assert "secret" not in reply.error()


LOADING = {
    "missing": ({}, {"handler": "nothing"}, r"handler 'nothing' is (neither a|no) file of the archive"),
    "import": ({"handler.py": "import nowhere"}, {}, r"handler 'handler\.py' imports nowhere, which is not installed"),
    "syntax": ({"handler.py": "def"}, {}, r"handler 'handler\.py': SyntaxError: invalid syntax"),
    "two": ({"handler.py": "class A: ...\nclass B: ..."}, {}, r"or one class, its classes are: A, B"),
    "none": ({"handler.py": ""}, {}, r"or one class, its classes are: none"),
    "function": ({"handler.py": ""}, {"handler": "handler:run"}, r"handler 'handler:run': handler has no run, and no class"),
    "method": ({"handler.py": "class A:\n def handle(self, d, c): ..."}, {}, r"class A has no method initialize"),
    "initialize": (
        {"handler.py": "class A:\n def handle(self, d, c): ...\n def initialize(self, c): open('weights.pt')"}, {},
        r"FileNotFoundError: .*weights\.pt",
    ),
    "constructor": (
        {"handler.py": "class A:\n def __init__(self): raise KeyError('size')\n def handle(self, d, c): ..."}, {},
        r"handler 'handler\.py': KeyError: 'size'",
    ),
    "exit": ({"handler.py": "import sys; sys.exit(4)"}, {}, r"the handler ended its process with status 4 while it was loaded"),
}  # fmt: skip


@pytest.mark.parametrize("fault", LOADING)
def test_a_handler_that_cannot_be_loaded_ends_the_start(failing_start, tmp_path: Path, fault: str) -> None:
    """With status 1, and the archive, its model, its handler and the reason in one line."""
    files, said, reason = LOADING[fault]
    path = write_mar(tmp_path / "file.mar", files, manifest("faulty", **said))
    status, log = failing_start(path, "--host", "127.0.0.1")
    assert status == 1
    lines = [line for line in log.splitlines() if " ERROR torpor: " in line]
    (line,) = lines
    assert re.search(rf" ERROR torpor: file\.mar: faulty worker [01]: .*{reason}", line), line


def test_weights_that_are_missing_are_named(failing_start, tmp_path: Path) -> None:
    """A handler may do without them; of one that does not the reason follows."""
    files, _, reason = LOADING["initialize"]
    path = write_mar(tmp_path / "file.mar", files, manifest("faulty", serializedFile="weights.pt"))
    status, log = failing_start(path, "--host", "127.0.0.1")
    assert status == 1
    assert "file.mar: serializedFile = 'weights.pt' is not in it" in log
    assert re.search(reason, log)


def test_a_damaged_archive_ends_the_start(failing_start, tmp_path: Path) -> None:
    """Before anything is started."""
    (tmp_path / "bad.mar").write_bytes(b"PK")
    status, log = failing_start(tmp_path / "bad.mar")
    assert status == 2
    assert "torpor: bad.mar: cannot be read: " in log
    assert "Traceback" not in log


def test_the_unpacked_archive_and_its_workers_go_with_the_server(start, connect_http1, tmp_path: Path) -> None:
    """Nothing is left behind by a server that has ended."""
    path = write_mar(tmp_path / "faulty.mar", {"handler.py": FAULTY})
    (tmp_path / "tmp").mkdir()
    server = start(path, TMPDIR=str(tmp_path / "tmp"))
    said = json.loads(
        connect_http1(server).request("POST", "/predictions/faulty", b"x", {"content-type": "text/plain"}).body
    )
    assert [*(tmp_path / "tmp").iterdir()]
    assert server.stop() == 0
    assert not [*(tmp_path / "tmp").iterdir()]
    assert not Path(f"/proc/{said['pid']}").exists()
