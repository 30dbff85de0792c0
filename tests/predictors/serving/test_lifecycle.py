"""SIGTERM under load: what runs and what waits is answered, what comes late too, and then the process leaves."""

import signal
import subprocess
import sys
import time

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
