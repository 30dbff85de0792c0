"""Requests whose user's features are looked up before the model runs: what Redis saves of a loader that takes 120 ms.

A redis-server of its own, filled by `torpor features warm`. Callers in a loop; nine requests of ten name a user who is
there, the tenth one whom nobody has asked for yet. Each answer must be its user.
"""

import asyncio
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from beginnings import connect, ready
from environments import BENCHMARKS, UnavailableError
from loads import BadAnswerError, Rate
from servers import free_port

FOLDER = BENCHMARKS / "classes" / "features"
TORPOR = str(Path(sys.executable).with_name("torpor"))
CALLERS = 16
KNOWN = 2_000
HITS = 0.9
WARM_S = 1.0


@dataclass(frozen=True)
class LookedUp:
    """The median in ms. has_redis: false for the loader alone, while nothing listens where Redis should be."""

    label: str
    has_redis: bool = True

    def measure(self, seconds: float) -> Rate:
        if shutil.which("redis-server") is None:
            raise UnavailableError("redis-server is missing; install the Debian package redis-server")
        port = free_port()
        environment = os.environ | {"TORPOR_FEATURES_URL": f"redis://127.0.0.1:{port}"}
        if not self.has_redis:
            with ready(FOLDER, variables=environment) as server:
                return asyncio.run(_load(server, seconds))
        with _redis(port):
            keys = "\n".join(map(str, range(KNOWN)))
            command = [TORPOR, "features", "warm", str(FOLDER), "--keys", "-"]
            subprocess.run(command, input=keys, text=True, env=environment, check=True, stdout=subprocess.DEVNULL)
            with ready(FOLDER, variables=environment) as server:
                return asyncio.run(_load(server, seconds))


@contextmanager
def _redis(port: int) -> Iterator[None]:
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        connect(port).close()
        yield
    finally:
        process.kill()
        process.wait()


async def _load(port: int, seconds: float) -> Rate:
    chance = random.Random(0)
    fresh = iter(range(KNOWN, 1 << 20))
    taken: list[float] = []
    began_s = time.perf_counter()

    async def caller() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (asked_s := time.perf_counter()) < began_s + WARM_S + seconds:
            user = chance.randrange(KNOWN) if chance.random() < HITS else next(fresh)
            body = json.dumps(
                {"inputs": [{"name": "user", "datatype": "INT64", "shape": [1], "data": [user]}]}
            ).encode()
            head = f"POST /v2/models/features/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            content = await reader.readexactly(length)
            if not answer.startswith(b"HTTP/1.1 200") or json.loads(content)["outputs"][0]["data"] != [user]:
                raise BadAnswerError(f"user {user}: {content[:200]!r}")
            now_s = time.perf_counter()
            if now_s > began_s + WARM_S:
                taken.append((now_s - asked_s) * 1e3)
        writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller())
    cuts = statistics.quantiles(taken, n=100)
    return Rate(cuts[49], cuts[49], cuts[98])
