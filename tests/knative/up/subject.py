"""A server on $PORT for tests of `torpor up`: starts at once, holds answers until it is told, and can end itself.

POST /echo answers with the body, piece by piece as it comes. GET /hold answers when somebody has asked for /release.
GET /facts tells its process, port, arguments and environment, and who left it unanswered. GET /crash ends it without an answer,
GET /half in the middle of one. With the argument `crash` it ends before it listens; with `late FIFO` it listens when FIFO has a
writer; with `deaf` it takes no SIGTERM.
"""

import asyncio
import json
import os
import signal
import sys

left = 0
released = asyncio.Event()


async def head_of(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines[1:] if line)
    return lines[0].split(" ")[1], {name.lower(): value.strip() for name, _, value in fields}


async def pieces(reader: asyncio.StreamReader, fields: dict[str, str]):
    if fields.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            yield await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
        return
    missing = int(fields.get("content-length", 0))
    while missing:
        piece = await reader.read(min(missing, 1 << 16))
        if not piece:
            return
        missing -= len(piece)
        yield piece


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    global left
    try:
        while True:
            path, fields = await head_of(reader)
            if path == "/echo":
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                async for piece in pieces(reader, fields):
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    await writer.drain()
                writer.write(b"0\r\n\r\n")
            elif path == "/hold":
                gone = asyncio.ensure_future(reader.read(1))
                freed = asyncio.ensure_future(released.wait())
                done, _ = await asyncio.wait((gone, freed), return_when=asyncio.FIRST_COMPLETED)
                if gone in done:
                    left += 1
                    return
                gone.cancel()
                writer.write(whole(b"held"))
            elif path == "/release":
                released.set()
                writer.write(whole(b"released"))
            elif path == "/facts":
                facts = {"pid": os.getpid(), "port": int(os.environ["PORT"]), "left": left, "arguments": sys.argv[1:]}
                writer.write(whole(json.dumps(facts | {"environment": dict(os.environ)}).encode()))
            elif path == "/crash":
                os._exit(3)
            elif path == "/half":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
                await writer.drain()
                os._exit(3)
            else:
                writer.write(whole(path.encode()))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    print("subject starts", flush=True)
    if "crash" in sys.argv:
        sys.exit(3)
    if "deaf" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    if "late" in sys.argv:
        await asyncio.to_thread(open, sys.argv[sys.argv.index("late") + 1])
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ["PORT"]))
    await stopping.wait()
    server.close()


if __name__ == "__main__":
    stopping = asyncio.Event()
    asyncio.run(main())
