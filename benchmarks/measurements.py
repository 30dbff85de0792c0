"""One line of a figure: what is started, which load it gets, how its answers are checked.

Every measurement has a `label` and a `measure(seconds)` that starts, warms, measures and stops. A figure is a list of
them and of claims about their ratios.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

import loads
from bodies import Row
from environments import BENCHMARKS, UnavailableError, minilm_folder
from loads import CONNECTIONS, BadAnswerError, Rate
from offline import COUNT, SEED
from probe import Probe
from rows import large_rows, mlp_rows, sentences, texts, tokenised
from servers import Peer, Running, running
from wires import Wire

CORES = os.cpu_count() or 1

THREADS = {"mlp": 1, "minilm": CORES, "sentences": CORES, "echo": 1}
"""torch's threads in each server. The MLP's products are too small to share; sentences use every core there is."""

PROBES = 256


class TooSlowError(UnavailableError):
    """Not one answer to the load in the time there was."""


class Measurement(Protocol):
    @property
    def label(self) -> str: ...

    def measure(self, seconds: float) -> Rate: ...


@cache
def load_rows(model: str) -> list[Row]:
    if model == "echo":
        return large_rows(SEED, 2)
    if model == "sentences":
        return texts(SEED, COUNT)
    return mlp_rows(SEED, COUNT) if model == "mlp" else sentences(SEED, COUNT, minilm_folder())


@cache
def probe_rows(model: str) -> tuple[list[Row], np.ndarray]:
    """Rows that the load never sends, and raw torch's outputs, each computed alone."""
    if model == "echo":
        rows = large_rows(SEED + 1, 4)
        return rows, np.concatenate([row["x"] for row in rows])
    # Imported late: only a run needs torch, `--list` doesn't.
    from models import MODELS, run

    if model == "mlp":
        rows = asked = mlp_rows(SEED + 1, PROBES)
    else:
        folder = minilm_folder()
        os.environ["BENCH_MINILM"] = str(folder)
        rows = texts(SEED + 1, PROBES) if model == "sentences" else sentences(SEED + 1, PROBES, folder)
        asked = tokenised(rows, folder) if model == "sentences" else rows
    loaded = MODELS["mlp" if model == "mlp" else "minilm"]()
    return rows, np.concatenate([run(loaded, [row]) for row in asked])


@dataclass(frozen=True)
class Served:
    """A server under wrk."""

    label: str
    peer: Peer
    wire: Wire
    model: str = "mlp"
    form: str = ""
    """What the peer's `assignment` gets as FORM."""

    port_offset: int = 0
    """gRPC on the next port, where a peer has two."""

    batch_rows: int = CONNECTIONS
    """The batch's bound: a row for each connection, more can't arrive."""

    connections: int = CONNECTIONS
    version: str = "HTTP/1.1"
    waiting: str = ""
    """How torch's threads wait for each other (OMP_WAIT_POLICY); empty for the library's default, which is to spin."""

    @contextmanager
    def ready(self) -> Iterator[tuple[Running, Probe, Path]]:
        probe = Probe(self.wire, *probe_rows(self.model))
        with (
            tempfile.TemporaryDirectory(prefix="bench-load-") as folder,
            running(self.peer, self.model, self.form, self.batch_rows, THREADS[self.model], self.waiting) as server,
        ):
            probe.wait_ready(server, server.port + self.port_offset)
            yield server, probe, Path(folder) / "bodies"

    def measure(self, seconds: float) -> Rate:
        loads.require("wrk")
        with self.ready() as (server, probe, file):
            exchanges = [self.wire.encode(row) for row in load_rows(self.model)]
            loads.write_requests(exchanges, file)

            def load(seconds: float) -> Rate:
                if self.version == "HTTP/2":
                    return loads.over_http2(server.port, exchanges[0], file, seconds, self.connections)
                return loads.over_http1(server.port, file, seconds, self.connections)

            load(self.peer.warm_s)
            with probe.beside(server.port):
                rate = load(seconds)
        if not rate.value:
            # Right, since the probe was content, but slower than the time there is: 64 padded rows can take seconds.
            raise TooSlowError(f"no answer to the load within {seconds:g} s; --seconds must be longer")
        return rate


