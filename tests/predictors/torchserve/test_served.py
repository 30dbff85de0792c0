"""An archive's requests as rows of the batching policy: which may share a batch."""

import asyncio
import uuid
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torpor.predictors.batching.policy import BatchingPolicy, BatchingSettings
from torpor.predictors.batching.run_times import RunTimes
from torpor.predictors.errors import ModelFailed, TorporError, Unavailable
from torpor.predictors.protocol.inference import InferRequest, Terms
from torpor.predictors.serving.calls import Call, CallAnswer
from torpor.predictors.torchserve.assembly import AssembledArchive
from torpor.predictors.torchserve.manifest import ArchiveError
from torpor.predictors.torchserve.model_settings import ModelSettings
from torpor.predictors.torchserve.served import Origin, ServedArchive
from torpor.predictors.torchserve.workers import Reply, Row


class Batcher:
    """Takes everything, and keeps it."""

    policy = BatchingPolicy[Any](BatchingSettings(max_queue_rows=1), RunTimes())

    def __init__(self) -> None:
        self.submitted: list[tuple[Row, Any, float | None]] = []
        self.cancelled: list[Row] = []
        self.sizes = 0
        self.is_closed = False

    def submit(self, row: Row, answer: Any, timeout_s: float | None) -> None:
        self.submitted.append((row, answer, timeout_s))

    def cancel(self, row: Row) -> None:
        self.cancelled.append(row)

    def resize(self) -> None:
        self.sizes += 1

    async def close(self) -> None:
        self.is_closed = True


class Workers:
    """None but in number."""

    def __init__(self, devices: int = 1) -> None:
        self.devices = self.alive = devices
        self.steps: list[str] = []

    async def grow(self, count: int) -> None:
        if count > 8:
            raise ArchiveError("no memory")
        self.devices = count
        self.steps.append("grow")

    def shrink(self, count: int) -> None:
        self.devices = count
        self.steps.append("shrink")

    async def close(self) -> None:
        self.steps.append("close")

    def processes(self) -> list[str]:
        return ["one"]


def archive(settings: ModelSettings | None = None, workers: int = 1, default_timeout_s: float = 0.0) -> ServedArchive:
    origin = Origin("m.mar", "python", settings or ModelSettings(), has_gpus=False, is_from_start=True)
    batcher: Any = Batcher()
    return ServedArchive("m", "1.0", origin, batcher, Workers(workers), None, ExitStack(), default_timeout_s)  # type: ignore[arg-type]


def row(body: bytes, settings: ModelSettings | None = None, protocol: str = "predictions", **more: Any) -> Row:
    return archive(settings).call(Call(protocol, {}, body, **more), None, lambda result: None)


def test_bodies_of_like_length_are_of_one_bucket() -> None:
    """Others are of its family, so that the policy weighs what padding costs."""
    short, alike, long = (row(bytes(size)).bucket for size in (33, 64, 65))
    assert short == alike != long
    assert short.family == long.family
    assert long.cells == 3
    assert row(b"").bucket.cells == 1
    assert row(b"", fields={"data": bytes(40), "more": bytes(30)}).bucket == long


def test_bodies_that_are_no_texts_are_not_told_apart() -> None:
    """The length of an image pads nothing."""
    assert row(bytes(20_000)).bucket == row(bytes(1 << 20)).bucket


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_the_length_of_a_document_says_nothing_of_its_rows(protocol: str) -> None:
    """KServe's protocols may have several in one."""
    assert row(bytes(10), protocol=protocol).bucket == row(bytes(1000), protocol=protocol).bucket


def test_a_model_may_do_without() -> None:
    """Where the length is none of its batches' cost."""
    settings = ModelSettings().changed({"bucketByLength": False}, "model.yaml")
    assert row(bytes(10), settings).bucket == row(bytes(1000), settings).bucket


def test_an_explanation_shares_no_batch() -> None:
    """Nor what was learned of predictions' times."""
    explained = row(bytes(10), is_explained=True).bucket
    assert explained.alone
    assert explained.family != row(bytes(10)).bucket.family


