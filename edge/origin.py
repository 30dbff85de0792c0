"""A server of files, or a receiver of reports, over HTTP/1.1 by one connection; nothing that it says is trusted.

Whatever it does, a call ends: a body has a size that is known before, or a largest one; bytes must come at LOWEST_BYTES_S on
average after GRACE_S, and never pause for longer than IDLE_S. So a slow link is waited for, and a server that only trickles is
not. Redirections and proxies are not followed: a node asks whom it was told to ask.
"""

import http.client
import io
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

from torpor.predictors.errors import Unavailable
from torpor.predictors.settings import SettingError

GRACE_S = 60.0
IDLE_S = 30.0
LOWEST_BYTES_S = 500.0
CHUNK_BYTES = 1 << 16
HEAD_BYTES = 1 << 18
RECENT = timedelta(seconds=2)
"""What has changed so shortly before it was sent may change again without another date or tag."""


class NotThere(Unavailable):
    """404: it may come, and another mirror may have it."""


class _Paced(io.RawIOBase):
    """What comes for one answer, as long as it keeps coming and is no more than the answer may be."""

    def __init__(self, raw: io.RawIOBase, connection: Any, clock: Callable[[], float]) -> None:
        self._raw, self._connection, self._clock = raw, connection, clock
        self._began_s, self._received = clock(), 0
        self.most_bytes = HEAD_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        took_s = self._clock() - self._began_s
        left_s = GRACE_S + self._received / LOWEST_BYTES_S - took_s
        if left_s <= 0:
            raise TimeoutError(f"only {self._received} bytes came in {took_s:.0f} s")
        if self._received > self.most_bytes:
            raise TimeoutError(f"it does not end: {self._received} bytes came")
        self._connection.settimeout(min(left_s, IDLE_S))
        count = self._raw.readinto(buffer)
        self._received += count or 0
        return int(count or 0)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    def __init__(self, clock: Callable[[], float], sock: Any, *more: Any, **named: Any) -> None:
        super().__init__(sock, *more, **named)
        self._paced = _Paced(self.fp.detach(), sock, clock)
        self.fp = io.BufferedReader(self._paced)

    def expect(self, size: int) -> None:
        """A body of so many bytes; in chunks it may take twice as many."""
        self._paced.most_bytes += 2 * size


