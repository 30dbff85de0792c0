"""From the start of a process to its first correct answer, what it takes in memory then, and how the next answers are.

The base is the same class in a bare script (`bare.py`), which answers by printing. Processes are started in turns.
"""

import http.client
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bare import resident_mib
from environments import BENCHMARKS, minilm_folder
from loads import BadAnswerError, Rate
from servers import free_port

EXAMPLES = BENCHMARKS.parent / "examples"
CLASSES = {
    "mlp": (EXAMPLES / "mlp", "Mlp"),
    "minilm": (EXAMPLES / "minilm", "MiniLM"),
    "automodel": (BENCHMARKS / "classes" / "automodel", "Auto"),
}
"""Folder and class."""

FIRST = 100
STARTS = 20
LEAST_STARTS = 3
LIMIT_S = 120.0


@dataclass(frozen=True)
class Start:
    """Seconds to the first answer, the median of as many starts as the time holds."""

    label: str
    model: str
    is_bare: bool = False

    def measure(self, seconds: float) -> Rate:
        return median_start(self._start, seconds)

    def _start(self) -> float:
        began_s = time.perf_counter()
        with script(self.model) if self.is_bare else server(self.model):
            return time.perf_counter() - began_s


def median_start(start: Callable[[], float], seconds: float) -> Rate:
    """Of as many starts as the time holds; start: gives the seconds that one took."""
    taken: list[float] = []
    end_s = time.perf_counter() + seconds
    while len(taken) < LEAST_STARTS or time.perf_counter() < end_s:
        taken.append(start())
    return Rate(statistics.median(taken), math.nan, math.nan)


@dataclass(frozen=True)
class Memory:
    """MiB that the server takes beyond the bare script, each after its first answer."""

    label: str
    model: str

    def measure(self, seconds: float) -> Rate:
        with script(self.model) as (process, _):
            base = resident_mib(process.pid)
        with server(self.model) as (process, _):
            return Rate(resident_mib(process.pid) - base, math.nan, math.nan)


@dataclass(frozen=True)
class FirstRequests:
    """The 99th percentile of the first 100 answers after a start by that of the 100 after 400 more, pooled over 20 starts."""

    label: str
    model: str

    def measure(self, seconds: float) -> Rate:
        first: list[float] = []
        warm: list[float] = []
        for _ in range(STARTS):
            with server(self.model) as (_, connection):
                taken = [ask(connection, self.model)[0] for _ in range(FIRST * 6)]
            first += taken[:FIRST]
            warm += taken[-FIRST:]
        return Rate(statistics.quantiles(first, n=100)[98] / statistics.quantiles(warm, n=100)[98], math.nan, math.nan)


@dataclass(frozen=True)
class BusyProbe:
    """p99.9 in ms of a readiness probe every 5 ms, while `predict` is pure Python for 5 s, several times over."""

    label: str

    def measure(self, seconds: float) -> Rate:
        folder = BENCHMARKS / "classes" / "busy"
        tensor = {"name": "seconds", "datatype": "FP32", "shape": [1], "data": [5.0]}
        body = json.dumps({"inputs": [tensor]}).encode()
        taken: list[float] = []
        with serving(folder, variables=environment("")) as (_, port):
            probe, caller = connect(port), socket.create_connection(("127.0.0.1", port))
            for _ in range(max(1, round(seconds / 5))):
                head = f"POST /v2/models/busy/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
                caller.sendall(head.encode() + body)
                end_s = time.perf_counter() + 4.9
                while time.perf_counter() < end_s:
                    began_s = time.perf_counter()
                    probe.request("GET", "/v2/health/ready")
                    if probe.getresponse().read() != b'{"ready":true}':
                        raise BadAnswerError("the probe was refused")
                    taken.append((time.perf_counter() - began_s) * 1e3)
                    time.sleep(0.005)
                if not caller.recv(4096).startswith(b"HTTP/1.1 200"):
                    raise BadAnswerError("the model did not answer")
        return Rate(statistics.quantiles(taken, n=1000)[998], math.nan, math.nan)


@contextmanager
def script(model: str) -> Iterator[tuple[subprocess.Popen[str], float]]:
    """The bare script, once it has printed its answer."""
    folder, name = CLASSES[model]
    command = [sys.executable, str(BENCHMARKS / "bare.py"), str(folder), name]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment(model))
    assert process.stdout is not None
    try:
        line = process.stdout.readline().split()
        if not line:
            raise BadAnswerError(f"{model}: the bare script gave no answer")
        yield process, float(line[0])
    finally:
        process.kill()
        process.communicate()


@contextmanager
def server(model: str) -> Iterator[tuple[subprocess.Popen[bytes], http.client.HTTPConnection]]:
    """torpor, once it has answered; the answer must be the bare script's."""
    folder, _ = CLASSES[model]
    with serving(folder, variables=environment(model)) as (process, port):
        connection = connect(port)
        _, answer = ask(connection, model)
        yield process, connection
        connection.close()
    if model not in _EXPECTED:
        with script(model) as (_, expected):
            _EXPECTED[model] = expected
    if abs(answer - _EXPECTED[model]) > 1e-3:
        raise BadAnswerError(f"{model}: the answer adds up to {answer}, not {_EXPECTED[model]}")


_EXPECTED: dict[str, float] = {}


@contextmanager
def serving(
    folder: Path, *options: str, variables: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A torpor that has just been started, and its port, which is not open yet. variables: its environment."""
    port = free_port()
    torpor = Path(sys.executable).with_name("torpor")
    command = [str(torpor), "serve", str(folder), "--port", str(port), "--host", "127.0.0.1", "--log-level", "error"]
    process = subprocess.Popen([*command, *options], env=variables)
    try:
        yield process, port
    finally:
        process.kill()
        process.wait()


@contextmanager
def ready(folder: Path, *options: str, variables: Mapping[str, str] | None = None) -> Iterator[int]:
    """The port of a torpor that answers."""
    with serving(folder, *options, variables=variables) as (_, port):
        connect(port).close()
        yield port


def environment(model: str) -> dict[str, str]:
    variables = os.environ | {"OMP_NUM_THREADS": "1" if model == "mlp" else str(os.cpu_count())}
    if model in ("minilm", "automodel"):
        weights = minilm_folder()
        variables |= {"BENCH_MINILM": str(weights), "PYTHONPATH": str(weights.parents[1])}
    return variables


def connect(port: int) -> http.client.HTTPConnection:
    """Connect as soon as the port is open: it opens when the model is warm."""
    end_s = time.monotonic() + LIMIT_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
        try:
            connection.connect()
        except ConnectionRefusedError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.001)
        else:
            return connection


def ask(connection: http.client.HTTPConnection, model: str) -> tuple[float, float]:
    """(seconds, the sum of the answer) for the row that the bare script takes."""
    if model == "mlp":
        inputs = [{"name": "input", "datatype": "FP32", "shape": [1, 784], "data": [0.0] * 784}]
    else:
        shape = {"datatype": "INT64", "shape": [1, 16], "data": [1] * 16}
        inputs = [{"name": name} | shape for name in ("input_ids", "attention_mask")]
    body = json.dumps({"inputs": inputs}).encode()
    began_s = time.perf_counter()
    connection.request("POST", f"/v2/models/{CLASSES[model][0].name}/infer", body)
    response = connection.getresponse()
    content = response.read()
    taken_s = time.perf_counter() - began_s
    if response.status != 200:
        raise BadAnswerError(f"{model}: {response.status} {content[:200]!r}")
    return taken_s, sum(json.loads(content)["outputs"][0]["data"])
