"""Where an HTTP/1.1 answer ends in the bytes that a component sends (RFC 9112, 6.3). The bytes themselves go on as they are."""

import re

from torpor.predictors.errors import InvalidInput, PredictorFailed
from torpor.predictors.serving.http1_head import ChunkedBody

_MAX_HEAD_BYTES = 256 << 10
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\r\n]*)?\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*(?:[^\r\n]*,[ \t]*)?chunked[ \t]*\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[^\r\n]*\bclose\b", re.IGNORECASE)
_KEEP = re.compile(rb"\r\nconnection:[^\r\n]*\bkeep-alive\b", re.IGNORECASE)


class Answer:
    """Reads one answer to a request with `method`. has_begun: bytes of it have been let through."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._kept = b""
        self._missing: int | None = 0
        """Bytes of the body that have not come; None until the connection closes."""
        self._chunks: ChunkedBody | None = None
        self._in_body = False
        self.status = 0
        self.keeps_alive = False
        self.has_begun = False

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What may go on to the caller, and whether the answer has ended. Raises PredictorFailed for what is no HTTP."""
        if self._in_body:
            return data, self._take(data)
        data = self._kept + data
        at = 0
        while True:
            end = data.find(b"\r\n\r\n", at) + 4
            if end < 4:
                self._kept = data[at:]
                if len(self._kept) > _MAX_HEAD_BYTES:
                    raise PredictorFailed(f"the answer's head has more than {_MAX_HEAD_BYTES} bytes")
                return data[:at], False
            head = data[at:end]
            match = _STATUS.match(head)
            if match is None:
                raise PredictorFailed("the answer is not HTTP/1.1")
            at = end
            if match[2][:1] != b"1" or match[2] == b"101":
                break
        self._kept = b""
        self.has_begun = True
        self.status = int(match[2])
        self._in_body = True
        minor_is_0 = match[1] == b"0"
        self.keeps_alive = _KEEP.search(head) is not None if minor_is_0 else _CLOSE.search(head) is None
        if self.status == 101:
            self._missing = None
        elif self._method == "HEAD" or self.status in (204, 304):
            self._missing = 0
        elif _CHUNKED.search(head):
            self._chunks = ChunkedBody()
        elif length := _LENGTH.search(head):
            self._missing = int(length[1])
        else:
            self._missing = None
        if self._missing is None:
            self.keeps_alive = False
        return data, self._take(data[at:])

    @property
    def ends_with_connection(self) -> bool:
        """Whether the end of the connection is the end of the answer."""
        return self._in_body and self._missing is None

    def _take(self, data: bytes) -> bool:
        """Whether the body has ended. Raises PredictorFailed for bytes behind it."""
        if self._chunks is not None:
            try:
                _, rest = self._chunks.feed(data)
            except InvalidInput as error:
                raise PredictorFailed(f"the answer: {error}") from error
            excess = len(rest or b"")
            has_ended = rest is not None
        elif self._missing is None:
            return False
        else:
            self._missing -= len(data)
            excess = -min(0, self._missing)
            has_ended = self._missing <= 0
        if excess:
            raise PredictorFailed("bytes came behind the answer")
        return has_ended