class Origin:
    """url: of the folder. clock: in seconds. Every call raises Unavailable where the server does not do what it should."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises SettingError."""
        parts = urlsplit(url)
        is_plain = not (parts.username or parts.query)
        try:
            port = parts.port
        except ValueError:
            is_plain = False
        if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
            raise SettingError(f"{url!r} must be like http://HOST:PORT/FOLDER or https://…")
        self.url = url.rstrip("/")
        self._folder = parts.path.rstrip("/")
        self._connection = (
            http.client.HTTPConnection(parts.hostname, port, timeout=IDLE_S)
            if parts.scheme == "http"
            else http.client.HTTPSConnection(parts.hostname, port, timeout=IDLE_S, context=ssl.create_default_context())
        )
        self._connection.response_class = partial(_Answer, clock)  # type: ignore[assignment]
        self._unchanged: dict[str, dict[str, str]] = {}
        self.date: datetime | None = None
        """The server's, when it last answered."""

    def __str__(self) -> str:
        return self.url

    def close(self) -> None:
        """Until the next call."""
        self._connection.close()

    def forget(self) -> None:
        """Ask for what may be unchanged as if it had never come."""
        self._unchanged.clear()

    def get(self, name: str, most: int) -> bytes:
        """A file of at most so many bytes."""
        with self._answer("GET", name, {}) as answer:
            self._check_status(name, answer)
            return self._small(name, answer, most)

    def get_changed(self, name: str, most: int) -> bytes | None:
        """The same; None if it is what it was at the last call."""
        asked = self._unchanged.get(name, {})
        with self._answer("GET", name, asked) as answer:
            if answer.status == 304 and asked:
                self._small(name, answer, 0)
                return None
            self._check_status(name, answer)
            data = self._small(name, answer, most)
            self._unchanged[name] = _conditions(answer)
            return data

    @contextmanager
    def opened(self, name: str, offset: int, size: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """A file of exactly this size, from where the server begins: at `offset` or, if it has no ranges, at 0."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self._answer("GET", name, headers) as answer:
            if answer.status == 206 and offset:
                said = answer.headers.get("Content-Range", "")
                if said not in (f"bytes {offset}-{size - 1}/{size}", f"bytes {offset}-{size - 1}/*"):
                    raise Unavailable(
                        f"{self}/{name}: Content-Range = {said[:80]!r}, must be from {offset} to {size - 1}"
                    )
                yield offset, self._body(name, answer, size - offset)
            else:
                self._check_status(name, answer)
                yield 0, self._body(name, answer, size)

    def post(self, body: bytes, content_type: str) -> int:
        """The status of the answer."""
        with self._answer("POST", "", {"Content-Type": content_type}, body) as answer:
            return answer.status

    def _small(self, name: str, answer: _Answer, most: int) -> bytes:
        answer.expect(most)
        with self._failing(name):
            data = answer.read(most + 1)
        if len(data) > most:
            raise Unavailable(f"{self}/{name} must have at most {most} bytes")
        if answer.length:
            raise Unavailable(f"{self}/{name} ended {answer.length} bytes before its end")
        return data

    def _body(self, name: str, answer: _Answer, size: int) -> Iterator[bytes]:
        if answer.length not in (None, size):
            raise Unavailable(f"{self}/{name} has {answer.length} bytes, must have {size}")
        answer.expect(size)
        left = size
        while left:
            with self._failing(name):
                chunk = answer.read1(min(left, CHUNK_BYTES))
            if not chunk:
                raise Unavailable(f"{self}/{name} ended {left} bytes before its end")
            left -= len(chunk)
            yield chunk
        with self._failing(name):
            more = answer.read(1)
        if more:
            raise Unavailable(f"{self}/{name} goes on after its {size} bytes")

    @contextmanager
    def _answer(self, method: str, name: str, headers: dict[str, str], body: bytes | None = None) -> Iterator[_Answer]:
        answer: _Answer | None = None
        is_whole = False
        try:
            with self._failing(name):
                path = f"{self._folder}/{name}" if name else self._folder or "/"
                self._connection.request(method, path, body, headers)
                answer = cast(_Answer, self._connection.getresponse())
            self.date = _date(answer.headers.get("Date"))
            yield answer
            is_whole = answer.isclosed()
        except NotThere:
            is_whole = answer is not None and answer.isclosed()
            raise
        finally:
            if not is_whole:  # What is left of it would be taken for the next answer.
                if answer:
                    answer.close()
                self._connection.close()

    @contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        """Around what the network does, and not what is done with its bytes."""
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{self}/{name}: {str(error) or type(error).__name__}") from None

    def _check_status(self, name: str, answer: _Answer) -> None:
        if answer.status == 200:
            return
        with self._failing(name):
            answer.read(CHUNK_BYTES)  # So that the connection can stay.
        text = f"{self}/{name}: {answer.status}, must be 200"
        raise NotThere(text) if answer.status == 404 else Unavailable(text)


def _conditions(answer: _Answer) -> dict[str, str]:
    """What to ask with, so that 304 comes for what is the same; nothing where the server's own marks may not tell."""
    changed, sent = _date(answer.headers.get("Last-Modified")), _date(answer.headers.get("Date"))
    if changed and (not sent or sent - changed < RECENT):
        return {}
    names = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}
    return {ours: answer.headers[theirs] for theirs, ours in names.items() if answer.headers.get(theirs)}


def _date(text: str | None) -> datetime | None:
    try:
        found = parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return found if found.tzinfo else None
