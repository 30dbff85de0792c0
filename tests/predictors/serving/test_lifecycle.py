"""SIGTERM under load: what runs and what waits is answered, what comes late too, and then the process leaves."""

import asyncio
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from torpor.predictors.serving.data_plane import DataPlane, Served
from torpor.predictors.serving.http1 import Http1
from torpor.predictors.serving.lifecycle import Lifecycle
from virtual_time import run_virtually


class Story:
    """What happens to a server and to its model, and after how many seconds."""

    def __init__(self) -> None:
        self.events: list[tuple[float, str]] = []
        self.in_flight = 0
        self.last_request_s = -math.inf
        self.data_plane = DataPlane("0")

    def note(self, event: str) -> None:
        self.events.append((round(asyncio.get_running_loop().time() - 100, 1), event))

    async def start(self) -> str:
        return "here"

    async def drain(self) -> None:
        self.note("drains" if self.data_plane.is_draining and not self.data_plane.is_ready else "drains too early")

    async def shutdown(self, timeout_s: float) -> None:
        self.note(f"ends within {timeout_s:.0f} s")

    def asked(self) -> None:
        """A request has come, and was answered at once."""
        self.last_request_s = asyncio.get_running_loop().time()


class Model(Served):
    name, measured = "m", ()

    def __init__(self, story: Story) -> None:
        self._story = story

    def flush(self) -> None:
        self._story.note("waits for nobody")

    def abandon(self) -> None:
        self._story.note("refuses what waits")


def lived(quiet_s: float, timeout_s: float, *acts: tuple[float, Callable[[Story], object]]) -> list[tuple[float, str]]:
    """What happens to a server that is told to leave after a second, and to which this happens after so many."""

    async def scenario() -> list[tuple[float, str]]:
        story, loop = Story(), asyncio.get_running_loop()
        story.data_plane.publish("m", [Model(story)])
        lifecycle = Lifecycle(story.data_plane, story, quiet_s, timeout_s)  # type: ignore[arg-type]
        loop.call_later(1, signal.raise_signal, signal.SIGTERM)
        for seconds, act in acts:
            loop.call_later(seconds, act, story)
        assert await lifecycle.run("at {address}") == 0
        return story.events

    return run_virtually(scenario())


BEGINNING = [(1, "drains"), (1, "waits for nobody")]


def test_it_leaves_when_it_has_been_quiet_for_long_enough() -> None:
    """By its last request, or the signal; before that it is unready, and what waits for company waits no longer."""
    assert lived(5, 25) == [*BEGINNING, (6, "ends within 25 s")]
    assert lived(5, 25, (4, Story.asked), (8, Story.asked)) == [*BEGINNING, (13, "ends within 18 s")]