class Asked:
    """A call of a served archive, its row and all its answers."""

    def __init__(self, call: Call, served: ServedArchive | None = None, timeout_s: float | None = None) -> None:
        self.served = served or archive()
        self.answers: list[Any] = []
        self.row = self.served.call(call, timeout_s, self.answers.append)
        ((row, self.answer, self.timeout_s),) = self.served.batcher.submitted  # type: ignore[attr-defined]
        assert row is self.row

    def piece(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        assert self.row.on_piece is not None
        self.row.on_piece({"status": 206, "headers": headers or {}}, memoryview(body), FLOW)


FLOW: Any = object()
ID = (b"x-request-id", b"i")


def reply(headers: dict[str, str], body: bytes = b"x", status: int = 200) -> Reply:
    return Reply({"status": status, "headers": headers}, [memoryview(body)])


def test_a_worker_is_told_what_was_asked() -> None:
    """Headers, path and query as they came; a body, or fields by name; an id, which nobody may have given."""
    row = Asked(Call("predictions", {"x-a": "1", "x-request-id": "i"}, b"body", path="a/b")).row
    assert row.said == {
        "id": "i",
        "headers": {"x-a": "1", "x-request-id": "i", "url_path": "a/b"},
        "is_explained": False,
    }
    assert row.blobs == [b"body"]
    row = Asked(Call("v1", {}, b"", is_explained=True, query="a=1", fields={"a": b"1", "b": b"2"})).row
    assert row.said == {
        "id": row.said["id"],
        "headers": {"url_path": ""},
        "is_explained": True,
        "fields": ["a", "b"],
        "query": "a=1",
    }
    assert row.blobs == [b"1", b"2"]
    ids = [uuid.UUID(Asked(Call("v1", {}, b"")).row.said["id"]) for _ in range(99)]
    assert {(one.version, one.variant) for one in ids} == {(4, uuid.RFC_4122)}
    assert len({*ids}) == 99
    assert len({str(one)[19] for one in ids}) == 4


def test_a_request_has_its_own_time_or_the_models() -> None:
    """The model's default may be none."""
    call = Call("predictions", {}, b"")
    assert Asked(call, archive(default_timeout_s=5.0)).timeout_s == 5.0
    assert Asked(call, archive(default_timeout_s=5.0), 0.0).timeout_s == 0.0
    assert Asked(call).timeout_s is None


def test_a_reply_is_an_answer_with_the_requests_id() -> None:
    """And the handler's status and fields, but for an id of its own."""
    asked = Asked(Call("predictions", {"x-request-id": "i"}, b""))
    asked.answer(reply({"x-own": "\xfc", "x-request-id": "other"}, b"body", 201))
    asked.answer(Unavailable("no"))
    answer, error = asked.answers
    assert answer == CallAnswer(201, b"body", (ID, (b"x-own", b"\xfc")))
    assert type(answer.body) is bytes
    assert type(error) is Unavailable
    asked = Asked(Call("predictions", {"x-request-id": "\u20ac"}, b""))
    asked.answer(reply({}))
    assert asked.answers[0].fields == ((b"x-request-id", b"?"),)


@pytest.mark.parametrize(
    ("name", "value"),
    [("a b", ""), ("", ""), ("X", ""), ("x", "a\nb"), ("x", "\0"), ("x", "\u20ac"), ("x", "\x7f"), ("content-length", "1"),
     ("transfer-encoding", "chunked"), ("connection", "close"), ("keep-alive", "1"), ("upgrade", "h2c"), ("trailer", "x"),
     ("te", "trailers")],
)  # fmt: skip
def test_a_field_that_would_be_no_field_is_the_handlers_failure(name: str, value: str) -> None:
    """So is one that says how long the answer is. Of an answer in pieces the rest is not waited for."""
    asked = Asked(Call("predictions", {}, b""))
    asked.answer(reply({name: value}))
    asked.piece(b"x", {name: value})
    assert [type(answer) for answer in asked.answers] == [ModelFailed, ModelFailed]
    assert f"the handler set the header {name!r} = {value!r}, which" in str(asked.answers[0])
    assert asked.served.batcher.cancelled == [asked.row]  # type: ignore[attr-defined]
    assert asked.row.on_piece is None


def test_a_long_field_is_cut_in_the_error() -> None:
    """Name and value."""
    asked = Asked(Call("predictions", {}, b""))
    asked.answer(reply({"x" * 50: "\n" + "y" * 50}))
    assert f"the header {'x' * 40!r} = {chr(10) + 'y' * 39!r}, which" in str(asked.answers[0])


def test_an_answer_comes_in_pieces() -> None:
    """Each with where it comes from; to who has left none comes."""
    asked = Asked(Call("predictions", {"x-request-id": "i"}, b""))
    asked.piece(b"one")
    asked.answer(reply({}, b"two"))
    assert asked.answers == [CallAnswer(206, b"one", (ID,), FLOW), CallAnswer(200, b"two", (ID,))]
    asked.served.cancel(asked.row)
    assert asked.row.on_piece is None
    assert asked.served.batcher.cancelled == [asked.row]  # type: ignore[attr-defined]


def test_tensors_go_to_the_worker_and_come_back() -> None:
    """Of BYTES in their wire format; in a batch with v2's requests by HTTP."""
    served = archive(default_timeout_s=5.0)
    answers: list[Any] = []
    texts = np.empty(1, object)
    texts[0] = b"x"
    inputs = {"a": np.float32([[1, 2]]), "b": texts}
    first = served.start(InferRequest(inputs, Terms(id="i", timeout_s=3.0)), {"x": "1"}, 4.0, answers.append)
    second = served.start(InferRequest({}), None, None, answers.append)
    assert first.said == {
        "id": "i",
        "headers": {"x": "1"},
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": (1, 2)},
            {"name": "b", "datatype": "BYTES", "shape": (1,)},
        ],
    }
    assert first.blobs == [np.float32([1, 2]).tobytes(), b"\x01\0\0\0x"]
    assert (second.said["headers"], uuid.UUID(second.said["id"]).version) == ({}, 4)
    assert first.bucket == second.bucket == row(b"", protocol="v2").bucket
    submitted = served.batcher.submitted  # type: ignore[attr-defined]
    assert [timeout_s for *_, timeout_s in submitted] == [3.0, 5.0]
    outputs = [{"name": "c", "datatype": "INT16", "shape": [2]}, {"name": "d", "datatype": "BYTES", "shape": [1]}]
    blobs = [memoryview(np.int16([1, 2]).tobytes()), memoryview(b"\x01\0\0\0y")]
    for result in (Reply({"outputs": outputs}, blobs), Unavailable("no")):
        submitted[0][1](result)
    found, error = answers
    assert {name: array.tolist() for name, array in found.items()} == {"c": [1, 2], "d": [b"y"]}
    assert type(error) is Unavailable


