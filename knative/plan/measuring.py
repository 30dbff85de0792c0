"""A predictor measured: started as `torpor serve` starts it, and asked.

- time by rows and cells: lone requests of so many rows, by the server's own `torpor_device_seconds`;
- what a request costs beside the model: the process's CPU time under one-row requests from several callers, less the model's;
- cores: CPU time for a second of the model, under full batches;
- memory: VmHWM after the full batches; the weights by loading the model in a process of its own;
- the start: its phases by `torpor_start_seconds`, and what the clock says from outside, medians of several starts.
"""

import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torpor.predictors.settings import SettingError

from ..samples import Sample, samples
from .measurement import BatchTime, Measurement

_READY = re.compile(r"ready in .*: (.+?)(?:, .*)? on .*:(\d+)$")
_ASKS = 7
"""Lone requests of a size, of which the median counts; one before them is not counted, it may allocate."""

_CALLERS = 8
_LOAD_S = 2.0

Say = Callable[[str], None]


class _Server:
    """A `torpor serve` on a free port. Raises SettingError, with the end of its log, if it is not ready in time."""

    def __init__(self, arguments: Sequence[str], start_timeout_s: float) -> None:
        began_s = time.perf_counter()
        torpor = str(Path(sys.executable).with_name("torpor"))
        kept = {name: value for name, value in os.environ.items() if name not in ("PORT", "K_SERVICE")}
        self.process = subprocess.Popen(
            [torpor, "serve", *arguments, "--host", "127.0.0.1", "--port", "0"],
            stderr=subprocess.PIPE, text=True, env=kept,
        )  # fmt: skip
        assert self.process.stderr is not None
        self._log = self.process.stderr
        self._rest = threading.Thread(target=self._log.read, name="log")
        self.name, self.port = "", 0
        watchdog = threading.Timer(start_timeout_s, self.process.kill)
        watchdog.start()
        lines = []
        try:
            for line in self._log:
                lines.append(line)
                if match := _READY.search(line.rstrip()):
                    self.name, self.port = match[1], int(match[2])
                    break
        finally:
            watchdog.cancel()
            if not self.port:
                self.process.kill()
                self.process.wait()
                self._log.close()
        if not self.port:
            end = "".join(lines[-12:]).rstrip()
            raise SettingError(f"the predictor did not start within {start_timeout_s:g} s:\n{end}")
        self.ready_s = time.perf_counter() - began_s
        self._rest.start()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._rest.join()
        self._log.close()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def get(self, path: str) -> bytes:
        connection = self.connect()
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        if response.status != 200:
            raise SettingError(
                f"the predictor answered {path} with {response.status}: {body[:200].decode(errors='replace')}"
            )
        return body

    def told(self) -> list[Sample]:
        return [*samples(self.get("/metrics").decode())]

    def metrics(self) -> dict[str, float]:
        """By name, of what there is one of."""
        return {name: value for name, _, value in self.told()}

    def peak_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(match[1]) * 1024 if match else 0


@contextmanager
def _served(arguments: Sequence[str], start_timeout_s: float) -> Iterator[_Server]:
    server = _Server(arguments, start_timeout_s)
    try:
        yield server
    except (OSError, http.client.HTTPException) as error:
        raise SettingError(f"the predictor gave no answer: {type(error).__name__}: {error}") from None
    finally:
        server.stop()


def measure(
    folder: Path,
    *,
    most_rows: int = 64,
    sizes: Sequence[int] = (8, 32, 128),
    starts: int = 3,
    start_timeout_s: float = 300.0,
    say: Say = lambda text: None,
) -> Measurement:
    """sizes: of the axes that are no fixed ones. Raises SettingError.

    Rows are ones for integers and booleans, "a" for texts, and numbers in [0, 1) for floats.
    """
    command = [str(folder), "--max-batch-size", str(most_rows), "--batch-timeout-micros", "0"]
    phases: list[dict[str, float]] = []
    for number in range(starts):
        say(f"start {number + 1} of {starts}")
        with _served(command, start_timeout_s) as server:
            inputs = json.loads(server.get(f"/v2/models/{server.name}"))["inputs"]
            axes = sum(axis == -1 for tensor in inputs for axis in tensor["shape"][1:])
            sizes = sizes if axes else (1,)
            ask = _Asker(server, inputs)
            phases.append(_phases(server, ask, min(sizes)))
            if number + 1 < starts:
                continue
            batches = [*_batch_times(server, ask, most_rows, sizes, bool(axes), say)]
            say(f"one row from {_CALLERS} callers")
            request_s, lone_s = _request_cost(server, ask, min(sizes))
            say(f"{most_rows} rows from 2 callers")
            cores = _cores(server, ask, most_rows, max(sizes))
            peak = server.peak_bytes()
            name = server.name
    say("weights")
    return Measurement(
        model=name,
        batches=tuple(batches),
        request_s=request_s,
        around_s=max(0.0, lone_s - batches[0].seconds - request_s),
        cores=cores,
        start={phase: statistics.median(start[phase] for start in phases) for phase in phases[-1]},
        memory_bytes=peak,
        parameter_bytes=_weights_bytes(folder),
        machine={"cores": os.cpu_count(), "starts": starts},
    )


