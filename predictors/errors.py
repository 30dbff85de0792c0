"""The one error tree, and what each error means to a caller.

    TorporError
    ├── InvalidInput          400  INVALID_ARGUMENT    the request is wrong; sending it again changes nothing
    │   ├── PayloadTooLarge   413  RESOURCE_EXHAUSTED
    │   ├── HeadTooLarge      431  RESOURCE_EXHAUSTED
    │   ├── RequestTimeout    408  DEADLINE_EXCEEDED   the request stopped coming
    │   └── UnsupportedMedia  415  INVALID_ARGUMENT
    ├── Forbidden             403  PERMISSION_DENIED   what would leave a model without its default version
    ├── NotFound              404  NOT_FOUND           no such path, model or version
    │   ├── PathNotFound      404  NOT_FOUND
    │   └── VersionNotFound   404  NOT_FOUND           the model is there, in other versions
    ├── MethodNotAllowed      405  UNIMPLEMENTED
    ├── Conflict              409  ALREADY_EXISTS      the version is served already
    ├── NotSupported          501  UNIMPLEMENTED       the protocol has it, this server does not
    ├── Unavailable           503  UNAVAILABLE         retryable: not ready, shutting down
    │   ├── QueueFull         503  UNAVAILABLE         retryable, with Retry-After
    │   └── ModelBroken       503  UNAVAILABLE         retryable elsewhere: the model hangs, or its device is broken
    ├── DeadlineExceeded      504  DEADLINE_EXCEEDED
    ├── PredictorFailed       502  INTERNAL            a transformer's: its predictor broke off, or its answer is none
    ├── OutOfMemory           507  RESOURCE_EXHAUSTED  the device has no memory for one row
    ├── ModelFailed           500  INTERNAL            the model raised, or broke its declaration
    │   └── HandlerFailed     503  UNAVAILABLE         the same of an archive's handler, where TorchServe's status is wanted
    └── HandlerRefused        any                      an archive's handler answered with an error status of its choice

Every class (of HandlerRefused each error) carries `http_status`, `grpc_code` and `retryable`; there is no default. Each
transport turns an error into its own form in one function (`serving/rest.py`, `serving/grpc_wire.py`).
"""

from enum import IntEnum


class GrpcCode(IntEnum):
    """The status codes of gRPC that torpor answers with (https://grpc.io/docs/guides/status-codes/)."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class TorporError(Exception):
    """Base of every error that torpor raises on purpose; never raised itself."""

    http_status: int
    grpc_code: GrpcCode
    retryable: bool


class InvalidInput(TorporError):
    """The caller's request is wrong. A predictor may raise it too; the caller then gets its text with status 400."""

    http_status = 400
    grpc_code = GrpcCode.INVALID_ARGUMENT
    retryable = False


class PayloadTooLarge(InvalidInput):
    """The body, or what it decompresses to, is larger than the server takes."""

    http_status = 413
    grpc_code = GrpcCode.RESOURCE_EXHAUSTED


class HeadTooLarge(InvalidInput):
    """The request's head, or its trailers, are larger than the server takes."""

    http_status = 431
    grpc_code = GrpcCode.RESOURCE_EXHAUSTED


class RequestTimeout(InvalidInput):
    """The request began and then stopped coming."""

    http_status = 408
    grpc_code = GrpcCode.DEADLINE_EXCEEDED


class UnsupportedMedia(InvalidInput):
    """The content type or encoding of the body is one that the server does not read."""

    http_status = 415


class Forbidden(TorporError):
    """The default version of a model cannot be taken away while it has others."""

    http_status = 403
    grpc_code = GrpcCode.PERMISSION_DENIED
    retryable = False


class NotFound(TorporError):
    """No such path, model or version."""

    http_status = 404
    grpc_code = GrpcCode.NOT_FOUND
    retryable = False


class PathNotFound(NotFound):
    """No such path."""


class VersionNotFound(NotFound):
    """The model has no such version."""


class MethodNotAllowed(TorporError):
    """The path exists, with another HTTP method."""

    http_status = 405
    grpc_code = GrpcCode.UNIMPLEMENTED
    retryable = False


class Conflict(TorporError):
    """A version of that name is served already."""

    http_status = 409
    grpc_code = GrpcCode.ALREADY_EXISTS
    retryable = False


class NotSupported(TorporError):
    """The protocol names it, and this server does not have it."""

    http_status = 501
    grpc_code = GrpcCode.UNIMPLEMENTED
    retryable = False


class Unavailable(TorporError):
    """The server cannot answer now, and has not begun to: the same request may be sent again.

    retry_after_s: not before so many seconds. None where a predictor elsewhere has refused and did not say: it may have begun.
    """

    http_status = 503
    grpc_code = GrpcCode.UNAVAILABLE
    retryable = True

    def __init__(self, message: str, retry_after_s: float | None = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Unavailable):
    """More rows wait than the model's queue holds; `retry_after_s` is the time that the queue needs to empty."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s: float = retry_after_s


class ModelBroken(Unavailable):
    """The model hangs, or its device is broken for good: this process cannot answer any more, another one may."""


class DeadlineExceeded(TorporError):
    """The request's deadline passed before the model ran it."""

    http_status = 504
    grpc_code = GrpcCode.DEADLINE_EXCEEDED
    retryable = False


class PredictorFailed(TorporError):
    """A transformer's predictor ended the connection before its answer was whole, or answered what is none of its protocol.

    Not retryable: it may have run the request.
    """

    http_status = 502
    grpc_code = GrpcCode.INTERNAL
    retryable = False


class OutOfMemory(TorporError):
    """The device had no memory for `rows` rows at once. Several are run again in smaller batches; one is its caller's end.

    507 is TorchServe's answer too. Not retryable: no batch is smaller than a row, and a caller that insists would have
    this server, and each of its equals, run out again.
    """

    http_status = 507
    grpc_code = GrpcCode.RESOURCE_EXHAUSTED
    retryable = False

    def __init__(self, rows: int) -> None:
        super().__init__(f"the device ran out of memory with rows = {rows}")
        self.rows = rows


class ModelFailed(TorporError):
    """The model raised, or what it returned does not fit its declaration or its input."""

    http_status = 500
    grpc_code = GrpcCode.INTERNAL
    retryable = False


class HandlerFailed(ModelFailed):
    """An archive's handler raised, or gave no answer, under `handler_failure_status = 503`: TorchServe's clients know it so.

    Not retryable all the same: the request has run.
    """

    http_status = 503
    grpc_code = GrpcCode.UNAVAILABLE


class HandlerRefused(TorporError):
    """An archive's handler raised TorchServe's PredictionException, with a status of its choice in [400, 599]."""

    retryable = False

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.grpc_code = _GRPC_CODES.get(
            http_status, GrpcCode.INVALID_ARGUMENT if http_status < 500 else GrpcCode.INTERNAL
        )


_GRPC_CODES = {
    404: GrpcCode.NOT_FOUND,
    501: GrpcCode.UNIMPLEMENTED,
    503: GrpcCode.UNAVAILABLE,
    504: GrpcCode.DEADLINE_EXCEEDED,
    507: GrpcCode.RESOURCE_EXHAUSTED,
}
