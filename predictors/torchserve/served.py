"""An archive as a model of the server: it takes HTTP requests as they came, and tensors for everything that has no HTTP.

    call  ─► Row ─► batcher (torpor's policy) ─► Workers ─► a worker's handler ─► Reply ─► status, fields, body
    start ─►                                                   │                      └─► tensors
                                          pieces of an answer ─┴─► status, fields, bytes, again and again

To the policy a request is one row; rows of one protocol share a batch, an explanation runs alone. Of rows whose bodies the
handler reads itself the policy knows their lengths: texts of like length are padded least.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from os import urandom
from typing import Any, cast

from ..batching.bucket import Bucket
from ..errors import ModelFailed, TorporError, Unavailable
from ..protocol.datatypes import Array, array_from_raw, datatype_of, encode_bytes
from ..protocol.inference import InferRequest
from ..serving.batcher import Answer, Batcher
from ..serving.calls import Answered, Call, CallAnswer, Flow
from ..serving.data_plane import Batched, shortest
from ..serving.exchange import Field
from ..serving.metrics import ModelMetrics
from ..signature import Bound, Signature
from .model_settings import ModelSettings
from .process import WorkerProcess
from .workers import Reply, Row, Workers

_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_FIELD_VALUE = re.compile(r"[\t -~\x80-\xff]*")
_SERVERS_OWN = frozenset(
    {"content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "trailer", "te"}
)
"""Fields that are no handler's: they frame the answer."""

_BUCKETS = {
    (protocol, is_explained): Bucket((protocol, is_explained), alone=is_explained)
    for protocol in ("predictions", "v1", "v2") for is_explained in (False, True)
}  # fmt: skip

_LENGTH_STEP_BYTES = 32
"""Lengths are rounded up to this, so that like ones meet: some seven tokens of English."""

_LONGEST_BYTES = 16 << 10
"""Beyond that bodies are no texts that a model takes whole, but images and the like: their length pads nothing."""


@dataclass(frozen=True)
class Origin:
    """Where a served archive comes from. file: its name. is_from_start: nobody registered it."""

    file: str
    runtime: str
    settings: ModelSettings
    has_gpus: bool
    is_from_start: bool


