"""A worker's main function, on a thread of the test's process: what it loads, how it answers, when it ends."""

import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torpor.predictors.torchserve import frames
from torpor.predictors.torchserve.worker import main as worker

ECHO = """
class Echo:
    def initialize(self, context):
        self.context = context

    def handle(self, data, context):
        self.context.metrics.add_counter("asked", len(data))
        return [{**self.context.system_properties, "yaml": self.context.model_yaml_config,
                 "row": str(row), "same": context is self.context} for row in data]
"""
FAULTY = "class Faulty:\n    def initialize(self, context): 1 / 0\n    handle = 1"
OVERLAPS = """
class Overlaps:
    def initialize(self, context):
        self.context = context

    def inference(self, data):
        return [self.context.model_name for row in data]

    def handle(self, data, context):
        return [f"{name} {self.context is context}" for name in self.inference(data)]
"""

# Its process's end closes its socket.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


class Worker:
    """The other end of its socket."""

    def __init__(self, folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.link, theirs = socket.socketpair()
        self.link.settimeout(20)
        self.messages: list[Any] = []
        self.parser = frames.Parser()
        self.status: int | None = None
        self.options = {
            "name": "m", "version": "1.0", "folder": str(folder), "handler": "own_main.py", "manifest": {"model": {}},
            "config_file": "", "batch_size": 4, "server_version": "0", "envelope": "", "decode_input_request": True,
            "limit_max_image_pixels": True, "log_level": "info", "overlaps_batches": False, "gpu_id": None,
        } | options  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["-c", str(theirs.detach())])

        def run() -> None:
            self.status = worker.main()

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def send(self, head: dict[str, Any], parts: Any = ()) -> None:
        self.link.sendall(b"".join(frames.pack(head, parts)))

    def receive(self) -> Any:
        while not self.messages:
            data = self.link.recv(1 << 16)
            if not data:
                return None
            self.messages += [
                ({key: value for key, value in head.items() if key != "sizes"}, [[*map(bytes, part)] for part in parts])
                for head, parts in self.parser.feed(data)
            ]
        return self.messages.pop(0)

    def ends(self) -> int | None:
        self.link.close()
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.status


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Let one begin, with this code as its handler and these options; nothing of the test's process stays changed."""
    (tmp_path / "config.yaml").write_text("own: 1\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "addaudithook", lambda hook: None)
    monkeypatch.setattr(logging, "basicConfig", lambda **said: None)
    ignored: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda *said: ignored.append(said))
    monkeypatch.chdir(tmp_path.parent)
    begun: list[Worker] = []

    def start(code: str, **options: Any) -> Worker:
        (tmp_path / "own_main.py").write_text(code)
        begun.append(Worker(tmp_path, options, monkeypatch))
        return begun[-1]

    yield start
    for one in begun:
        one.ends()
    sys.modules.pop("own_main", None)
    gc.collect()  # sockets that are in cycles of handlers go here, and not in another module's test
    assert ignored == [(signal.SIGINT, signal.SIG_IGN)] * len(begun)


def call(**more: Any) -> dict[str, Any]:
    return {"id": "i", "headers": {"content-type": "text/plain"}, "is_explained": False, **more}


def answer(one: Worker, protocol: str = "predictions", body: bytes = b"x", number: int = 1, **more: Any) -> Any:
    """The reply to one call, what was counted, and its body."""
    one.send({"batch": number, "protocol": protocol, "calls": [call(**more)]}, [[body]])
    head, ((blob,),) = one.receive()
    assert head["batch"] == number
    (reply,) = head["replies"]
    return reply, head["metrics"], blob


def test_it_loads_in_the_archives_folder_and_answers_until_the_server_is_gone(begin, tmp_path: Path) -> None:
    """With what the server says of the model, the server and the archive."""
    pytest.importorskip("yaml")
    one = begin(ECHO, config_file="config.yaml", gpu_id=3)
    one.send({"load": one.options})
    assert one.receive() == ({"loaded": 1}, [])
    assert os.getcwd() == sys.path[0] == str(tmp_path)
    reply, counted, blob = answer(one, number=7)
    assert (reply["status"], [name for name, *_ in counted]) == (200, ["asked"])
    assert json.loads(blob) == {
        "model_dir": str(tmp_path), "gpu_id": 3, "batch_size": 4, "server_version": "0", "limit_max_image_pixels": True,
        "server_name": "MMS", "yaml": {"own": 1}, "row": "{'body': 'x'}", "same": True,
    }  # fmt: skip
    assert one.ends() == 0


