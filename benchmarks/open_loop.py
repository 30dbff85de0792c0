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
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

import loads
from bodies import Row
from loads import CONNECTIONS, BadAnswerError, Rate
from measurements import Served, TooSlowError, load_rows, run_script
from rows import LONGEST, MEDIAN_TOKENS, SHORTEST, SIGMA
from servers import Torpor


class Answered(NamedTuple):
    """One request, by its times in seconds since the load began."""

    due_s: float
    sent_s: float
    answered_s: float
    tokens: int


@dataclass(frozen=True)
class Poisson(Served):
    """The 99th percentile of the latency at a share of saturation, in units of T1 + T8.

    These are what raw torch takes for 1 and for 8 sentences as long as the load's 95th percentile. Beside it stand, in
    the same unit, how late the load itself was, and for torpor what the simulator says of the same arrivals on a device
    that takes raw torch's time: what is more than that is the server's, or the machine's. The share counts from a
    saturation that is measured a moment before; if it has fallen afterwards (below 1), the load was a larger share.
    """

    share: float = 0.7

    def measure(self, seconds: float) -> Rate:
        with self.ready() as (server, probe, file):
            exchanges = [self.wire.encode(row) for row in load_rows(self.model)]
            loads.write_requests(exchanges, file)
            loads.over_http1(server.port, file, self.peer.warm_s)
            saturation = loads.over_http1(server.port, file, seconds).value
            if not saturation:
                raise TooSlowError(f"no answer to the load within {seconds:g} s; --seconds must be longer")
            messages = [
                (exchange.http1(), tokens_of(row))
                for exchange, row in zip(exchanges, load_rows(self.model), strict=True)
            ]
            with probe.beside(server.port):
                answered = asyncio.run(_offered(server.port, messages, self.share * saturation, 3 * seconds))
            afterwards = loads.over_http1(server.port, file, seconds).value
        tokens = math.ceil(float(np.percentile([tokens_of(row) for row in load_rows(self.model)], 95)))
        one_s, eight_s = _raw_times(tokens)
        unit_s = one_s + eight_s
        taken = [each.answered_s - each.due_s for each in answered]
        late = [each.sent_s - each.due_s for each in answered]
        beside = {
            "offered a second": self.share * saturation,
            "p50": statistics.median(taken) / unit_s,
            "load's lateness p99": _p99(late) / unit_s,
        }
        if isinstance(self.peer, Torpor):
            # The line through both times.
            cell_s = max(0.0, eight_s - one_s) / (7 * tokens)
            overhead_s = max(0.0, one_s - cell_s * tokens)
            beside["simulated p99"] = self._simulated(answered, overhead_s, cell_s) / unit_s
        beside["saturation afterwards by before"] = afterwards / saturation
        return Rate(_p99(taken) / unit_s, statistics.median(taken) * 1e3, _p99(taken) * 1e3, beside)

    def _simulated(self, answered: list[Answered], overhead_s: float, cell_s: float) -> float:
        """Seconds of the 99th percentile of the same arrivals, as the simulator has it."""
        with tempfile.NamedTemporaryFile("w", suffix=".csv") as trace:
            trace.write("arrival_s,tokens\n")
            trace.writelines(f"{each.due_s},{each.tokens}\n" for each in answered)
            trace.flush()
            figures = simulated(
                "--trace", trace.name, "--max-batch-size", str(self.batch_rows),
                "--overhead-s", str(overhead_s), "--cell-s", str(cell_s),
            )  # fmt: skip
        return figures["latency_p99_ms"] / 1e3


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
            figures = simulated(
                "--callers", str(CONNECTIONS), "--gap-s", "0",
                "--lengths", f"{MEDIAN_TOKENS}:{SHORTEST}:{LONGEST}", "--sigma", str(SIGMA),
                "--max-batch-size", str(self.batch_rows), "--url", f"http://127.0.0.1:{server.port}",
            )  # fmt: skip
        return Rate(measured.value / figures["rows_per_s"], measured.p50_ms, measured.p99_ms)


def simulated(*arguments: str) -> dict[str, float]:
    """What `torpor simulate` prints."""
    command = [str(Path(sys.executable).with_name("torpor")), "simulate", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BadAnswerError(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def tokens_of(row: Row) -> int:
    return int(row["input_ids"].shape[1])


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


async def _offered(port: int, messages: list[tuple[bytes, int]], rate: float, seconds: float) -> list[Answered]:
    """Offer `messages`, each with its tokens, `rate` a second for so long."""
    chance = random.Random(0)
    loop = asyncio.get_running_loop()
    idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()
    answered: list[Answered] = []
    began_s = loop.time()

    async def ask(message: bytes, tokens: int, due_s: float) -> None:
        reader, writer = idle.popleft() if idle else await asyncio.open_connection("127.0.0.1", port)
        writer.write(message)
        sent_s = loop.time()
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise BadAnswerError(f"open loop: {head[:200]!r}")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length[15:]))
        answered.append(Answered(due_s - began_s, sent_s - began_s, loop.time() - began_s, tokens))
        idle.append((reader, writer))

    due_s, end_s = began_s, began_s + seconds
    async with asyncio.TaskGroup() as group:
        while due_s < end_s:
            due_s += chance.expovariate(rate)
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            group.create_task(ask(*chance.choice(messages), due_s))
    for _, writer in idle:
        writer.close()
    return answered


def _raw_times(tokens: int) -> tuple[float, float]:
    """Seconds of 1 and of 8 sentences of so many tokens, by raw torch in a process of its own."""
    seconds = json.loads(run_script("one_batch.py", [str(tokens), "1", "8"]))
    return seconds["1"], seconds["8"]
