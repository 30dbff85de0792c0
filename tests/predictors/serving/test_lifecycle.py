"""SIGTERM under load: what runs and what waits is answered, what comes late too, and then the process leaves."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest


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