def test_it_imports_what_it_is_told_before_it_loads(begin, tmp_path: Path) -> None:
    """What there is none of, the handler will miss itself."""
    (tmp_path.parent / "told_early.py").write_text("")
    for module in ("told_early", "nobody_has_this"):
        sys.path.insert(0, str(tmp_path.parent))
        one = begin(ECHO)
        one.send({"import": module})
        one.send({"load": one.options})
        assert one.receive() == ({"loaded": 1}, [])
        one.ends()
        sys.modules.pop("own_main", None)
    assert sys.modules.pop("told_early", None) is not None


def test_batches_overlap_on_one_device(begin) -> None:
    """Where the handler can have that: each in a context of its own."""
    one = begin(OVERLAPS, overlaps_batches=True)
    one.send({"load": one.options})
    assert one.receive() == ({"loaded": 2}, [])
    for number in (1, 2):
        one.send({"batch": number, "protocol": "predictions", "calls": [call()]}, [[b"x"]])
    answers = sorted((head["batch"], blob) for head, ((blob,),) in (one.receive(), one.receive()))
    assert answers == [(1, b"m True"), (2, b"m True")]
    assert one.ends() == 0


MAKES_TENSORS = """
import torch

class Tensors:
    def initialize(self, context):
        pass

    def preprocess(self, data):
        self.batch = data
        return [torch.overrides._get_current_function_mode_stack() for row in data]

    def inference(self, modes):
        return [f"{len(here)} {len(torch.overrides._get_current_function_mode_stack())}" for here in modes]

    def handle(self, data, context):
        answers = self.inference(self.preprocess(data))
        return answers if self.batch is data else []
"""


@pytest.mark.parametrize("overlaps", [False, True])
def test_tensors_of_lists_are_made_quickly_in_a_handlers_preprocess(begin, overlaps: bool) -> None:
    """And nowhere else; what it keeps is its batch's."""
    one = begin(MAKES_TENSORS, overlaps_batches=overlaps)
    one.send({"load": one.options})
    one.receive()
    assert answer(one)[2] == b"1 0"
    assert one.ends() == 0


COUNTS = """
import gc

class Counts:
    def initialize(self, context):
        self.at_load = gc.get_threshold()[0], gc.isenabled()

    def handle(self, data, context):
        return [str((*self.at_load, gc.get_threshold()[0], gc.isenabled()))] * len(data)
"""


@pytest.mark.parametrize(
    ("says", "found"),
    [
        ("pass", (0, True, 123, True)),
        ("gc.disable()", (0, False, 123, False)),
        ("gc.set_threshold(7)", (7, True, 7, True)),
    ],
)
def test_nothing_is_collected_while_it_loads(begin, says: str, found: tuple[object, ...]) -> None:
    """Unless the handler says so; then as before, or as it has said."""
    before = gc.get_threshold()
    gc.set_threshold(123, 7, 7)
    try:
        one = begin(COUNTS.replace("self.at_load", f"{says}; self.at_load", 1))
        one.send({"load": one.options})
        one.receive()
        assert answer(one)[2] == str(found).encode()
        assert one.ends() == 0
    finally:
        gc.set_threshold(*before)
        gc.enable()


def test_what_cannot_be_loaded_leaves_the_collector_as_it_was(begin) -> None:
    before = gc.get_threshold()
    one = begin(FAULTY)
    one.send({"load": one.options})
    one.receive()
    one.ends()
    assert gc.get_threshold() == before


