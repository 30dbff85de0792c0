"""One archive by the real archiver, served by TorchServe and by torpor: what each answers under load, how each begins.

The MLP is as archives are: an eager model file, its weights, a class on the stock base handler. The sentence model's handler
tokenises. Each archive says its batch, its delay and its one worker in its own YAML, which both servers read.
"""

import http.client
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import archiver
from assignment import MAX_WAIT_S
from bare import resident_mib
from beginnings import LIMIT_S, median_start
from environments import BENCHMARKS, HOME, minilm_folder, python_of
from loads import BadAnswerError, Rate
from measurements import THREADS, probe_rows
from probe import Probe, RefusedError
from servers import Peer, Running, Torpor, running, session
from wires import Raw, Text, V1Json, Wire

HANDLERS = BENCHMARKS / "handlers"


Flags = tuple[tuple[str, bool], ...]
"""Settings of torpor's own in an archive's YAML."""


@cache
def archive(model: str, form: str, batch_rows: int, flags: Flags = ()) -> Path:
    """The archive of a model for that form of bodies, made once a run."""
    folder = HOME / "archives" / "-".join([model, form, str(batch_rows), *(f"{name}-{value}" for name, value in flags)])
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "minWorkers": 1, "maxWorkers": 1, "batchSize": batch_rows, "maxBatchDelay": round(MAX_WAIT_S * 1e3),
        "responseTimeout": 120, "jobQueueSize": 1000,
    }  # fmt: skip
    lines = [*settings.items(), *((name, str(value).lower()) for name, value in flags)]
    (folder / "model.yaml").write_text("".join(f"{name}: {value}\n" for name, value in lines))
    options = ["--config-file", str(folder / "model.yaml"), "--force"]
    if model == "mlp":
        weights = folder / "mlp.pt"
        _save_mlp(weights)
        options += ["--handler", f"mlp_{form}.py", "--model-file", "mlp.py", "--serialized-file", str(weights)]
    else:
        files = [minilm_folder() / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
        extra = ",".join(map(str, [*files, BENCHMARKS / "models.py"]))
        options += ["--handler", "minilm.py", "--extra-files", extra]
    return archiver.make(model, folder, HANDLERS, *options)


def _save_mlp(file: Path) -> None:
    import torch

    from models import Mlp

    torch.save(Mlp.load().state_dict(), file)


@dataclass(frozen=True)
class ArchivedTorchServe(Peer):
    """Java front and one worker, with that archive."""

    form: str = "raw"

    def command(self, model: str, port: int, batch_rows: int) -> list[str]:
        return [*super().command(model, port, batch_rows), str(archive(_named(model), self.form, batch_rows))]


@dataclass(frozen=True)
class ArchivedTorpor(Torpor):
    """`torpor serve ARCHIVE`."""

    form: str = "raw"
    flags: Flags = ()

    def command(self, model: str, port: int, batch_rows: int) -> list[str]:
        served = archive(_named(model), self.form, batch_rows, self.flags)
        torpor = str(Path(sys.executable).with_name("torpor"))
        return [torpor, "serve", str(served), "--port", str(port), "--host", "127.0.0.1", "--log-level", "warning"]

    def variables(self) -> dict[str, str]:
        return archiver.for_torpor()


def _named(model: str) -> str:
    return "minilm" if model == "sentences" else model


def wire(model: str, form: str) -> Wire:
    path = f"/predictions/{_named(model)}"
    if model == "sentences":
        return Text(path)
    return Raw(path) if form == "raw" else V1Json(path)


@dataclass(frozen=True)
class ArchiveStart:
    """Seconds from the start of a process to its first correct answer; the median of as many starts as the time holds.

    Without a peer it is a script that does the same with the same archive.
    """

    label: str
    peer: Peer | None
    model: str

    def measure(self, seconds: float) -> Rate:
        return median_start(self._start, seconds)

    def _start(self) -> float:
        if self.peer is None:
            return _scripted(self.model)
        with _answering(self.peer, self.model) as (_, taken_s):
            return taken_s


@dataclass(frozen=True)
class ArchiveMemory:
    """MiB after the first answer, of all processes; a page that several of them share counts once."""

    label: str
    peer: Peer
    model: str

    def measure(self, seconds: float) -> Rate:
        with _answering(self.peer, self.model) as (server, _):
            members = session(server.process.pid)
            whole_mib = sum(map(resident_mib, members))
            beside = {"resident, shared pages in each": whole_mib, "processes": float(len(members))}
            return Rate(sum(map(_share_mib, members)), math.nan, math.nan, beside)


@contextmanager
def _answering(peer: Peer, model: str) -> Iterator[tuple[Running, float]]:
    """A server that has just given its first correct answer, and the seconds from its start to that."""
    probe = Probe(wire(model, "raw"), *probe_rows(model))
    # The archive is not made on the server's time.
    archive(_named(model), "raw", 64)
    began_s = time.perf_counter()
    with running(peer, model, "raw", 64, THREADS[model], "") as server:
        while True:
            server.check_alive()
            try:
                probe.ask(server.port)
                break
            except (OSError, http.client.HTTPException, RefusedError):
                if time.perf_counter() - began_s > LIMIT_S:
                    raise
            time.sleep(0.005)
        yield server, time.perf_counter() - began_s


def _scripted(model: str) -> float:
    row = probe_rows(model)[0][0]
    exchange = wire(model, "raw").encode(row)
    with tempfile.NamedTemporaryFile() as body:
        body.write(exchange.body)
        body.flush()
        script = BENCHMARKS / "bare_archive.py"
        kind = "text" if model == "sentences" else "raw"
        arguments = [str(script), str(archive(_named(model), "raw", 64)), body.name, kind]
        began_s = time.perf_counter()
        process = subprocess.Popen(
            [str(python_of("torchserve")), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(THREADS[model])},
        )  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        taken_s = time.perf_counter() - began_s
        process.kill()
        process.communicate()
    if not line:
        raise BadAnswerError(f"{model}: the bare script gave no answer")
    return taken_s


def _share_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("Pss:")[1].split()[0]) / 1024