def test_a_model_without_workers_has_no_room_and_is_healthy() -> None:
    """It has what it was told to have; one whose workers have died is neither."""
    served = archive(workers=0)
    assert (served.is_ready, served.is_healthy) == (False, True)
    for ask in (
        lambda: served.call(Call("predictions", {}, b""), None, print),
        lambda: served.start(InferRequest({}), None, None, print),
    ):
        with pytest.raises(Unavailable, match=r"model 'm' version 1\.0 has no workers until it is scaled"):
            ask()
    served = archive()
    assert (served.is_ready, served.is_healthy, served.takes_calls, served.wants_headers) == (True,) * 4
    served._workers.alive = 0
    assert (served.is_ready, served.is_healthy) == (False, False)
    served.check_room()


def test_a_queue_that_is_full_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As any model's."""
    monkeypatch.setattr(Batcher.policy, "queued_rows", 1)
    with pytest.raises(TorporError, match="queue"):
        archive().check_room()


def test_an_archive_is_scaled_to_the_nearest_of_what_is_wanted() -> None:
    """And has what it had if it cannot be."""
    served = archive(ModelSettings().changed({"maxWorkers": 3}, "model.yaml"), workers=2)
    assert (served.least_workers, served.most_workers) == (2, 3)
    assert archive(workers=2).most_workers == 2

    async def scenario() -> None:
        for least, most in ((1, 5), (3, 5), (0, 1)):
            await served.scale(least, most)
        with pytest.raises(ArchiveError, match="no memory"):
            await served.scale(9, 9)

    asyncio.run(scenario())
    workers: Any = served._workers
    assert workers.steps == ["shrink", "grow", "shrink"]
    assert (workers.devices, served.least_workers, served.most_workers) == (1, 0, 1)
    assert served.batcher.sizes == 3  # type: ignore[attr-defined]
    assert served.workers() == ["one"]


def test_one_scaling_waits_for_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may not succeed: then the later one begins with what there was."""
    served = archive()

    async def grow(workers: Workers, count: int) -> None:
        before, workers.devices = workers.devices, count
        await asyncio.sleep(0)
        if count == 2:
            workers.devices = before
            raise ArchiveError("no memory")

    monkeypatch.setattr(Workers, "grow", grow)

    async def scenario() -> list[BaseException | None]:
        return await asyncio.gather(served.scale(2, 2), served.scale(3, 3), return_exceptions=True)

    assert [type(result) for result in asyncio.run(scenario())] == [ArchiveError, type(None)]
    assert (served._workers.devices, served.least_workers, served.most_workers) == (3, 3, 3)


def test_a_model_ends_when_its_requests_have_been_answered() -> None:
    """Then its processes, and at last its folder."""
    served = archive()
    steps: Any = served._workers
    served._unpacked.callback(lambda: steps.steps.append(f"folder {served.batcher.is_closed}"))  # type: ignore[attr-defined]
    asyncio.run(served.end())
    assert steps.steps == ["close"]
    asyncio.run(served.close())
    assert steps.steps == ["close", "close", "folder True"]


@pytest.mark.parametrize(("device", "has_gpus"), [("auto", True), ("cuda", True), ("cpu", False), ("cpu,cpu", False)])
def test_an_archive_has_no_gpu_where_the_device_is_the_cpu(device: str, has_gpus: bool) -> None:
    """Named once, or for each instance that a class would have."""
    archive, config = (
        SimpleNamespace(path=Path("m.mar"), manifest=SimpleNamespace(raw={})),
        SimpleNamespace(number_of_gpu=2),
    )
    made = AssembledArchive(archive, config, ModelSettings(), {"device": device}, 2)  # type: ignore[arg-type]
    assert made.origin.has_gpus is has_gpus
