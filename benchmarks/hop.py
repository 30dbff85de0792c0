"""A raw-socket echo: `hop.py ADDRESS REQUEST_BYTES ANSWER_BYTES`; for each request of so many bytes it answers so many.

ADDRESS is a port on this machine, or unix:PATH. The loop is the server's own, uvloop, without a parser on top: what remains is
the way there and back.
"""

import asyncio
import sys

import uvloop


class Echo(asyncio.Protocol):
    def __init__(self, request_bytes: int, answer: bytes) -> None:
        self.request_bytes = request_bytes
        self.answer = answer
        self.received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.received >= self.request_bytes:
            self.received -= self.request_bytes
            self.transport.write(self.answer)  # type: ignore[attr-defined]


async def main(address: str, request_bytes: int, answer_bytes: int) -> None:
    loop = asyncio.get_running_loop()

    def protocol() -> Echo:
        return Echo(request_bytes, b"x" * answer_bytes)

    if address.startswith("unix:"):
        server = await loop.create_unix_server(protocol, address.removeprefix("unix:"))
    else:
        server = await loop.create_server(protocol, "127.0.0.1", int(address))
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