class ServedArchive(Batched):
    """One version of one archive, loaded. least_workers, most_workers: what was asked for last."""

    takes_calls = True
    signature = Signature()

    def __init__(
        self,
        name: str,
        version: str,
        origin: Origin,
        batcher: Batcher,
        workers: Workers,
        metrics: ModelMetrics,
        unpacked: ExitStack,
        default_timeout_s: float,
    ) -> None:
        """unpacked: holds the folder until it is closed."""
        super().__init__(name, version, batcher, metrics, default_timeout_s)
        self.origin = origin
        self.least_workers = workers.devices
        self.most_workers = max(workers.devices, origin.settings.most_workers or 0)
        self._workers = workers
        self._unpacked = unpacked
        self._scaling = asyncio.Lock()

    def call(self, call: Call, timeout_s: float | None, answer: Answered) -> Row:
        request_id = call.headers.get("x-request-id") or _new_id()
        headers = {**call.headers, "url_path": call.path}
        said: dict[str, Any] = {"id": request_id, "headers": headers, "is_explained": call.is_explained}
        if call.fields is None:
            blobs: Sequence[bytes] = [call.body]
        else:
            said["fields"], blobs = [*call.fields], [*call.fields.values()]
        if call.query:
            said["query"] = call.query
        row = Row(self._bucket(call, blobs), said, blobs)

        def came(said: Mapping[str, Any], piece: memoryview, flow: Flow) -> None:
            try:
                answer(_http_answer(said, piece, request_id, flow))
            except ModelFailed as error:
                self.cancel(row)
                answer(error)

        def replied(result: Reply | TorporError) -> None:
            try:
                if isinstance(result, TorporError):
                    answer(result)
                else:
                    answer(_http_answer(result.said, result.blobs[0], request_id))
            except ModelFailed as error:
                answer(error)

        row.on_piece = came
        self._submit(row, timeout_s, replied)
        return row

    def cancel(self, started: Bound) -> None:
        cast(Row, started).on_piece = None
        super().cancel(started)

    def start(
        self, request: InferRequest, headers: Mapping[str, str] | None, timeout_s: float | None, answer: Answer
    ) -> Row:
        inputs: list[dict[str, Any]] = []
        blobs: list[bytes] = []
        for name, array in request.inputs.items():
            inputs.append({"name": name, "datatype": datatype_of(array), "shape": array.shape})
            blobs.append(encode_bytes(array) if array.dtype == object else array.tobytes())
        request_id = request.terms.id or _new_id()
        said = {"id": request_id, "headers": dict(headers or {}), "inputs": inputs}
        row = Row(_BUCKETS["v2", False], said, blobs)

        def replied(result: Reply | TorporError) -> None:
            answer(result if isinstance(result, TorporError) else _tensors(result))

        self._submit(row, shortest(request.terms.timeout_s, timeout_s), replied)
        return row

    async def scale(self, least: int, most: int) -> None:
        """Have so many workers; of those that are too many each answers what it has.

        Returns when those that were missing are loaded. Raises ArchiveError if one cannot, and has what it had.
        """
        async with self._scaling:
            count = min(max(self._workers.devices, least), most)
            if count > self._workers.devices:
                await self._workers.grow(count)
            else:
                self._workers.shrink(count)
            self.least_workers, self.most_workers = least, most
            self.batcher.resize()

    def workers(self) -> list[WorkerProcess]:
        """Those that are there."""
        return self._workers.processes()

    def check_room(self) -> None:
        if not self._workers.devices:
            raise Unavailable(f"model '{self.name}' version {self.version} has no workers until it is scaled")
        super().check_room()

    @property
    def wants_headers(self) -> bool:
        return True

    @property
    def is_ready(self) -> bool:
        return self._workers.alive > 0

    @property
    def is_healthy(self) -> bool:
        return self.is_ready or not self._workers.devices

    async def close(self) -> None:
        await super().close()
        await self._workers.close()
        self._unpacked.close()

    async def end(self) -> None:
        await self._workers.close()

    def _bucket(self, call: Call, blobs: Sequence[bytes]) -> Bucket:
        """Whom a call may share a batch with."""
        bucket = _BUCKETS[call.protocol, call.is_explained]
        if call.is_explained or call.protocol != "predictions" or not self.origin.settings.buckets_by_length:
            return bucket
        return _bucket_of(min(sum(map(len, blobs)), _LONGEST_BYTES))

    def _submit(self, row: Row, timeout_s: float | None, answer: Callable[[Reply | TorporError], None]) -> None:
        self.check_room()
        # The batcher hands on what the workers gave.
        self.batcher.submit(row, cast(Answer, answer), self.default_timeout_s if timeout_s is None else timeout_s)


@cache
def _bucket_of(size: int) -> Bucket:
    """Of bodies of so many bytes, at most _LONGEST_BYTES."""
    return Bucket(_BUCKETS["predictions", False].family, (max(1, -(-size // _LENGTH_STEP_BYTES)),))


def _new_id() -> str:
    """A UUID of version 4 (RFC 9562), in less than half of uuid4's time."""
    digits = urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _http_answer(said: Mapping[str, Any], body: memoryview, request_id: str, flow: Flow | None = None) -> CallAnswer:
    """The answer, or with a flow a piece of it. Raises ModelFailed for fields that are none."""
    fields: list[Field] = [(b"x-request-id", request_id.encode("latin-1", "replace"))]
    for name, value in said["headers"].items():
        if not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value) or name in _SERVERS_OWN:
            raise ModelFailed(f"the handler set the header {name[:40]!r} = {value[:40]!r}, which an answer cannot have")
        if name != "x-request-id":
            fields.append((name.encode("ascii"), value.encode("latin-1")))
    return CallAnswer(said["status"], bytes(body), tuple(fields), flow)


def _tensors(reply: Reply) -> dict[str, Array] | TorporError:
    outputs: dict[str, Array] = {}
    for said, blob in zip(reply.said["outputs"], reply.blobs, strict=True):
        data = bytes(blob)
        outputs[said["name"]] = array_from_raw(said["name"], said["datatype"], tuple(said["shape"]), data, 0, len(data))
    return outputs
