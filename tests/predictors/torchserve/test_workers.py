"""The worker processes of an archive as the batcher sees them."""

import asyncio
from typing import Any

from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.errors import ModelFailed, Unavailable
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
