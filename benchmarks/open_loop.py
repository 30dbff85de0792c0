"""Sentences that come by themselves, and what the simulator says of those that come in a loop.

`Poisson` offers a share of what the server can do; a latency counts from the moment that the request was due, so that a
server that stalls cannot hide it by stalling its callers (coordinated omission).
"""

import asyncio
import json
import math
import random
import statistics
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import loads
from loads import CONNECTIONS, BadAnswerError, Rate
from measurements import Served, load_rows, run_script
from rows import LONGEST, MEDIAN_TOKENS, SHORTEST, SIGMA


@dataclass(frozen=True)
class Poisson(Served):
    """The 99th percentile of the latency at a share of saturation, in units of T1 + T8.

    These are what raw torch takes for 1 and for 8 sentences as long as the load's 95th percentile.
    """

    share: float = 0.7

    def measure(self, seconds: float) -> Rate:
        with self.ready() as (server, probe, file):
            exchanges = [self.wire.encode(row).http1() for row in load_rows(self.model)]
            loads.write_requests([self.wire.encode(row) for row in load_rows(self.model)], file)
            loads.over_http1(server.port, file, self.peer.warm_s)
            saturation = loads.over_http1(server.port, file, seconds).value
            with probe.beside(server.port):
                taken = asyncio.run(_offered(server.port, exchanges, self.share * saturation, 3 * seconds))
        one_s, eight_s = _raw_times()
        return Rate(
            statistics.quantiles(taken, n=100)[98] / (one_s + eight_s),
            statistics.median(taken) * 1e3,
            statistics.quantiles(taken, n=100)[98] * 1e3,
        )


@dataclass(frozen=True)
class Simulated(Served):
    """Sentences a second from 64 callers in a loop, in units of what the simulator says of them.

    It gets the times that the server has just learned, and HTTP costs nothing there.
    """

    def measure(self, seconds: float) -> Rate:
        with self.ready() as (server, probe, file):
            loads.write_requests([self.wire.encode(row) for row in load_rows(self.model)], file)
            loads.over_http1(server.port, file, self.peer.warm_s)
            with probe.beside(server.port):
                measured = loads.over_http1(server.port, file, seconds)
            command = [
                str(Path(sys.executable).with_name("torpor")), "simulate", "--callers", str(CONNECTIONS), "--json",
                "--lengths", f"{MEDIAN_TOKENS}:{SHORTEST}:{LONGEST}", "--sigma", str(SIGMA), "--gap-s", "0",
                "--max-batch-size", str(self.batch_rows), "--url", f"http://127.0.0.1:{server.port}",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BadAnswerError(done.stderr)
        return Rate(measured.value / json.loads(done.stdout)["rows_per_s"], measured.p50_ms, measured.p99_ms)


async def _offered(port: int, messages: list[bytes], rate: float, seconds: float) -> list[float]:
    """Seconds from when each request was due to its answer."""
    chance = random.Random(0)
    loop = asyncio.get_running_loop()
    idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()
    taken: list[float] = []

    async def ask(message: bytes, due_s: float) -> None:
        reader, writer = idle.popleft() if idle else await asyncio.open_connection("127.0.0.1", port)
        writer.write(message)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise BadAnswerError(f"open loop: {head[:200]!r}")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length[15:]))
        taken.append(loop.time() - due_s)
        idle.append((reader, writer))

    due_s, end_s = loop.time(), loop.time() + seconds
    async with asyncio.TaskGroup() as group:
        while due_s < end_s:
            due_s += chance.expovariate(rate)
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            group.create_task(ask(chance.choice(messages), due_s))
    for _, writer in idle:
        writer.close()
    return taken


def _raw_times() -> tuple[float, float]:
    """Seconds of 1 and of 8 sentences of the 95th percentile's length, by raw torch in a process of its own."""
    lengths = [row["input_ids"].shape[1] for row in load_rows("minilm")]
    tokens = math.ceil(float(np.percentile(lengths, 95)))
    seconds = json.loads(run_script("one_batch.py", [str(tokens), "1", "8"]))
    return seconds["1"], seconds["8"]