@dataclass(frozen=True)
class Tuned(Served):
    """A peer with sentences, at its best settings: the first round tries several, later rounds repeat the best.

    Peers pad to the longest of whatever arrives together, so that large batches are mostly padding. Threads that spin are
    fastest on a quiet machine and slowest where a front process wants their core. Neither is known beforehand.
    """

    bounds: tuple[int, ...] = (4, 16, CONNECTIONS)
    tried: dict[str, float] = field(default_factory=dict)
    """Sentences per second by `bound policy`."""

    def measure(self, seconds: float) -> Rate:
        if not self.tried:
            for bound in self.bounds:
                self._try(bound, "default", seconds)
            self._try(self._best()[0], "PASSIVE", seconds)
        return self._with(*self._best()).measure(seconds)

    def _try(self, bound: int, policy: str, seconds: float) -> None:
        try:
            rate = self._with(bound, policy).measure(max(4.0, seconds / 2)).value
        except TooSlowError:
            rate = 0.0
        self.tried[f"{bound} {policy}"] = rate

    def _best(self) -> tuple[int, str]:
        bound, policy = max(self.tried, key=lambda choice: self.tried[choice]).split()
        return int(bound), policy

    def _with(self, bound: int, policy: str) -> Served:
        waiting = "" if policy == "default" else policy
        return Served(self.label, self.peer, self.wire, self.model, self.form, batch_rows=bound, waiting=waiting)


@dataclass(frozen=True)
class ServedGrpc(Served):
    """A server under h2load."""

    def measure(self, seconds: float) -> Rate:
        loads.require("h2load")
        with self.ready() as (server, probe, file):
            port = server.port + self.port_offset
            exchange = self.wire.encode(load_rows(self.model)[0])
            with probe.beside(port):
                return loads.over_grpc(port, exchange, probe.answer_bytes, file, self.peer.warm_s, seconds)


@dataclass(frozen=True)
class ServedCallers(Served):
    """A server under real grpcio clients."""

    def measure(self, seconds: float) -> Rate:
        with self.ready() as (server, probe, file):
            port = server.port + self.port_offset
            exchange = self.wire.encode(load_rows(self.model)[0])
            file.write_bytes(exchange.message)
            self._call(port, exchange.path, file, probe.answer_bytes, self.peer.warm_s)
            with probe.beside(port):
                return Rate(self._call(port, exchange.path, file, probe.answer_bytes, seconds), np.nan, np.nan)

    def _call(self, port: int, path: str, file: Path, answer_bytes: int, seconds: float) -> float:
        arguments = [str(port), str(seconds), path, str(file), str(answer_bytes)]
        return float(run_script("callers.py", arguments))


@dataclass
class Offline:
    """Raw torch on sorted sentences: the first round tries every choice, later rounds repeat the best.

    A choice is batch, threads and how threads wait: alone on the machine spinning can be best, beside others it isn't.
    """

    label: str
    tried: dict[str, float] = field(default_factory=dict)
    """Sentences per second by `batch:threads policy`."""

    def measure(self, seconds: float) -> Rate:
        if not self.tried:
            # Shorter looks: the winner is measured again at full length.
            look = max(1.0, seconds / 3)
            for threads, policy in [(1, "PASSIVE"), (CORES, "PASSIVE"), (CORES, "default")]:
                rates = self._rates(look, [f"{batch}:{threads}" for batch in (1, 8, 16, 32, 64, 128)], policy)
                self.tried |= {f"{choice} {policy}": rate for choice, rate in rates.items()}
        best = max(self.tried, key=lambda choice: self.tried[choice])
        choice, policy = best.split()
        return Rate(self._rates(seconds, [choice], policy)[choice], np.nan, np.nan)

    def _rates(self, seconds: float, choices: list[str], policy: str) -> dict[str, float]:
        waiting = {} if policy == "default" else {"OMP_WAIT_POLICY": policy}
        rates: dict[str, float] = json.loads(run_script("offline.py", [str(seconds), *choices], waiting))
        return rates


def run_script(name: str, arguments: list[str], variables: Mapping[str, str] | None = None) -> str:
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    environment = os.environ | (variables or {})
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BadAnswerError(f"{name}: {(result.stderr.strip().splitlines() or ['no output'])[-1]}")
    return result.stdout
