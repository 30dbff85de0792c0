"""What a rollout reads from a real Prometheus is what it would have read from the pods themselves."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from torpor.knative.cluster import ClusterAway
from torpor.knative.rollout.counts import Counts, counted
from torpor.knative.rollout.judgement import Tolerance, judge
from torpor.knative.rollout.metrics import PrometheusMetrics
from torpor.knative.samples import samples

TIMEOUT_S = 30
GOOD, BAD = b'{"instances": [[2.0, 4.0]]}', b"{"

CONFIGURATION = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
- job_name: pods
  static_configs:
{targets}
"""
TARGET = "  - {{targets: ['{address}'], labels: {{namespace: {namespace}, pod: {pod}}}}}\n"


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[dict[tuple[str, str], str]], str]]:
    """Start one that asks these addresses, by namespace and pod; its own address."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is missing; install the Debian package prometheus")
    processes: list[subprocess.Popen[bytes]] = []

    def start(addresses: dict[tuple[str, str], str]) -> str:
        targets = "".join(
            TARGET.format(address=address, namespace=namespace, pod=pod)
            for (namespace, pod), address in addresses.items()
        )
        file = tmp_path / "prometheus.yml"
        file.write_text(CONFIGURATION.format(targets=targets))
        for _ in range(3):  # it cannot choose a port itself
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            options = [
                f"--config.file={file}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address={address}",
            ]
            process = subprocess.Popen([program, *options], stderr=subprocess.DEVNULL)
            processes.append(process)
            while process.poll() is None:
                if is_ready(address):
                    return f"http://{address}"
                time.sleep(0.02)
        raise AssertionError("prometheus does not start")

    yield start
    for process in processes:
        process.kill()
        process.wait()


def is_ready(address: str) -> bool:
    try:
        with urlopen(f"http://{address}/-/ready", timeout=1):
            return True
    except OSError:
        return False


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    end_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end_s, "it took too long"
        time.sleep(0.02)


def pods_own(address: str) -> Counts:
    with urlopen(f"http://{address}/metrics", timeout=TIMEOUT_S) as answer:
        return counted(samples(answer.read().decode()))


def ask(address: str, body: bytes) -> None:
    with suppress(HTTPError), urlopen(f"http://{address}/v1/models/halves:predict", body, timeout=TIMEOUT_S):
        pass


def test_prometheus_tells_what_the_pods_counted(serve: Callable[..., Any], prometheus: Callable[..., str]) -> None:
    """Of two revisions whose names begin alike, each pod's own; none of another namespace. The candidate's errors are found."""
    stable, candidate, other = (serve("halves") for _ in range(3))
    for server, good, bad in ((stable, 30, 0), (candidate, 20, 5), (other, 7, 0)):
        for body in [GOOD] * good + [BAD] * bad:
            ask(server.address, body)
    url = prometheus(
        {
            ("shop", "halves-00001-deployment-5d-x1"): stable.address,
            ("shop", "halves-00001-1-deployment-7c-x2"): candidate.address,
            ("else", "halves-00001-deployment-5d-x1"): other.address,
        }
    )
    metrics = PrometheusMetrics(url, "shop")

    def told() -> tuple[Counts, Counts] | None:
        found = [metrics.counts(revision, []) for revision in ("halves-00001", "halves-00001-1")]
        names = [[*counts] for counts in found]
        if names != [["halves-00001-deployment-5d-x1"], ["halves-00001-1-deployment-7c-x2"]]:
            return None
        return next(iter(found[0].values())), next(iter(found[1].values()))

    until(lambda: told() == (pods_own(stable.address), pods_own(candidate.address)))
    one, two = told() or (Counts(), Counts())
    assert (one.requests, one.errors, two.requests, two.errors) == (30, 0, 25, 5)
    assert one.observed("request_predict_seconds") > 0
    assert judge(two, one, Tolerance()).good is False
    assert judge(one, one, Tolerance()).good is True


def test_a_prometheus_that_is_away_is_the_cluster_away() -> None:
    """It is waited for, as for an API server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ClusterAway, match=f"Prometheus at {url}"):
            PrometheusMetrics(url, "shop").counts("halves-00001", [])
