"""A raw-socket echo: `hop.py ADDRESS REQUEST_BYTES ANSWER_BYTES [trip]`; for each request of so many bytes it answers so many.

ADDRESS is a port on this machine, or unix:PATH. The loop is torpor's, uvloop, without a parser on top: what remains is the way
there and back. With `trip` each request goes from the loop to a thread and back before it is answered.
"""

import asyncio
import sys
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

import uvloop


class Echo(asyncio.Protocol):
    def __init__(self, request_bytes: int, answer: bytes, jobs: "SimpleQueue[Callable[[], object]] | None") -> None:
        self.request_bytes = request_bytes
        self.jobs = jobs
        self.loop = asyncio.get_running_loop()
        self.answer = answer
        self.received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.received >= self.request_bytes:
            self.received -= self.request_bytes
            if self.jobs is None:
                self.reply()
            else:
                self.jobs.put(lambda: self.loop.call_soon_threadsafe(self.reply))

    def reply(self) -> None:
        self.transport.write(self.answer)  # type: ignore[attr-defined]


def work(jobs: "SimpleQueue[Callable[[], object]]") -> None:
    while True:
        jobs.get()()


async def main(address: str, request_bytes: int, answer_bytes: int, with_trip: bool) -> None:
    loop = asyncio.get_running_loop()
    jobs: SimpleQueue[Callable[[], object]] | None = None
    if with_trip:
        jobs = SimpleQueue()
        Thread(target=work, args=(jobs,), daemon=True).start()

    def protocol() -> Echo:
        return Echo(request_bytes, b"x" * answer_bytes, jobs)

    if address.startswith("unix:"):
        server = await loop.create_unix_server(protocol, address.removeprefix("unix:"))
    else:
        server = await loop.create_server(protocol, "127.0.0.1", int(address))
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] == ["trip"]))