def test_a_second_signal_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Nor does SIGINT, which alone would have skipped the quiet."""
    interrupt = signal.raise_signal
    again = [(2.0, lambda _: interrupt(signal.SIGTERM)), (3.0, lambda _: interrupt(signal.SIGINT))]
    assert lived(5, 25, *again) == [*BEGINNING, (6, "ends within 25 s")]
    first = lived(5, 25, (0.5, lambda _: interrupt(signal.SIGINT)))
    assert first[-1] == (0.5, "ends within 30 s")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_it_waits_for_what_is_being_answered_and_no_longer_than_its_time() -> None:
    """Then what has not begun is refused; what has gets what is left of its time and 5 s, 30 s in all by default."""
    busy, idle = (lambda story, count=count: setattr(story, "in_flight", count) for count in (1, 0))
    assert lived(0, 25, (0, busy), (9, idle)) == [*BEGINNING, (9, "ends within 22 s")]
    assert lived(0, 20, (0, busy)) == [*BEGINNING, (21, "refuses what waits"), (21, "ends within 5 s")]
    assert lived(5, 0) == [*BEGINNING, (1, "refuses what waits"), (1, "ends within 5 s")]


@pytest.mark.parametrize(
    ("method", "path", "counts"),
    [
        ("POST", "/v2/models/m/infer", True),
        ("POST", "/inference.GRPCInferenceService/ModelInfer", True),
        ("GET", "/v2/health/ready", False),
        ("HEAD", "/", False),
        ("POST", "/grpc.health.v1.Health/Check", False),
    ],
)
def test_probes_do_not_keep_a_server_from_leaving(bench, method: str, path: str, counts: bool) -> None:
    """A proxy's health checks and a scraper come more often than the quiet lasts; both are answered."""
    server = bench(Http1).server
    server.finished(head := Mock(method=method, path=path))
    assert server.last_request_s == -math.inf
    server.is_draining = True
    server.finished(head)
    assert (server.last_request_s > -math.inf) is counts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_nothing_is_lost_at_the_end(serve, connect, gated, gate_path, binary_request, number: signal.Signals) -> None:
    """A request that runs, one that waits and one that comes after the signal all get their answers; the status is 0."""
    server = serve("marked", "--drain-quiet-s", "0", "--drain-timeout-s", "20", GATE=str(gate_path))

    def request(number: int) -> tuple[bytes, dict[str, str]]:
        return binary_request(
            {"x": np.full((1, 2), number, "<f4")}, outputs=[{"name": "doubled", "parameters": {"binary_data": True}}]
        )

    waiting, late = connect(server), connect(server)
    with gated(server) as gate:
        waits = waiting.send("POST", "/v2/models/marked/infer", *request(1))
        gate.wait_for_rows(1)
        server.process.send_signal(number)
        end_s = time.monotonic() + 20
        while connect(server).request("GET", "/v2/health/ready").status != 503:
            assert time.monotonic() < end_s, "it stayed ready"
        comes_late = late.send("POST", "/v2/models/marked/infer", *request(2))
        gate.wait_for_rows(2)
    replies = waiting.receive(waits), late.receive(comes_late)
    assert [reply.status for reply in replies] == [200, 200]
    answers = [reply.tensors()["doubled"].tolist() for reply in replies]
    assert answers == [[[2.0, 2.0]], [[4.0, 4.0]]]
    assert server.wait() == 0


EARLY = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torpor.predictors.command":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
from torpor.predictors.__main__ import main
sys.exit(main())
"""


def test_sigterm_is_heeded_before_the_command_is_imported() -> None:
    """Process 1 of a container has no default action for it, and the imports take a tenth of a second."""
    assert subprocess.run([sys.executable, "-c", EARLY], check=False).returncode == 128 + signal.SIGTERM


HANGING = """
import threading


class Hangs:
    def predict(self, x):
        threading.Event().wait()
"""


@pytest.fixture
def with_one_that_hangs(tmp_path: Path) -> Path:
    """Two models, `echo` and `hangs`."""
    for name, text, line in (
        ("echo", "class Echo:\n    def predict(self, x): return x", "Echo"),
        ("hangs", HANGING, "Hangs"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text(text)
        (tmp_path / name / "model.toml").write_text(f'class = "model:{line}"')
    (tmp_path / "hangs" / "model.toml").write_text('class = "model:Hangs"\n[batching]\nmodel_timeout_s = 0.2')
    return tmp_path


@pytest.mark.parametrize("processes", [1, 2])
def test_a_model_that_hangs_ends_its_process(
    start, connect, binary_request, with_one_that_hangs: Path, processes: int
) -> None:
    """Its caller is told to try elsewhere, other models answer until the end, and whoever runs the process sees a failure."""
    server = start(with_one_that_hangs, "--drain-quiet-s", "2", "--processes", str(processes))
    hanging, other = connect(server), connect(server)
    body, headers = binary_request({"x": np.ones((1, 2), "<f4")})
    refused = hanging.request("POST", "/v2/models/hangs/infer", body, headers)
    assert refused.status == 503
    assert "retry-after" in refused.headers
    assert "hangs" in refused.error()
    assert other.request("POST", "/v2/models/echo/infer", body, headers).status == 200
    if processes == 1:
        assert connect(server).request("GET", "/v2/health/ready").status == 503  # the other's answer may have ended it
        assert server.wait() == 1
        return
    end_s = time.monotonic() + 20
    while sum("worker" in line and "ready in" in line for line in server.log) < 3:
        assert time.monotonic() < end_s, "no new worker came"
    assert any("has ended with status 1" in line for line in server.log)
    assert connect(server).request("POST", "/v2/models/echo/infer", body, headers).status == 200
