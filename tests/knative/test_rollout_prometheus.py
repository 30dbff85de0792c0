"""A rollout's counts from a real Prometheus that asks two real servers: a stable revision, and a candidate."""

import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port
from real_prometheus import prometheus
from torpor.knative.cluster import ClusterAway
from torpor.knative.rollout.counts import LATENCIES, Counts, Window
from torpor.knative.rollout.judgement import Tolerance, judge
from torpor.knative.rollout.metrics import PrometheusMetrics

MODEL = """\
import time
from typing import Annotated

import numpy as np


class Judged:
    outputs = {"y": "float32[rows]"}

    def predict(self, x: Annotated[np.ndarray, "float32[rows]"]) -> dict[str, np.ndarray]:
        if x.min() < 0:
            raise ValueError("below 0")
        time.sleep(float(x.max()))
        return {"y": x}
"""
STABLE, CANDIDATE = "s-00001", "s-00002"
LIMIT_S = 60


def infer(port: int, value: float) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [value]}]}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/models/judged/infer", json.dumps(body).encode())
    try:
        urllib.request.urlopen(request, timeout=LIMIT_S).close()
    except urllib.error.HTTPError as error:
        error.close()


def seen(metrics: PrometheusMetrics, window: Window, revision: str, requests: int, errors: int = 0) -> Counts:
    """What the window has when Prometheus has told of so many."""
    end_s = time.monotonic() + LIMIT_S
    while True:
        with contextlib.suppress(ClusterAway):  # it starts
            window.see(metrics.counts(revision, []))
        counts = window.counts()
        observed = sum(counts.observed(name) for name in LATENCIES)
        if (counts.requests, counts.errors, observed) == (requests, errors, requests - errors):
            return counts
        assert time.monotonic() < end_s, counts


@pytest.fixture
def judged(start: Callable[..., Any], tmp_path: Path) -> Iterator[tuple[int, int, PrometheusMetrics]]:
    """The ports of two servers, and what a real Prometheus tells of them. Each is there a second time, in another namespace."""
    folder = tmp_path / "judged"
    folder.mkdir()
    (folder / "model.py").write_text(MODEL)
    (folder / "model.toml").write_text('class = "model:Judged"')
    ports = {f"{name}-deployment-6d5f": start(folder).port for name in (STABLE, CANDIDATE)}
    targets = [
        (f"127.0.0.1:{port}", {"namespace": namespace, "pod": pod})
        for pod, port in ports.items()
        for namespace in ("default", "another")
    ]
    with prometheus(tmp_path, free_port(), targets, "200ms") as url:
        yield *ports.values(), PrometheusMetrics(url, "default")


def test_a_prometheus_tells_a_candidate_that_fails_and_one_that_is_slow(
    judged: tuple[int, int, PrometheusMetrics],
) -> None:
    """Of its own pods in its own namespace, since the step began."""
    stable, candidate, metrics = judged
    windows = {name: Window() for name in (STABLE, CANDIDATE)}
    for window in windows.values():
        window.begin()
    infer(candidate, -1.0)
    seen(metrics, windows[CANDIDATE], CANDIDATE, 1, errors=1)
    windows[CANDIDATE].begin()  # what was before the step does not count
    for _ in range(20):
        infer(stable, 0.0)
        infer(candidate, 0.0)
    before = seen(metrics, windows[STABLE], STABLE, 20)
    assert judge(seen(metrics, windows[CANDIDATE], CANDIDATE, 20), before, Tolerance()).good is True
    for _ in range(5):
        infer(candidate, 0.5)
    slow = judge(seen(metrics, windows[CANDIDATE], CANDIDATE, 25), before, Tolerance())
    assert slow.good is False
    assert "p99 of requests" in slow.why
    for _ in range(6):
        infer(candidate, -1.0)
    bad = judge(seen(metrics, windows[CANDIDATE], CANDIDATE, 31, errors=6), before, Tolerance())
    assert "6 errors of 31 requests" in bad.why


def test_a_prometheus_that_is_not_there_is_named() -> None:
    with pytest.raises(ClusterAway, match=r"Prometheus at http://127\.0\.0\.1:1: "):
        PrometheusMetrics("http://127.0.0.1:1/", "default").counts(STABLE, [])