def test_a_handler_need_not_have_torch(begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(sys, "meta_path", [NoTorch(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "torpor.predictors.torchserve.worker.tensors", raising=False)
    monkeypatch.delattr("torpor.predictors.torchserve.worker.tensors", raising=False)
    one = begin(ECHO)
    one.send({"load": one.options})
    assert one.receive() == ({"loaded": 1}, [])
    assert answer(one)[0]["status"] == 200


class NoTorch:
    """Finds no such module."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == "torch":
            raise ModuleNotFoundError(name)


def test_a_server_that_goes_before_it_has_asked_is_no_failure(begin) -> None:
    """Nor one that goes in the middle of a message, or before the answer."""
    assert begin("").ends() == 0
    one = begin(ECHO)
    one.send({"load": one.options})
    one.receive()
    one.link.sendall(b"".join(frames.pack({"batch": 1}))[:-1])
    assert one.ends() == 0


def test_a_server_that_goes_before_the_answer_is_no_failure(begin) -> None:
    """It is sent to nobody."""
    one = begin(ECHO)
    one.send({"load": one.options})
    one.receive()
    one.link.shutdown(socket.SHUT_RD)
    one.send({"batch": 1, "protocol": "predictions", "calls": [call()]}, [[b"x"]])
    assert one.ends() == 0


@pytest.mark.parametrize(
    ("code", "options", "reason"),
    [
        ("", {}, "handler 'own_main.py': own_main must have a function `handle` or one class, its classes are: none"),
        (
            "class A:\n  def initialize(self, c): 1 / 0\n  handle = 1",
            {},
            "handler 'own_main.py': ZeroDivisionError: division by zero",
        ),
        (ECHO, {"config_file": "missing.yaml"}, "handler 'own_main.py': FileNotFoundError: "),
        (ECHO, {"overlaps_batches": True}, "overlapBatches = true, must be false for a handler"),
    ],
)
def test_what_does_not_load_is_told(begin, code: str, options: dict[str, Any], reason: str, capsys) -> None:
    """And it ends; of the handler's own faults the log has the traceback."""
    one = begin(code, **options)
    one.send({"load": one.options})
    said, _ = one.receive()
    assert said["failed"].startswith(reason)
    assert one.ends() == 1
    assert ("Traceback" in capsys.readouterr().err) is ("Error" in reason)


V1 = b'{"instances": [1]}'
V2 = b'{"inputs": [{"name": "a", "datatype": "INT64", "shape": [1], "data": [1]}]}'
ROWS = """
class Rows:
    def initialize(self, context): ...
    def handle(self, data, context):
        return [str(row) for row in data]
"""
V2_ROW = "{'name': 'a', 'datatype': 'INT64', 'shape': [1], 'data': [1]}"


@pytest.mark.parametrize(
    ("options", "protocol", "body", "expected", "kind"),
    [
        ({"envelope": ""}, "predictions", b"x", b"{'body': 'x'}", None),
        ({"envelope": "", "decode_input_request": False}, "predictions", b"x", b"{'body': bytearray(b'x')}", None),
        ({"envelope": "body"}, "predictions", b"x", b"x", None),
        ({"envelope": "body", "decode_input_request": False}, "predictions", b"x", b"bytearray(b'x')", None),
        ({"envelope": "json"}, "predictions", V1.replace(b"1", b"2"), None, None),
        ({"envelope": "kserve"}, "predictions", V1, b'{\n  "predictions": [\n    "1"\n  ]\n}', None),
        ({"envelope": ""}, "v1", V1, b'{"predictions":["1"]}', "application/json"),
        ({"envelope": "kservev2"}, "v1", V1, b'{"predictions":["1"]}', "application/json"),
    ],
)
def test_the_protocol_and_the_configuration_choose_the_envelope(
    begin, options: dict[str, Any], protocol: str, body: bytes, expected: bytes | None, kind: str | None
) -> None:
    """KServe's paths have their own, but for v1 of a model in the envelope `json`."""
    one = begin(ROWS, **options)
    one.send({"load": one.options})
    one.receive()
    headers = {"content-type": "application/json" if options["envelope"] == "json" else "text/plain"}
    reply, _, blob = answer(one, protocol, body, headers=headers)
    assert blob == (b'{"predictions": ["2"]}' if expected is None else expected)
    assert reply["headers"].get("content-type") == kind


@pytest.mark.parametrize(("envelope", "protocol"), [("", "v2"), ("kservev2", "predictions"), ("json", "v2")])
def test_v2_has_the_models_name_and_version(begin, envelope: str, protocol: str) -> None:
    """In its JSON, which is indented where TorchServe writes it."""
    one = begin(ROWS, envelope=envelope)
    one.send({"load": one.options})
    one.receive()
    _, _, blob = answer(one, protocol, V2)
    assert b"\n" in blob if protocol == "predictions" else b"\n" not in blob
    said = json.loads(blob)
    assert (said["model_name"], said["model_version"], said["outputs"][0]["data"]) == ("m", "1.0", [V2_ROW])


def test_v1_in_the_envelope_json_is_torchserves(begin) -> None:
    """Its instances may be base64."""
    one = begin(ROWS, envelope="json")
    one.send({"load": one.options})
    one.receive()
    _, _, blob = answer(one, "v1", b'{"instances": [{"b64": "eA=="}]}', headers={"content-type": "application/json"})
    assert blob == b"""{"predictions": ["b'x'"]}"""
