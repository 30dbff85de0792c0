"""A loaded handler at work: batches of calls in, one reply a call out.

A batch is one call of the handler with the rows of all its requests. If that raises, or does not give one item a row, the
batch is halved until each request that fails is alone: it costs nobody else an answer. A request of whose answer pieces have
gone is not asked for again: its answer breaks off.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
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


Give = Callable[[dict[str, Any], bytes], None]
"""Sends a piece of an answer, and what is said of it."""


class Service:
    """Answers one batch at a time."""

    def __init__(self, handle: Handle, context: Context, envelopes: dict[str, Envelope]) -> None:
        """envelopes: by the protocol of a batch's calls."""
        self._handle = handle
        self._context = context
        self._envelopes = envelopes

    def metrics(self) -> list[Any]:
        """What the handler has counted since the last call."""
        return self._context.metrics.noted.take()

    def run(self, protocol: str, calls: Sequence[Call], give: Give) -> list[Reply]:
        """The replies, in the order of the calls. Raises what ends the process alone: SystemExit, KeyboardInterrupt."""
        envelope = self._envelopes[protocol]
        replies: dict[int, Reply] = {}
        opened: list[Call] = []
        for call in calls:
            try:
                envelope.open(call)
                opened.append(call)
            except InvalidInput as error:
                replies[call.place] = Reply(error="InvalidInput", text=str(error))
        joined = [call for call in opened if envelope.may_join(call)]
        groups = [joined, *([call] for call in opened if not envelope.may_join(call))]
        try:
            for group in groups:
                if group:
                    replies |= self._answer(envelope, group, give)
        except _TooMuch as error:
            logger.warning("out of memory with %d requests: %s", len(calls), error)
            # With one it is given up, with more it comes again among fewer.
            return [Reply(error="OutOfMemory", text="1" if call.has_begun else str(len(calls))) for call in calls]
        return [replies[call.place] for call in calls]

    def _answer(self, envelope: Envelope, calls: list[Call], give: Give) -> dict[int, Reply]:
        """The replies by the calls' places."""
        is_alone = len(calls) == 1
        processors = [RequestProcessor(_headers_of(call)) for call in calls]
        failure = Reply()
        try:
            rows = [len(call.rows) for call in calls]
            results = self._results(calls, processors, give)
            if is_alone:
                return {calls[0].place: _reply(envelope.answer(calls[0], results), processors[0])}
            if len(results) == sum(rows):
                replies: dict[int, Reply] = {}
                at = 0
                for call, count, processor in zip(calls, rows, processors, strict=True):
                    replies[call.place] = _reply(envelope.answer(call, results[at : at + count]), processor)
                    at += count
                return replies
            text = f"number of batch response mismatched: {len(results)} items for {sum(rows)} rows"
            failure = Reply(error="ModelFailed", text=text)
            logger.warning("the handler gave %d items for %d rows of %d requests", len(results), sum(rows), len(calls))
        except Unanswerable as error:
            failure = Reply(error="ModelFailed", text=str(error))
        except Exception as error:
            if isinstance(error, MemoryError) or "CUDA" in str(error):  # TorchServe's way to know it
                raise _TooMuch(f"{type(error).__name__}: {error}") from None
            if is_alone or any(call.has_begun for call in calls):
                failure = _failure(error)
        failed = {call.place: failure for call in calls if is_alone or call.has_begun}
        again = [call for call in calls if call.place not in failed]
        for call in again:  # the handler may have changed what it got
            envelope.open(call)
        middle = (len(again) + 1) // 2
        for half in (again[:middle], again[middle:]):
            if half:
                failed |= self._answer(envelope, half, give)
        return failed

    def _results(self, calls: list[Call], processors: list[RequestProcessor], give: Give) -> list[Any]:
        """What the handler returns for the rows of the calls. Raises Unanswerable for what is no list."""
        data = [row for call in calls for row in call.rows]
        # A request without rows has a header all the same.
        counts = [max(1, len(call.rows)) for call in calls]
        owners = [
            (call, processor)
            for call, count, processor in zip(calls, counts, processors, strict=True) for _ in range(count)
        ]  # fmt: skip
        ids = [call.id for call, _ in owners]
        self._context.begin(ids, [processor for _, processor in owners])
        self._context.cl_socket = Pieces(ids, partial(_give_piece, owners, give))
        results = self._handle(data, self._context)
        for call in calls:  # what the handler has read goes before the next is, whose memory it is then
            call.rows = []
        if not isinstance(results, list):
            raise Unanswerable(f"Invalid model predict output: {type(results).__name__}, must be a list")
        return results


def _headers_of(call: Call) -> RequestHeaders:
    headers = RequestHeaders({name: {"content-type": kind} for name, kind in call.types.items()})
    headers.update(call.headers)
    headers["explain"] = str(call.is_explained)  # a caller's own says nothing
    return headers


def _give_piece(owners: Sequence[tuple[Call, RequestProcessor]], give: Give, row: int, piece: bytes) -> None:
    call, processor = owners[row]
    said = _head(processor)
    call.has_begun = True
    give({"piece": call.place, **said}, piece)


def _reply(answer: Answer, processor: RequestProcessor) -> Reply:
    """Raises Unanswerable."""
    reply = Reply(_head(processor), outputs=answer.outputs)
    if answer.content_type:
        reply["headers"].setdefault("content-type", answer.content_type)
    reply.blobs = answer.blobs
    return reply


def _head(processor: RequestProcessor) -> dict[str, Any]:
    """Status and headers, as the handler has set them until now. Raises Unanswerable for a status that is none."""
    headers = {str(name).lower(): _text(value) for name, value in processor.get_response_headers().items()}
    headers.pop(MORE_FOLLOWS, None)
    status = processor.get_response_status_code()
    if type(status) is not int or not 200 <= status <= 599:
        raise Unanswerable(f"the handler set status = {status!r}, must be in [200, 599]")
    return {"status": status, "headers": headers}


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
