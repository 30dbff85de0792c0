"""A server of files for agents, whose answers may be spoilt: each path begins with whom it is for."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Spoil = Callable[["Answer"], None]
"""Changes an answer before it is sent."""


class Answer:
    """path: below the repository. status, headers and body as they will be sent; cut: bytes after which the connection ends."""

    def __init__(self, whom: str, path: str, status: int, headers: dict[str, str], body: bytes) -> None:
        self.whom, self.path = whom, path
        self.status, self.headers, self.body = status, headers, body
        self.cut: int | None = None


class Mirrors(ThreadingHTTPServer):
    """folder: of the repository. spoil: by who asks (the first step of the path). It has ranges and tags, as nginx does."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, folder: Path, spoil: Spoil = lambda answer: None, has_ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.spoil, self.has_ranges = folder, spoil, has_ranges
        self.asked: list[tuple[str, str, int]] = []
        """whom, path, status."""

    def url(self, whom: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{whom}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave in the middle are what is tested."""

    @contextmanager
    def running(self) -> Iterator["Mirrors"]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # Head and body in one packet: in two, the second waits for an acknowledgement.
    server: Mirrors

    def do_GET(self) -> None:
        _, whom, path = self.path.split("/", 2)
        answer = self._found(whom, path)
        self.server.spoil(answer)
        self.server.asked.append((whom, path, answer.status))
        self.send_response(answer.status)
        for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body[: answer.cut])
        if answer.cut is not None and answer.cut < len(answer.body):
            self.close_connection = True

    def _found(self, whom: str, path: str) -> Answer:
        file = self.server.folder / path
        try:
            data = file.read_bytes()
        except OSError:
            return Answer(whom, path, 404, {}, b"")
        tag = f'"{file.stat().st_mtime_ns}"'
        headers = {"ETag": tag}
        if self.headers.get("If-None-Match") == tag:
            return Answer(whom, path, 304, headers, b"")
        asked = self.headers.get("Range")
        if asked and self.server.has_ranges:
            offset = int(asked.removeprefix("bytes=").removesuffix("-"))
            if offset >= len(data):
                return Answer(whom, path, 416, {"Content-Range": f"bytes */{len(data)}"}, b"")
            headers["Content-Range"] = f"bytes {offset}-{len(data) - 1}/{len(data)}"
            return Answer(whom, path, 206, headers, data[offset:])
        return Answer(whom, path, 200, headers, data)

    def log_message(self, format: str, *arguments: object) -> None: ...
