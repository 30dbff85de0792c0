"""A plain receiver of reports: POST, and each event is a line of a file. Any other receiver of CloudEvents does as well.

It knows no caller, so it belongs behind what does: a proxy with client certificates, or a network of the nodes' own.
"""

import threading
from collections.abc import Callable
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from torpor.predictors.errors import InvalidInput, UnsupportedMedia
from torpor.transformers.events import Event, decode

from .reports import append

MOST_BODY_BYTES = 1 << 16
IDLE_S = 30.0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    server: "Receiver"

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BODY_BYTES:
            self._answer(411 if not length.isdecimal() else 413)
            return
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            return
        headers = {name.lower().encode(): value.encode("latin-1", "replace") for name, value in self.headers.items()}
        try:
            found = decode(headers, body)
            self._answer(self.server.take(found if isinstance(found, list) else [found]))
        except UnsupportedMedia:
            self._answer(415)
        except InvalidInput:
            self._answer(400)

    def _answer(self, status: int) -> None:
        if status >= 400:
            self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """A line for each report would say what the file says."""


class Receiver(ThreadingHTTPServer):
    """`serve_forever` takes reports until `shutdown`. most_bytes: of the file; beyond that it takes none."""

    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], file: Path, most_bytes: int, now: Callable[[], datetime]) -> None:
        """Raises OSError."""
        file.touch()
        super().__init__(address, _Handler)
        self._file, self._most_bytes, self._now = file, most_bytes, now
        self._lock = threading.Lock()

    def take(self, events: list[Event]) -> int:
        """The status: 204 when they are on the disk."""
        with self._lock:
            try:
                if self._file.stat().st_size >= self._most_bytes:
                    return 507
                for event in events:
                    append(self._file, event, self._now())
            except OSError:
                return 503
        return 204
