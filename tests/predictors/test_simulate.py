"""The command `torpor simulate`: where its load, its device and its settings come from, and what it prints."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.batching.policy import BatchingPolicy, BatchingSettings
from torpor.predictors.batching.run_times import RunTimes
from torpor.predictors.command import main
from torpor.predictors.serving.metrics import ModelMetrics, ServerMetrics

DEVICE = ["--overhead-s", "0.005", "--cell-s", "0.0001"]
LOOP = ["--callers", "8", "--requests", "200", "--lengths", "20:4:128"]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORPOR_MAX_BATCH_SIZE", "TORPOR_BATCH_TIMEOUT_MICROS", "TORPOR_REQUEST_TIMEOUT_S"):
        monkeypatch.delenv(name, raising=False)


def figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["simulate", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def shown(**families: tuple[float, float]) -> str:
    """The metrics of a server whose models have learned (overhead_s, cell_s)."""
    server = ServerMetrics()
    for name, (overhead_s, cell_s) in families.items():
        policy: BatchingPolicy[Any] = BatchingPolicy(BatchingSettings(), RunTimes())
        for rows in (1, 2, 3):
            policy.run_times.observe(rows, Bucket("t", (8,)), overhead_s + cell_s * rows * 8)
        server.models.append(ModelMetrics(name, "1", policy))
    return server.render().decode()


def test_the_same_seed_prints_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """And another seed does not."""
    assert figures(capsys, *LOOP, *DEVICE) == figures(capsys, *LOOP, *DEVICE)
    assert figures(capsys, *LOOP, *DEVICE) != figures(capsys, *LOOP, *DEVICE, "--seed", "1")
    assert figures(capsys, *LOOP, *DEVICE)["requests"] == 200


def test_the_text_has_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    """One a line, by the names that JSON has."""
    names = [*figures(capsys, *LOOP, *DEVICE)]
    assert main(["simulate", *LOOP, *DEVICE]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names


def test_a_rate_is_what_comes(capsys: pytest.CaptureFixture[str]) -> None:
    """Far below what the device can do, as many are answered as come."""
    found = figures(capsys, "--rate", "20", "--requests", "2000", *DEVICE)
    assert found["requests_per_s"] == pytest.approx(20, rel=0.1)
    assert found["latency_p50_ms"] == pytest.approx(5.1, rel=0.1)


def test_a_trace_is_a_load(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With its own deadlines."""
    (tmp_path / "t.csv").write_text("arrival_s,tokens,deadline_s\n0,100,\n0.001,100,0.002\n")
    found = figures(capsys, "--trace", str(tmp_path / "t.csv"), *DEVICE)
    assert (found["requests"], found["deadlines_missed"]) == (2, 1)


def test_settings_come_from_where_serve_has_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flag, else the environment, else the folder's model.toml."""
    (tmp_path / "model.toml").write_text('class = "m:M"\n[batching]\nmax_batch_size = 4\n')
    rows = ["--callers", "64", "--requests", "2000", *DEVICE]
    assert figures(capsys, str(tmp_path), *rows)["rows_per_batch"] == pytest.approx(4, rel=0.02)
    monkeypatch.setenv("TORPOR_MAX_BATCH_SIZE", "2")
    assert figures(capsys, str(tmp_path), *rows)["rows_per_batch"] == pytest.approx(2, rel=0.02)
    assert figures(capsys, str(tmp_path), *rows, "--max-batch-size", "1")["rows_per_batch"] == 1
    assert figures(capsys, *rows, "--request-timeout-s", "0.006")["deadlines_missed"] > 0


def test_a_servers_metrics_are_a_device(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """From a file or from the server itself; a flag counts more."""
    loop = ["--callers", "8", "--requests", "200", "--lengths", "24:24:24"]
    (tmp_path / "metrics").write_text(shown(only=(0.005, 0.0001)))
    assert figures(capsys, *loop, "--metrics", str(tmp_path / "metrics")) == pytest.approx(
        figures(capsys, *loop, *DEVICE)
    )
    slower = figures(capsys, *loop, "--metrics", str(tmp_path / "metrics"), "--overhead-s", "1")
    assert slower["latency_p50_ms"] > 1000

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(shown(a=(9.0, 9.0), b=(0.005, 0.0001)).encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            found = figures(capsys, *loop, "--url", f"http://127.0.0.1:{server.server_port}/", "--model-name", "b")
        finally:
            server.shutdown()
            thread.join()
    assert found == pytest.approx(figures(capsys, *loop, *DEVICE))


def test_learned_times_are_those_of_buckets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A server learns from sizes rounded up, so that 17 tokens take what it learned of 24; a flag is for real tokens."""
    (tmp_path / "metrics").write_text(shown(only=(0.005, 0.0001)))
    load = ["--rate", "1", "--requests", "50", "--metrics", str(tmp_path / "metrics")]

    def taken_ms(tokens: int, *device: str) -> float:
        return float(figures(capsys, *load, "--lengths", f"{tokens}:{tokens}:{tokens}", *device)["latency_p50_ms"])

    assert taken_ms(17) == pytest.approx(taken_ms(24))
    assert taken_ms(24) - taken_ms(17, "--cell-s", "0.0001") == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*LOOP], "--overhead-s is missing: give --overhead-s and --cell-s, or --url or --metrics to read them"),
        ([*LOOP, "--overhead-s", "1"], "--cell-s is missing"),
        ([*DEVICE], "one of the arguments --trace --callers --rate is required"),
        ([*DEVICE, "--callers", "0"], "argument --callers: '0', must be an integer, at least 1"),
        ([*DEVICE, "--rate", "0"], "argument --rate: '0', must be a number above 0"),
        ([*LOOP, "--overhead-s", "-1"], "argument --overhead-s: '-1', must be a number, at least 0"),
        ([*LOOP, "--overhead-s", "nan"], "argument --overhead-s: 'nan', must be a number, at least 0"),
        (
            [*DEVICE, "--rate", "9", "--lengths", "9:10:11"],
            "argument --lengths: '9:10:11', must be MEDIAN:SHORTEST:LONGEST",
        ),
        ([*LOOP, *DEVICE, "--max-batch-size", "0"], "--max-batch-size: max_batch_size = 0, must be in [1, 65536]"),
        ([*DEVICE, "--trace", "none.csv"], "--trace: none.csv: "),
        ([*LOOP, "--metrics", "none"], "--metrics: "),
        ([*LOOP, "--url", "localhost:8080"], "--url: 'localhost:8080', must be of the form http://HOST:PORT"),
        ([*LOOP, "--url", "http://127.0.0.1:9"], "--url: http://127.0.0.1:9/metrics: "),
        (["none", *LOOP, *DEVICE], "'none' is not a folder"),
    ],
)
def test_what_cannot_be_simulated_is_said(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Status 2 and one line that names it."""
    try:
        status = main(["simulate", *arguments])
    except SystemExit as exit:
        status = exit.code  # type: ignore[assignment]
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (shown(a=(1, 1), b=(1, 1)), None, "--model-name must be one of a, b"),
        (shown(a=(1, 1)), "c", "no torpor_batch_overhead_seconds of model 'c'"),
        ("up 1\n", None, "no torpor_batch_overhead_seconds: it is not torpor's, or nothing has run there yet"),
    ],
)
def test_metrics_without_the_models_times_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, name: str | None, message: str
) -> None:
    """Which model, or that there is none."""
    (tmp_path / "metrics").write_text(text)
    chosen = [] if name is None else ["--model-name", name]
    assert main(["simulate", *LOOP, "--metrics", str(tmp_path / "metrics"), *chosen]) == 2
    assert message in capsys.readouterr().err
