"""An archive as a model of the server: it takes HTTP requests as they came, and tensors for everything that has no HTTP.

    call  ─► Row ─► batcher (torpor's policy) ─► Workers ─► a worker's handler ─► Reply ─► status, fields, body
    start ─►                                                                          └─► tensors

To the policy a request is one row; rows of one protocol share a batch, an explanation runs alone.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, cast
from uuid import uuid4

from ..batching.bucket import Bucket
from ..errors import ModelFailed, TorporError
from ..protocol.datatypes import Array, array_from_raw, datatype_of, encode_bytes
from ..protocol.inference import InferRequest
from ..serving.batcher import Answer, Batcher
from ..serving.calls import Call, CallAnswer
from ..serving.data_plane import Batched, shortest
from ..serving.exchange import Field
from ..serving.metrics import ModelMetrics
from ..signature import Signature
from .workers import Reply, Row, Workers

_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_FIELD_VALUE = re.compile(r"[\t -~\x80-\xff]*")
_SERVERS_OWN = frozenset(
    {"content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "trailer", "te"}
)
"""Fields that are no handler's: they frame the answer."""

_BUCKETS = {
    (protocol, is_alone): Bucket(protocol, alone=is_alone)
    for protocol in ("predictions", "v1", "v2") for is_alone in (False, True)
}  # fmt: skip


class ServedArchive(Batched):
    """One version of one archive, loaded."""

    takes_calls = True
    signature = Signature()

    def __init__(
        self,
        name: str,
        version: str,
        batcher: Batcher,
        workers: Workers,
        metrics: ModelMetrics,
        unpacked: ExitStack,
        default_timeout_s: float,
    ) -> None:
        """unpacked: holds the folder until it is closed."""
        super().__init__(name, version, batcher, metrics, default_timeout_s)
        self._workers = workers
        self._unpacked = unpacked

    def call(self, call: Call, timeout_s: float | None, answer: Callable[[CallAnswer | TorporError], None]) -> Row:
        request_id = call.headers.get("x-request-id") or str(uuid4())
        headers = {**call.headers, "url_path": call.path}
        said: dict[str, Any] = {"id": request_id, "headers": headers, "is_explained": call.is_explained}
        row = Row(_BUCKETS[call.protocol, call.is_explained], said, [call.body])

        def replied(result: Reply | TorporError) -> None:
            try:
                answer(result if isinstance(result, TorporError) else _http_answer(result, request_id))
            except ModelFailed as error:
                answer(error)

        self._submit(row, timeout_s, replied)
        return row

    def start(
        self, request: InferRequest, headers: Mapping[str, str] | None, timeout_s: float | None, answer: Answer
    ) -> Row:
        inputs: list[dict[str, Any]] = []
        blobs: list[bytes] = []
        for name, array in request.inputs.items():
            inputs.append({"name": name, "datatype": datatype_of(array), "shape": array.shape})
            blobs.append(encode_bytes(array) if array.dtype == object else array.tobytes())
        request_id = request.terms.id or str(uuid4())
        said = {"id": request_id, "headers": dict(headers or {}), "inputs": inputs}
        row = Row(_BUCKETS["v2", False], said, blobs)

        def replied(result: Reply | TorporError) -> None:
            answer(result if isinstance(result, TorporError) else _tensors(result))

        self._submit(row, shortest(request.terms.timeout_s, timeout_s), replied)
        return row

    @property
    def wants_headers(self) -> bool:
        return True

    @property
    def is_ready(self) -> bool:
        return self._workers.alive > 0

    async def close(self) -> None:
        await super().close()
        await self._workers.close()
        self._unpacked.close()

    async def end(self) -> None:
        await self._workers.close()

    def _submit(self, row: Row, timeout_s: float | None, answer: Callable[[Reply | TorporError], None]) -> None:
        # The batcher hands on what the workers gave.
        self.batcher.submit(row, cast(Answer, answer), self.default_timeout_s if timeout_s is None else timeout_s)


def _http_answer(reply: Reply, request_id: str) -> CallAnswer:
    """Raises ModelFailed for fields that are none."""
    fields: list[Field] = [(b"x-request-id", request_id.encode("latin-1", "replace"))]
    for name, value in reply.said["headers"].items():
        if not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value) or name in _SERVERS_OWN:
            raise ModelFailed(f"the handler set the header {name[:40]!r} = {value[:40]!r}, which an answer cannot have")
        if name != "x-request-id":
            fields.append((name.encode("ascii"), value.encode("latin-1")))
    return CallAnswer(reply.said["status"], bytes(reply.blobs[0]), tuple(fields))


def _tensors(reply: Reply) -> dict[str, Array] | TorporError:
    outputs: dict[str, Array] = {}
    for said, blob in zip(reply.said["outputs"], reply.blobs, strict=True):
        data = bytes(blob)
        outputs[said["name"]] = array_from_raw(said["name"], said["datatype"], tuple(said["shape"]), data, 0, len(data))
    return outputs
