"""What happens to an InferenceService on a cluster, against `torpor up`: zero and back, kills under load, a chain of events.

Transformer and predictor, by three protocols. A rolling update has no counterpart: one machine runs what the files said at its
start, and a second `torpor up` beside it is refused.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from event_answers import answers_in, assert_each_is_answered
from torpor.knative.up.instance import free_port
from torpor.predictors.protocol.messages import message
from up_process import Up, ask, service

Start = Callable[..., Up]
ROOT = Path(__file__).parents[3]
MODELS = ROOT / "tests" / "transformers" / "models"
WAKES = 10
EVENTS = 100
TORPOR = Path(sys.executable).with_name("torpor")

WORDS = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{ name: words, annotations: {{ autoscaling.knative.dev/window: 6s }} }}
spec:
  transformer:
    minReplicas: {replicas}
    containerConcurrency: 8
    containers: [{{ image: torpor, args: ["/models/words"] }}]
  predictor:
    minReplicas: {replicas}
    model: {{ modelFormat: {{ name: pytorch }}, storageUri: "file:///models/counts" }}
"""
COMPONENTS = ("words-transformer", "words-predictor")


def total(word: str) -> float:
    """What the chain makes of a word."""
    return float(sum(map(ord, word)))


class FailedError(Exception):
    """A request has no answer, or one that says so."""


def ask_v1(port: int, word: str) -> float:
    body = json.dumps({"instances": [word]})
    return float(_asked(port, "/v1/models/words:predict", body)["predictions"][0]["total"])


def ask_v2(port: int, word: str) -> float:
    tensor = {"name": "word", "datatype": "BYTES", "shape": [1], "data": [word]}
    answer = _asked(port, "/v2/models/words/infer", json.dumps({"inputs": [tensor]}))
    return next(float(one["data"][0]) for one in answer["outputs"] if one["name"] == "total")


def _asked(port: int, path: str, body: str) -> Any:
    try:
        status, answer = ask(port, path, "POST", body)
    except OSError as error:
        raise FailedError(str(error)) from error
    if status != 200:
        raise FailedError(f"{status}: {answer.decode()}")
    return json.loads(answer)


def ask_grpc(port: int, word: str) -> float:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return ask_over(channel, word)


def ask_over(channel: grpc.Channel, word: str) -> float:
    tensor = {"name": "word", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [word.encode()]}}
    request = message("inference.ModelInferRequest")(model_name="words", inputs=[tensor])
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        lambda one: one.SerializeToString(),
        message("inference.ModelInferResponse").FromString,
    )
    try:
        response = call(request, timeout=30)
    except grpc.RpcError as error:
        raise FailedError(str(error)) from error
    return next(float(one.contents.fp32_contents[0]) for one in response.outputs if one.name == "total")


PROTOCOLS = (ask_v1, ask_v2, ask_grpc)


def words(up: Start, replicas: int) -> tuple[Up, int]:
    """The chain awake, and the transformer's port."""
    running = up(WORDS.format(replicas=replicas), "--map", f"/models={MODELS}")
    for name in COMPONENTS:
        running.wait_for(f"{name} is awake")
    return running, running.port("words-transformer")


def is_dead(pid: int) -> bool:
    """Whether its last thread has ended, and with it its connections."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "Z" and len(os.listdir(f"/proc/{pid}/task")) == 1
    except OSError:
        return True


def kill(running: Up, name: str) -> tuple[float, float]:
    """Kill a component's process: from when to when it was dying."""
    pid = running.state(name)["pid"]
    began_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while not is_dead(pid):
        time.sleep(0)
    return began_s, time.monotonic()


def test_ten_times_to_zero_and_back(up: Start) -> None:
    """Each protocol in its turn finds no process, and is answered right; each wake is of both components."""
    running, port = words(up, replicas=0)
    for wake in range(WAKES):
        for name in COMPONENTS:
            running.wait_for(f"{name} is asleep", wake + 1)
        assert PROTOCOLS[wake % 3](port, f"wake{wake}") == total(f"wake{wake}")
    for name in COMPONENTS:
        state = running.state(name)
        assert [one["outcome"] for one in state["wakes"]] == ["ready"] * (WAKES + 1)
        assert (state["failed"], state["refused"], state["crashes"]) == (0, 0, 0)


@dataclass
class Attempt:
    """One that failed."""

    sent_s: float
    failed_s: float
    error: str


