"""Starting and stopping one server: torpor itself, or a peer in its own environment.

Each is a session of its own, so that everything it started can be found and ended, in a scratch folder which is removed
afterwards. Servers run one at a time and are started anew for each round: an idle server is never quite idle (pollers,
garbage collection), and two of them don't fit two cores.

A peer is the folder `peers/NAME`: `requirements.txt` and `server.py`, which reads `assignment`.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from assignment import MAX_WAIT_S, variables
from environments import BENCHMARKS, UnavailableError, minilm_folder, python_of

PORTS = range(21_000, 29_000, 10)
"""Candidates for a server's first port; it may use the four above as well."""


@dataclass(frozen=True)
class Peer:
    name: str
    packages: tuple[str, ...] = ()
    """Whose versions are reported."""

    warm_s: float = 2.0
    """Load before the measurement; longer where the server compiles itself while it runs."""

    workers: int = 1
    """Processes that run the model, for those that are asked for it."""

    def command(self, model: str, port: int, batch_rows: int) -> list[str]:
        return [str(python_of(self.name)), str(BENCHMARKS / "peers" / self.name / "server.py")]

    def variables(self) -> dict[str, str]:
        """What its environment has beside the assignment."""
        return {"PYTHONPATH": str(BENCHMARKS)}


@dataclass(frozen=True)
class Torpor(Peer):
    """The checkout's own server, from the environment this benchmark runs in."""

    options: tuple[str, ...] = ()

    def command(self, model: str, port: int, batch_rows: int) -> list[str]:
        executable = Path(sys.executable).with_name("torpor")
        if not executable.exists():
            raise UnavailableError(f"{executable.name} is not installed beside this Python")
        own = BENCHMARKS / "classes" / model
        example = own if own.is_dir() else BENCHMARKS.parent / "examples" / model
        return [
            str(executable), "serve", str(example), "--port", str(port), "--max-batch-size", str(batch_rows),
            "--batch-timeout-micros", str(round(MAX_WAIT_S * 1e6)), "--log-level", "warning",
            "--processes", str(self.workers), *self.options,
        ]  # fmt: skip

    def variables(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True)
class StockTransformer(Peer):
    """`transformer.py` of a peer, told where its predictor is by the flags that KServe's controller adds, and few more."""

    predictor: str = ""
    """host:port"""

    protocol: str = "v1"

    def command(self, model: str, port: int, batch_rows: int) -> list[str]:
        return [
            str(python_of(self.name)), str(BENCHMARKS / "peers" / self.name / "transformer.py"),
            "--model_name", "minilm", "--predictor_host", self.predictor, "--http_port", str(port),
            "--predictor_protocol", self.protocol, "--grpc_port", str(port + 1),
            "--configure_logging", "False", "--enable_latency_logging", "False",
        ]  # fmt: skip


@dataclass(frozen=True)
class Running:
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def check_alive(self) -> None:
        if self.process.poll() is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            raise UnavailableError(
                f"it ended with {self.process.returncode}: {lines[-1][:200] if lines else 'no output'}"
            )


@contextmanager
def running(peer: Peer, model: str, form: str, batch_rows: int, threads: int, waiting: str) -> Iterator[Running]:
    """A started process that doesn't need to answer yet."""
    port = free_port()
    command = peer.command(model, port, batch_rows)
    environment = environment_of(peer, model, form, port, batch_rows, threads, waiting)
    scratch = Path(tempfile.mkdtemp(prefix=f"bench-{peer.name}-"))
    # Sockets and pid files of fixed names, such as TorchServe's, stay inside.
    environment["TMPDIR"] = str(scratch)
    try:
        with started(command, scratch, environment, port) as server:
            yield server
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def environment_of(
    peer: Peer, model: str, form: str, port: int, batch_rows: int, threads: int, waiting: str
) -> dict[str, str]:
    """All variables of a server's process."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = inherited | variables(model, form, port, batch_rows, peer.workers)
    # torch takes its threads from here, whichever process it runs in.
    environment |= {"OMP_NUM_THREADS": str(threads), **peer.variables()}
    if waiting:
        environment["OMP_WAIT_POLICY"] = waiting
    if model in ("minilm", "pair", "sentences"):
        weights = minilm_folder()
        environment["BENCH_MINILM"] = str(weights)
        if isinstance(peer, Torpor):
            # The example imports the weights' package.
            already = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(weights.parents[1]), already)))
    return environment


@contextmanager
def started(command: list[str], folder: Path, environment: dict[str, str], port: int) -> Iterator[Running]:
    """A session of its own, whose log is in the folder that it works in; ended with all that it started."""
    log = folder / "server.log"
    # Appended to: gVisor writes where it believes the file's end to be.
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield Running(port, process, log)
    finally:
        _stop(process)


def free_port() -> int:
    # In random order: a server that others start in this moment would take the first one as well.
    for port in random.sample(PORTS, len(PORTS)):
        try:
            for offset in range(5):
                with socket.socket() as attempt:
                    attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    attempt.bind(("", port + offset))
        except OSError:
            continue
        return port
    raise UnavailableError("no free port")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends every process of the session: politely, then for good."""
    members = session(process.pid)
    for signum, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        for pid in members:
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                continue
        limit = time.monotonic() + patience_s
        while members and time.monotonic() < limit:
            process.poll()
            members = session(process.pid)
            time.sleep(0.05)
    process.wait()


def session(leader: int) -> list[int]:
    """Living processes of that session: some peers put their children into process groups of their own."""
    members = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            members.append(int(folder.name))
    return members
