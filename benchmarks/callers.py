"""Real gRPC clients: two processes of grpcio's asyncio API, 32 calls at a time each, over eight channels in all.

`callers.py PORT SECONDS PATH FILE ANSWER_BYTES` sends the file's message and prints the calls per second. grpcio raises
for any status but OK, and each answer must have the size of a good one. On a small machine the clients cost more than
the server, which is why h2load gives the figure and these stand beside it.
"""

import asyncio
import multiprocessing
import sys
import time
from pathlib import Path

import grpc.aio

PROCESSES, CHANNELS, CALLS = 2, 4, 32


async def call(port: int, seconds: float, path: str, message: bytes, answer_bytes: int) -> int:
    channels = [
        # Channels to the same address share a connection unless they differ.
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(CHANNELS)
    ]
    until, done = time.monotonic() + seconds, 0

    async def one(invoke: grpc.aio.UnaryUnaryMultiCallable) -> None:
        nonlocal done
        while time.monotonic() < until:
            answer = await invoke(message, timeout=30)
            if len(answer) != answer_bytes:
                raise ValueError(f"an answer of {len(answer)} bytes, not {answer_bytes}")
            done += 1

    await asyncio.gather(*(one(channels[index % CHANNELS].unary_unary(path)) for index in range(CALLS)))
    for channel in channels:
        await channel.close()
    return done


def work(arguments: tuple[int, float, str, bytes, int]) -> int:
    return asyncio.run(call(*arguments))


def main() -> None:
    port, seconds, path, file, answer_bytes = sys.argv[1:]
    job = (int(port), float(seconds), path, Path(file).read_bytes(), int(answer_bytes))
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        print(sum(pool.map(work, [job] * PROCESSES, chunksize=1)) / float(seconds))


if __name__ == "__main__":
    main()
