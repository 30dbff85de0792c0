"""Fixtures of the serving tests alone."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from connection_bench import Bench
from torpor.predictors.serving.exchange import Application
from torpor.predictors.serving.http1 import Http1
from torpor.predictors.serving.http2 import Http2


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    """Benches in a loop that only has to exist; what is due soon is done when the test looks."""
    loop = asyncio.new_event_loop()

    async def make(protocol: type[Http1] | type[Http2], application: Application | None) -> Bench:
        return Bench(protocol, application)

    yield lambda protocol, application=None: loop.run_until_complete(make(protocol, application))
    for task in (left := asyncio.all_tasks(loop)):
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
    loop.close()
