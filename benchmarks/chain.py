"""What a transformer costs at concurrency 1: a chain's latency beyond its predictor's, in units of what it cannot do without.

In the predictor's process that is one way from the event loop to a thread and back: what an echo takes longer that goes this
way before it answers. Elsewhere it is one way over a socket and back, with the same bytes. All of it is measured in turns, by
the same blocking client.
"""

import math
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from beginnings import ready
from environments import BENCHMARKS
from loads import BadAnswerError, Rate
from measurements import load_rows
from servers import free_port
from wires import V2Binary

MLP = BENCHMARKS.parent / "examples" / "mlp"
PASSING = BENCHMARKS / "classes" / "passing"
CHUNK = 50


@dataclass(frozen=True)
class ChainLatency:
    """placement: process, pod or remote."""

    label: str
    placement: str

    def measure(self, seconds: float) -> Rate:
        message = V2Binary("mlp").encode(load_rows("mlp")[0]).http1()
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-chain-")))
            alone = stack.enter_context(ready(MLP, "--unix-socket", str(scratch / "predictor")))
            where = {"process": str(MLP), "pod": f"unix:{scratch / 'predictor'}", "remote": f"127.0.0.1:{alone}"}
            options = ("--model-name", "mlp", "--predictor", where[self.placement])
            chain = stack.enter_context(ready(PASSING, *options))
            ask_alone, ask_chain = asking(alone, message), asking(chain, message)
            answer = ask_alone()
            if answer[-40:] != ask_chain()[-40:]:  # the output's numbers
                raise BadAnswerError("the chain's answer is not its predictor's")
            look = {"alone": timed(ask_alone), "chain": timed(ask_chain)}
            unix = f"unix:{scratch / 'echo'}"
            for name, address, *trip in (
                [("echo", unix), ("trip", f"{unix}-trip", "trip")] if self.placement == "process"
                else [("echo", unix if self.placement == "pod" else str(free_port()))]
            ):  # fmt: skip
                command = [str(BENCHMARKS / "hop.py"), address, str(len(message)), str(len(answer)), *trip]
                stack.enter_context(started([sys.executable, *command], "ready"))
                look[name] = timed(asking(address, message, len(answer)))
            taken: dict[str, list[float]] = {name: [] for name in look}
            end_s = time.perf_counter() + seconds
            while time.perf_counter() < end_s:
                for name, times in look.items():
                    taken[name] += times()
        middle = {name: statistics.median(times) for name, times in taken.items()}
        beside = {f"{name} us": value * 1e6 for name, value in middle.items()}
        base = middle["echo"] if self.placement != "process" else middle["trip"] - middle["echo"]
        return Rate((middle["chain"] - middle["alone"]) / base, math.nan, math.nan, beside)


@contextmanager
def started(command: list[str], mark: str) -> Iterator[None]:
    """A process that has said that it is ready."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if mark in line:
                break
        else:
            raise BadAnswerError(f"{command[0]} ended with {process.wait()}")
        yield
    finally:
        process.kill()
        process.communicate()


def asking(address: int | str, message: bytes, answer_bytes: int | None = None) -> Callable[[], bytes]:
    """One request and its answer, on a connection of its own. answer_bytes: of an answer without a head."""
    if isinstance(address, str) and address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address.removeprefix("unix:"))
    else:
        connection = socket.create_connection(("127.0.0.1", int(address)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    size = answer_bytes

    def ask() -> bytes:
        nonlocal size
        connection.sendall(message)
        answer = connection.recv(1 << 16)
        if size is None:
            head, _, body = answer.partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise BadAnswerError(f"{head[:100]!r}")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            size = len(answer) - len(body) + int(length[15:])
        while len(answer) < size:
            answer += connection.recv(1 << 16)
        return answer

    return ask


def timed(ask: Callable[[], object]) -> Callable[[], list[float]]:
    """The seconds of each of some."""

    def look() -> list[float]:
        taken = []
        for _ in range(CHUNK):
            began_s = time.perf_counter()
            ask()
            taken.append(time.perf_counter() - began_s)
        return taken

    return look
