"""Two models in one server under load at once: what each keeps of the rate that it has alone."""

import math
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import loads
from loads import Rate
from measurements import CORES, load_rows, probe_rows
from probe import Probe
from servers import Torpor, running
from wires import V2Binary

CONNECTIONS = {"mlp": 4, "minilm": 32}
"""Few callers of the model whose batch takes a fraction of a millisecond, many of the one that always has a queue."""


@dataclass(frozen=True)
class Beside:
    """The rate of `model` while the other one is under load too, by its rate alone; latencies are those beside it."""

    label: str
    peer: Torpor
    model: str

    def measure(self, seconds: float) -> Rate:
        loads.require("wrk")
        with _both(self.peer) as load, ThreadPoolExecutor(len(CONNECTIONS)) as threads:
            load(self.model, self.peer.warm_s)
            alone = load(self.model, seconds)
            together = dict(zip(CONNECTIONS, threads.map(load, CONNECTIONS, [seconds] * len(CONNECTIONS)), strict=True))
        beside = together[self.model]
        return Rate(beside.value / alone.value if alone.value else math.nan, beside.p50_ms, beside.p99_ms)


@contextmanager
def _both(peer: Torpor) -> Iterator["_Load"]:
    with (
        tempfile.TemporaryDirectory(prefix="bench-load-") as folder,
        running(peer, "pair", "", 32, CORES, "") as server,
    ):
        files: dict[str, Path] = {}
        with ExitStack() as probes:
            for model in CONNECTIONS:
                wire = V2Binary(model)
                files[model] = Path(folder) / model
                loads.write_requests([wire.encode(row) for row in load_rows(model)], files[model])
                probe = Probe(wire, *probe_rows(model))
                probe.wait_ready(server, server.port)
                probes.enter_context(probe.beside(server.port))
            yield _Load(server.port, files)


@dataclass(frozen=True)
class _Load:
    port: int
    files: dict[str, Path]

    def __call__(self, model: str, seconds: float) -> Rate:
        return loads.over_http1(self.port, self.files[model], seconds, CONNECTIONS[model])