class Load:
    """Callers that never retry: one of each REST protocol on connections of their own, and several on one of gRPC's."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._over = threading.Event()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        callers = [lambda word: ask_v1(port, word), lambda word: ask_v2(port, word)] * 2
        callers += [lambda word: ask_over(self._channel, word)] * 4
        self._threads = [threading.Thread(target=self._run, args=(*one,)) for one in enumerate(callers)]
        self.correct = 0
        self.wrong: list[float] = []
        self.failed: list[Attempt] = []

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._channel.close()

    def _run(self, caller: int, asking: Callable[[str], float]) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            word = f"{caller}-{number}"
            sent_s = time.monotonic()
            try:
                value = asking(word)
            except FailedError as error:
                self.failed.append(Attempt(sent_s, time.monotonic(), str(error)))
                continue
            if value == total(word):
                self.correct += 1
            else:
                self.wrong.append(value)

    def wait_for(self, count: int) -> None:
        """Until so many more answers have come."""
        wanted, end_s = self.correct + count, time.monotonic() + 60
        while self.correct < wanted:
            assert time.monotonic() < end_s, self.failed[-3:]
            time.sleep(0.01)


def test_two_kills_under_load_lose_only_what_was_inside(up: Start) -> None:
    """Predictor and transformer, each killed once: nothing is wrong, and who asks when the process is dead is answered."""
    running, port = words(up, replicas=1)
    kills = []
    with Load(port) as load:
        for name in reversed(COMPONENTS):
            load.wait_for(100)
            kills.append(kill(running, name))
            load.wait_for(100)
    assert load.wrong == []
    for attempt in load.failed:  # each was under way when one of them was killed
        assert any(attempt.sent_s <= dead_s and attempt.failed_s >= began_s for began_s, dead_s in kills), (
            attempt,
            kills,
        )
    print(f"{load.correct} correct, {len(load.failed)} lost by two kills")
    assert [running.state(name)["crashes"] for name in COMPONENTS] == [1, 1]


def test_a_second_up_beside_the_first_is_refused(up: Start, tmp_path: Path) -> None:
    """By the state folder, whatever its ports; the first goes on."""
    running = up(service())
    assert ask(running.port(), "/a") == (200, b"/a")
    second = up(service())
    assert second.ended() == 1
    assert f"torpor up: --state {tmp_path / 'state'}: process {running.process.pid} works with it" in second.log
    assert ask(running.port(), "/b") == (200, b"/b")
    running.interrupt()
    assert running.ended() == 0
    third = up(service())
    assert ask(third.port(), "/c") == (200, b"/c")


@pytest.fixture
def tail() -> Iterator[tuple[int, list[str]]]:
    """The example's sink: `torpor events tail` at a port, and the lines that it prints."""
    port, lines = free_port(), []
    command = [TORPOR, "events", "tail", "--listen", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
    reader.start()
    yield port, lines
    process.terminate()
    process.wait(30)
    reader.join(30)
    process.stdout.close()


def test_the_examples_chain_of_events_answers_each_whatever_happens(up: Start, tail: tuple[int, list[str]]) -> None:
    """Broker, transformer, predictor, broker, sink, from zero, with the predictor killed in the middle, as on a cluster."""
    port, lines = tail
    text = (ROOT / "examples" / "sentences" / "events.yaml").read_text()
    sink = "ref: { apiVersion: v1, kind: Service, name: sink }"
    assert sink in text
    zero = "serving.kserve.io/deploymentMode: Knative"
    text = text.replace(sink, f'uri: "http://127.0.0.1:{port}/"')
    text = text.replace(zero, f'{zero}\n    autoscaling.knative.dev/initial-scale: "0"')
    maps = ("--map", f"/opt/torpor/examples={ROOT / 'examples'}", "--map", "nats://answers:4222={nats}")
    running = up(text, *maps)
    broker = running.wait_for(r"broker takes events at (http://\S+)")[1]
    what = ["--type", "text", "--content-type", "text/plain", "--data", "a sentence", "--id", "round"]
    command = [TORPOR, "events", "send", broker, "--count", str(EVENTS), *what]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    end_s = time.monotonic() + 120
    is_killed = False
    while len(answers := answers_in(lines, "round")) < EVENTS:
        assert time.monotonic() < end_s, running.log
        if not is_killed and len(answers) >= EVENTS // 3:
            kill(running, "sentences-predictor")
            is_killed = True
        time.sleep(0.05)
    assert is_killed
    assert_each_is_answered(answers, [f"round-{n}" for n in range(1, EVENTS + 1)])
    assert running.state("sentences-predictor")["crashes"] == 1
