"""A loaded handler at work: batches of calls in, one reply a call out.

A batch is one call of the handler with the rows of all its requests. If that raises, or does not give one item a row, the
batch is halved until each request that fails is alone: it costs nobody else an answer.
"""

import logging
from collections.abc import Sequence
from typing import Any

from ...errors import InvalidInput
from .answers import Unanswerable
from .context import Context, RequestHeaders, RequestProcessor
from .envelopes import Answer, Call, Envelope
from .handler import Handle
from .pieces import MORE_FOLLOWS, Pieces

logger = logging.getLogger("torpor.handler")


class Reply(dict[str, Any]):
    """What goes back for one call: `status`, `headers`, and `outputs` of tensors; or `error`, `text`, and `status` of some."""

    blobs: Sequence[bytes | bytearray] = ()


class _TooMuch(Exception):
    """There was no memory for the batch."""


class Service:
    """Runs on the worker's only thread."""

    def __init__(self, handle: Handle, context: Context, envelopes: dict[str, Envelope]) -> None:
        """envelopes: by the protocol of a batch's calls."""
        self._handle = handle
        self._context = context
        self._envelopes = envelopes

    def metrics(self) -> list[Any]:
        """What the handler has counted since the last call."""
        return self._context.metrics.take()

    def run(self, protocol: str, calls: Sequence[Call]) -> list[Reply]:
        """The replies, in the order of the calls. Raises what ends the process alone: SystemExit, KeyboardInterrupt."""
        envelope = self._envelopes[protocol]
        replies: dict[int, Reply] = {}
        opened: list[tuple[int, Call]] = []
        for position, call in enumerate(calls):
            try:
                envelope.open(call)
                opened.append((position, call))
            except InvalidInput as error:
                replies[position] = Reply(error="InvalidInput", text=str(error))
        joined = [pair for pair in opened if envelope.may_join(pair[1])]
        groups = [joined, *([pair] for pair in opened if not envelope.may_join(pair[1]))]
        try:
            for group in groups:
                if group:
                    answered = self._answer(envelope, [call for _, call in group])
                    replies.update(zip((position for position, _ in group), answered, strict=True))
        except _TooMuch as error:
            logger.warning("out of memory with %d requests: %s", len(calls), error)
            return [Reply(error="OutOfMemory", text=str(len(calls))) for _ in calls]
        return [replies[position] for position in range(len(calls))]

    def _answer(self, envelope: Envelope, calls: list[Call]) -> list[Reply]:
        is_alone = len(calls) == 1
        processors = [RequestProcessor(_headers_of(call)) for call in calls]
        try:
            results, pieces = self._results(calls, processors)
            rows = [len(call.rows) for call in calls]
            if is_alone:
                return [_reply(envelope.answer(calls[0], results), processors[0], pieces.take(0, rows[0]))]
            if len(results) == sum(rows):
                replies: list[Reply] = []
                at = 0
                for call, count, processor in zip(calls, rows, processors, strict=True):
                    answer = envelope.answer(call, results[at : at + count])
                    replies.append(_reply(answer, processor, pieces.take(at, count)))
                    at += count
                return replies
            logger.warning("the handler gave %d items for %d rows of %d requests", len(results), sum(rows), len(calls))
        except Unanswerable as error:
            if is_alone:
                return [Reply(error="ModelFailed", text=str(error))]
        except Exception as error:
            if isinstance(error, MemoryError) or "CUDA" in str(error):  # TorchServe's way to know it
                raise _TooMuch(f"{type(error).__name__}: {error}") from None
            if is_alone:
                return [_failure(error)]
        for call in calls:  # the handler may have changed what it got
            envelope.open(call)
        middle = len(calls) // 2
        return self._answer(envelope, calls[:middle]) + self._answer(envelope, calls[middle:])

    def _results(self, calls: list[Call], processors: list[RequestProcessor]) -> tuple[list[Any], Pieces]:
        """What the handler returns for the rows of the calls, and sent before. Raises Unanswerable for what is no list."""
        data = [row for call in calls for row in call.rows]
        # A request without rows has a header all the same.
        counts = [max(1, len(call.rows)) for call in calls]
        self._context.begin(
            [call.id for call, count in zip(calls, counts, strict=True) for _ in range(count)],
            [processor for processor, count in zip(processors, counts, strict=True) for _ in range(count)],
        )
        self._context.cl_socket = pieces = Pieces()
        results = self._handle(data, self._context)
        if not isinstance(results, list):
            raise Unanswerable(f"Invalid model predict output: {type(results).__name__}, must be a list")
        return results, pieces


def _headers_of(call: Call) -> RequestHeaders:
    headers = RequestHeaders({name: {"content-type": kind} for name, kind in call.types.items()})
    headers.update(call.headers)
    headers["explain"] = str(call.is_explained)  # a caller's own says nothing
    return headers


def _reply(answer: Answer, processor: RequestProcessor, pieces: bytes) -> Reply:
    """pieces: what the handler sent before its answer's end, "" for nothing."""
    headers = {str(name).lower(): _text(value) for name, value in processor.get_response_headers().items()}
    if answer.content_type:
        headers.setdefault("content-type", answer.content_type)
    status = processor.get_response_status_code()
    if type(status) is not int or not 200 <= status <= 599:
        return Reply(error="ModelFailed", text=f"the handler set status = {status!r}, must be in [200, 599]")
    reply = Reply(status=status, headers=headers, outputs=answer.outputs)
    headers.pop(MORE_FOLLOWS, None)
    reply.blobs = [pieces + answer.blobs[0]] if pieces else answer.blobs
    return reply


def _failure(error: Exception) -> Reply:
    logger.error("the handler raised", exc_info=error)
    if isinstance(error, InvalidInput):
        return Reply(error="InvalidInput", text=_text(error))
    status = getattr(error, "error_code", None)
    if type(error).__name__ == "PredictionException" and type(status) is int and 400 <= status <= 599:
        return Reply(error="HandlerRefused", text=_text(getattr(error, "message", error)), status=status)
    return Reply(error="ModelFailed", text=f"Prediction failed: the handler raised {type(error).__name__}")


def _text(value: object) -> str:
    """Of which UTF-8 can be made."""
    return str(value).encode("utf-8", "replace").decode()