class _Asker:
    """Makes requests of v2 binary tensors, and sends them."""

    def __init__(self, server: _Server, inputs: Sequence[dict[str, Any]]) -> None:
        self._path = f"/v2/models/{server.name}/infer"
        self._inputs = inputs
        self._made: dict[tuple[int, int], tuple[bytes, dict[str, str]]] = {}

    def __call__(self, connection: http.client.HTTPConnection, rows: int, size: int) -> None:
        """Raises SettingError for an answer that is none."""
        body, headers = self._made.get((rows, size)) or self._make(rows, size)
        connection.request("POST", self._path, body, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            text = answer[:300].decode(errors="replace")
            raise SettingError(f"the predictor answered {rows} rows of made-up input with {response.status}: {text}")

    def _make(self, rows: int, size: int) -> tuple[bytes, dict[str, str]]:
        chance = random.Random(0)
        tensors, data = [], b""
        for tensor in self._inputs:
            shape = [rows, *(size if axis == -1 else axis for axis in tensor["shape"][1:])]
            raw = _raw(tensor["datatype"], shape, chance)
            tensors.append(
                {"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape,
                 "parameters": {"binary_data_size": len(raw)}}
            )  # fmt: skip
            data += raw
        head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
        made = head + data, {"Inference-Header-Content-Length": str(len(head))}
        self._made[rows, size] = made
        return made


def _raw(datatype: str, shape: Sequence[int], chance: random.Random) -> bytes:
    import numpy as np
    from torpor.predictors.protocol.datatypes import DTYPES

    count = int(np.prod(shape))
    if datatype == "BYTES":
        return b"".join([(1).to_bytes(4, "little") + b"a"] * count)
    if datatype in ("FP16", "FP32", "FP64"):
        return np.random.default_rng(chance.randrange(1 << 30)).random(count).astype(DTYPES[datatype]).tobytes()
    if datatype == "BF16":
        return b"\x80\x3f" * count
    return np.ones(count, DTYPES[datatype]).tobytes()


def _phases(server: _Server, ask: _Asker, size: int) -> dict[str, float]:
    began_s = time.perf_counter()
    connection = server.connect()
    ask(connection, 1, size)
    first_s = time.perf_counter() - began_s
    connection.close()
    named = {labels["phase"]: value for name, labels, value in server.told() if name == "torpor_start_seconds"}
    return {"interpreter": max(0.0, server.ready_s - sum(named.values())), **named, "first answer": first_s}


def _batch_times(
    server: _Server, ask: _Asker, most_rows: int, sizes: Sequence[int], sized: bool, say: Say
) -> Iterator[BatchTime]:
    connection = server.connect()
    rows_of = [*(1 << power for power in range(most_rows.bit_length()) if 1 << power < most_rows), most_rows]
    for size in sizes:
        for rows in rows_of:
            say(f"{rows} rows" + (f" of {size}" if sized else ""))
            took: list[float] = []
            ask(connection, rows, size)
            before_s = server.metrics()["torpor_device_seconds_total"]
            for _ in range(_ASKS):
                ask(connection, rows, size)
                after_s = server.metrics()["torpor_device_seconds_total"]
                took.append(after_s - before_s)
                before_s = after_s
                if sum(took) > 5.0:
                    break
            yield BatchTime(rows, size if sized else 1, statistics.median(took))
    connection.close()


def _request_cost(server: _Server, ask: _Asker, size: int) -> tuple[float, float]:
    """(seconds of a core for a request beside the model, seconds that a lone caller waits)."""
    connection = server.connect()
    lone = []
    for _ in range(50):
        began_s = time.perf_counter()
        ask(connection, 1, size)
        lone.append(time.perf_counter() - began_s)
    connection.close()
    before = server.metrics()
    requests = _load(server, ask, _CALLERS, 1, size)
    after = server.metrics()
    spent_s = after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
    model_s = after["torpor_device_seconds_total"] - before["torpor_device_seconds_total"]
    # The counter has steps of 10 ms, and a model that waits for its turn is not busy: what is left is at least nothing.
    return max(0.0, spent_s - model_s) / requests, statistics.median(lone)


def _cores(server: _Server, ask: _Asker, rows: int, size: int) -> float:
    before = server.metrics()
    _load(server, ask, 2, rows, size)
    after = server.metrics()
    model_s = after["torpor_device_seconds_total"] - before["torpor_device_seconds_total"]
    return (after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]) / max(model_s, 1e-3)


def _load(server: _Server, ask: _Asker, callers: int, rows: int, size: int) -> int:
    """Callers in a loop; how many requests were answered."""
    counts = [0] * callers
    until_s = time.perf_counter() + _LOAD_S
    errors: list[SettingError] = []

    def call(number: int) -> None:
        connection = server.connect()
        try:
            while time.perf_counter() < until_s:
                ask(connection, rows, size)
                counts[number] += 1
        except SettingError as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(counts)


def _weights_bytes(folder: Path) -> int:
    """0 where they cannot be told."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "torpor.predictors.weights", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(done.stdout) if done.returncode == 0 else 0
