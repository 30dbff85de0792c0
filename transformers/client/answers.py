"""What a predictor's refusals mean: statuses of HTTP and gRPC as errors of the one tree."""

import re
from collections.abc import Mapping

import orjson
from torpor.predictors.errors import (
    DeadlineExceeded,
    HeadTooLarge,
    InvalidInput,
    MethodNotAllowed,
    ModelFailed,
    NotFound,
    NotSupported,
    OutOfMemory,
    PayloadTooLarge,
    PredictorFailed,
    QueueFull,
    RequestTimeout,
    TorporError,
    Unavailable,
    UnsupportedMedia,
)

_BY_STATUS: dict[int, type[TorporError]] = {
    error.http_status: error
    for error in (
        InvalidInput, PayloadTooLarge, HeadTooLarge, RequestTimeout, UnsupportedMedia, NotFound, MethodNotAllowed,
        NotSupported, DeadlineExceeded, PredictorFailed, ModelFailed,
    )
}  # fmt: skip

_BY_CODE: dict[int, type[TorporError]] = {
    3: InvalidInput, 4: DeadlineExceeded, 5: NotFound, 8: PayloadTooLarge, 9: InvalidInput, 11: InvalidInput,
    12: NotSupported, 13: ModelFailed,
}  # fmt: skip
"""By gRPC's numbers (https://grpc.io/docs/guides/status-codes/). RESOURCE_EXHAUSTED is what a message too large gets."""

_LONGEST_TEXT = 500
_SECONDS = re.compile(rb"[0-9]{1,9}")
_MILLISECONDS = re.compile(r"[0-9]{1,12}")


def error_of_http(status: int, headers: Mapping[bytes, bytes], body: bytes, rows: int) -> TorporError:
    """The error that an answer with another status than 200 stands for. rows: of the request."""
    text = _text(body) or f"the predictor answered {status} without a text"
    if status == 503:
        after = _SECONDS.fullmatch(headers.get(b"retry-after", b""))  # a date there is as good as none
        return QueueFull(text, float(after[0])) if after else Unavailable(text, None)
    if status == 429:  # a proxy's, or a server's of another kind, for what torpor says with 503
        after = _SECONDS.fullmatch(headers.get(b"retry-after", b""))
        return QueueFull(text, float(after[0]) if after else 1.0)
    if status == 507:
        return OutOfMemory(rows)
    error = _BY_STATUS.get(status)
    if error is not None:
        return error(text)
    if 400 <= status < 500:  # 422 is what KServe's SDK says of a request that is none
        return InvalidInput(text)
    return PredictorFailed(f"the predictor answered {status}: {text}")


def error_of_grpc(code: int, text: str, pushback_ms: str | None) -> TorporError:
    """The error of a gRPC status. pushback_ms: what the trailer grpc-retry-pushback-ms says."""
    text = text[:_LONGEST_TEXT] or f"the predictor answered with gRPC status {code}, without a text"
    if code == 14:
        after = _MILLISECONDS.fullmatch(pushback_ms or "")
        return QueueFull(text, int(after[0]) / 1e3) if after else Unavailable(text, None)
    error = _BY_CODE.get(code)
    return error(text) if error is not None else PredictorFailed(f"the predictor answered gRPC status {code}: {text}")


def malformed(why: str) -> PredictorFailed:
    """An answer that is none of its protocol. why: in the words of the readers of requests, who call a tensor input."""
    return PredictorFailed(f"the predictor's answer: {'output' + why[5:] if why.startswith('input') else why}")


def _text(body: bytes) -> str:
    """What a body says of an error: `error` in torpor's and Triton's, `detail` in FastAPI's, else its beginning."""
    try:
        said = orjson.loads(body)
        text = said.get("error", said.get("detail")) if isinstance(said, dict) else None
        if text is not None and not isinstance(text, str):
            text = orjson.dumps(text).decode()
    except orjson.JSONDecodeError:
        text = None
    return (body[:_LONGEST_TEXT].decode(errors="replace") if text is None else text[:_LONGEST_TEXT]).strip()
