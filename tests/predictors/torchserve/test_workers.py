"""The worker processes of an archive as the batcher sees them."""

import asyncio
import os
from typing import Any

from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.errors import ModelFailed, Unavailable
from torpor.predictors.torchserve import process
from torpor.predictors.torchserve.workers import Row, Workers


def test_a_batch_for_nobody_is_refused() -> None:
    """It was formed before the last worker was taken away, and has not begun."""

    async def ask() -> list[Any]:
        async def start(on_end: Any) -> Any:
            raise AssertionError("there is to be none")

        workers = Workers("m", 0, start, 1.0, ModelFailed)
        await workers.open()
        answers: list[Any] = []
        row = Row(Bucket("predictions"), {}, [])
        workers.submit([row, row], lambda results, seconds: answers.extend(results), asyncio.get_running_loop())
        await workers.close()
        return answers

    answers = asyncio.run(ask())
    assert [type(answer) for answer in answers] == [Unavailable, Unavailable]
    assert str(answers[0]) == "the model has no workers: there are none"


def test_what_a_process_is_asked_after_its_end_has_not_begun(monkeypatch) -> None:
    """Its socket has ended and its owner has not been told yet: nothing was sent, so another one may answer it."""
    loads_and_ends = """
import os, sys
from torpor.predictors.torchserve import frames
os.read(int(sys.argv[1]), 1 << 16)
os.write(int(sys.argv[1]), b"".join(frames.pack({"loaded": True})))
"""
    monkeypatch.setattr(process, "_COMMAND", loads_and_ends)

    class AskedLate(process.WorkerProcess):
        def connection_lost(self, error: Exception | None) -> None:
            super().connection_lost(error)
            self.run({}, [], lambda replies, blobs: None, 0.0)

    async def ask() -> tuple[str, bool]:
        told: asyncio.Future[tuple[str, bool]] = asyncio.get_running_loop().create_future()
        worker = AskedLate("m", 1, lambda worker, reason, has_begun: told.set_result((reason, has_begun)), print)
        await worker.load({}, os.environ, 20.0)
        return await told

    assert asyncio.run(ask()) == ("the handler ended its process with status 0", False)
