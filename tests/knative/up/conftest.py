"""`torpor up` processes that end with their test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from up_process import Up


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start `torpor up`; it ends with the test."""
    started: list[Up] = []

    def start(yaml: str, *options: str, **environment: str) -> Up:
        started.append(Up(tmp_path, yaml, *options, **environment))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.interrupt()
            one.wait_for("draining")
            one.interrupt()
        one.ended()
        assert one.process.stderr is not None
        one.process.stderr.close()
