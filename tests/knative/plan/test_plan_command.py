"""The command `torpor plan`, and what docs/plan.md shows, done as it says."""

import json
import re
import shlex
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from free_ports import free_port
from real_prometheus import prometheus
from torpor.knative.autoscaling import PREFIX, Autoscaling
from torpor.knative.plan.measurement import BatchTime, Measurement
from torpor.knative.plan.measuring import measure
from torpor.predictors.command import main
from torpor.predictors.settings import SettingError

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "plan.md").read_text()
MEASURED = Measurement(
    "made-up",
    tuple(BatchTime(rows, 1, 0.004 + 0.0005 * rows) for rows in (1, 8, 64)),
    0.0002,
    0.001,
    1.2,
    {"interpreter": 0.1, "import": 1.6, "first answer": 0.02},
    300 << 20,
    40 << 20,
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    MEASURED.write(tmp_path / "mlp.json")
    return tmp_path / "mlp.json"


def planned(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> dict[str, Any]:
    assert main(["plan", "--json", *map(str, arguments)]) == status
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["plan", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_the_commands_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, in a folder with the examples, a trace and a Prometheus's address that is free."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "monday.csv").write_text("arrival_s\n" + "".join(f"{n / 5}\n" for n in range(600)))
    (tmp_path / "plan.toml").write_text(re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1])  # type: ignore[index]
    monkeypatch.chdir(tmp_path)
    commands = re.search(r"```\n(torpor plan .*?)```", PAGE, re.DOTALL)[1].splitlines()  # type: ignore[index]
    with prometheus_like([[1.0, "3.5"]]) as address:
        for command in commands:
            arguments = shlex.split(command.replace("http://localhost:9090", address))[1:]
            assert main(arguments) in (0, 1), command
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["model"] == "mlp"
    assert (tmp_path / "monday.png").read_bytes().startswith(b"\x89PNG")
    assert "containerConcurrency" in (tmp_path / "patch.yaml").read_text()
    assert Measurement.read(tmp_path / "mlp.json").parameter_bytes == 4 * (784 * 512 + 512 + 512 * 10 + 10)


class prometheus_like:  # noqa: N801
    """Answers each range query with one series; for what a real one cannot be made to have had yesterday."""

    def __init__(self, points: list[list[Any]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                start = float(re.search(r"start=([\d.]+)", self.path)[1])  # type: ignore[index]
                values = [[start + 60 * minute, points[minute % len(points)][1]] for minute in range(60)]
                body = {"status": "success", "data": {"resultType": "matrix", "result": [{"values": values}]}}
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *arguments: object) -> None: ...

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_a_plan_is_reproducible(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a saved measurement; and its figures are those that a cluster is compared with."""
    arguments = ["--measurement", saved, "--shape", "bursts 20/s of 1m every 10m for 20m"]
    one = planned(capsys, *arguments)
    assert planned(capsys, *arguments) == one
    assert {"pod_seconds", "cold_starts", "cold_share", "latency_p95_ms"} <= {*one["expected"]}
    assert one["goal"]["reached"]
    assert one["settings"]["memory_bytes"] == 384 << 20  # 300 MiB measured and a quarter, in steps of 32
    assert one["measurement"]["memory_bytes"] == 300 << 20


def test_a_full_disk_is_said(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--measurement", saved, "--shape", "bursts 20/s of 1m every 10m for 20m"]
    assert "--output: [Errno 28] No space left on device" in refusal(capsys, *arguments, "--output", "/dev/full")


def test_cold_starts_are_bought_off_where_the_goal_says_so(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With pods that stay; without such a goal the model sleeps."""
    arguments = ["--measurement", saved, "--shape", "bursts 5/s of 1m every 10m for 30m", "--p99-ms", "10000"]
    awake = planned(capsys, *arguments, "--cold-share", "0.0001")
    asleep = planned(capsys, *arguments, "--cold-share", "1")
    assert awake["expected"]["cold_starts"] == 0
    assert asleep["settings"]["min_scale"] == asleep["settings"]["retention_s"] == 0
    assert asleep["expected"]["cold_starts"] == 3
    assert asleep["expected"]["pod_seconds"] < 0.5 * awake["expected"]["pod_seconds"]


def test_a_goal_that_nothing_reaches_is_said_to_be_missed(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the status, by the JSON and by the text."""
    arguments = ["--measurement", saved, "--shape", "poisson 5/s for 1m", "--p99-ms", "1"]
    assert not planned(capsys, *arguments, status=1)["goal"]["reached"]
    assert main(["plan", *map(str, arguments)]) == 1
    assert "# goal: p99 1 ms, 0.5 % cold: MISSED" in capsys.readouterr().out


def test_what_is_given_is_not_searched(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each by its flag, or by the file of --config, where the flag wins."""
    config = saved.with_name("plan.toml")
    config.write_text(
        'container-concurrency = 7\nwindow = "90s"\nretention = "45s"\nmax-batch-size = 4\nmin-scale = 0\n'
    )
    found = planned(
        capsys, "--measurement", saved, "--shape", "poisson 2/s for 2m", "--config", config, "--target", "3",
        "--max-scale", "9", "--batch-timeout-micros", "123", "--window", "30s", "--cold-share", "1", "--p99-ms", "9000",
    )  # fmt: skip
    settings = found["settings"]
    assert (settings["container_concurrency"], settings["window_s"], settings["retention_s"]) == (7, 30, 45)
    assert (settings["max_batch_size"], settings["batch_timeout_micros"]) == (4, 123)
    assert (settings["target"], settings["min_scale"], settings["max_scale"]) == (3, 0, 9)


def test_what_is_printed_is_a_patch_that_knative_takes(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Comments and chart in front; the annotations are in Knative's own limits, each number has its reason."""
    yaml = pytest.importorskip("yaml")
    assert main(["plan", "--measurement", str(saved), "--shape", "poisson 20/s for 2m", "--ascii"]) == 0
    text = capsys.readouterr().out
    assert text.isascii()
    document = yaml.safe_load(text)
    predictor = document["spec"]["predictor"]
    annotations = document["metadata"]["annotations"]
    scaling = Autoscaling.of(annotations, predictor["containerConcurrency"])
    assert {name for name in annotations if name.startswith(PREFIX)} == {
        PREFIX + name
        for name in ("window", "scale-to-zero-pod-retention-period", "initial-scale", "target-utilization-percentage")
    }
    assert scaling.window_s >= 6
    assert predictor["containers"][0]["resources"]["limits"] == {"cpu": "2", "memory": "384Mi"}  # 1.2 cores
    for field in ("minReplicas", "maxReplicas", "scaleTarget", "containerConcurrency", "memory", "cpu", "timeout"):
        assert re.search(rf"^ *{field}: .+ # \w", text, re.MULTILINE), field


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "traffic: none given, must be one of --trace, --shape, --prometheus"),
        (["--shape", "quiet for 1m"], "--shape: 'quiet for 1m' has no requests, must have some"),
        (["--shape", "poisson 1/s for 1m"], "FOLDER is missing: the model to measure, or --measurement FILE"),
        (["nowhere", "--shape", "poisson 1/s for 1m"], "'nowhere' is not a folder"),
        (["--trace", "nowhere.csv"], "--trace: nowhere.csv: [Errno 2]"),
        (["--prometheus", "localhost", "--query", "up"], "--prometheus: 'localhost', must be of the form http://HOST"),
        (["--prometheus", "http://localhost:1"], "--query is missing: which of Prometheus's series"),
        (
            ["--prometheus", "http://localhost:1", "--query", "up", "--since", "744h", "--step", "1s"],
            "--step: 1 s over 2.6784e+06 s, must be at least 243 s",
        ),
        (["--config", "nowhere.toml"], "--config: nowhere.toml: [Errno 2]"),
    ],
)
def test_what_cannot_be_used_is_named(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By flag, value and what it must be."""
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "5s"], "argument --window: '5s', must be a duration of whole seconds in [6s, 1h]"),
        (["--cold-share", "2"], "argument --cold-share: '2', must be a number in [0, 1]"),
        (["--container-concurrency", "1001"], "'1001', must be an integer in [0, 1000]"),
        (["--timeout", "11m"], "'11m', must be a duration of whole seconds in [1s, 10m]"),
        (["--lengths", "9:10:20"], "'9:10:20', must be MEDIAN:SHORTEST:LONGEST"),
    ],
)
def test_a_flag_says_what_it_takes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is measured."""
    with pytest.raises(SystemExit):
        main(["plan", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cores": -1}, "cores = -1, must be a number, at least 0"),
        ({"core": 1}, "core is unknown, must be one of around_s, batches, cores"),
        ({"batches": []}, "batches = [], must be a list of at least one"),
        ({"batches": [{"rows": 0, "cells": 1, "seconds": 1}]}, "batches[0].rows = 0, must be an integer, at least 1"),
        ({"start": {"import": "x"}}, "start.import = 'x', must be a number, at least 0"),
    ],
)
def test_a_measurement_that_was_edited_is_checked(
    change: dict[str, Any], message: str, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By file and field."""
    saved.write_text(json.dumps(json.loads(saved.read_text()) | change))
    assert message in refusal(capsys, "--measurement", saved, "--shape", "poisson 1/s for 1m")


def test_settings_that_contradict_each_other_are_refused(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And rows of a form that was not measured."""
    arguments = ("--measurement", saved, "--shape", "poisson 1/s for 1m")
    assert "min_scale = 3, must be at most max_scale, 2" in refusal(
        capsys, *arguments, "--min-scale", 3, "--max-scale", 2
    )
    assert "the traffic's rows have a size" in refusal(capsys, *arguments, "--lengths", "20:4:128")
    sized = json.loads(saved.read_text())
    sized["batches"] += [{"rows": 1, "cells": 64, "seconds": 0.01}]
    saved.write_text(json.dumps(sized))
    assert "--lengths is missing: the model's rows have a size, measured from 1 to 64" in refusal(capsys, *arguments)


def test_a_config_that_names_no_flag_is_refused(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or a value that the flag would not take."""
    config = saved.with_name("plan.toml")
    config.write_text("p99 = 3\n")
    assert "p99 is unknown, must be one of ascii, batch-timeout-micros" in refusal(capsys, "--config", config)
    config.write_text('window = "1s"\n')
    assert "window = '1s', must be a duration of whole seconds in [6s, 1h]" in refusal(capsys, "--config", config)


def test_a_predictor_that_does_not_start_is_shown(tmp_path: Path) -> None:
    """With the end of its log."""
    (tmp_path / "model.toml").write_text('class = "model:Absent"\n')
    (tmp_path / "model.py").write_text("class Present: ...\n")
    with pytest.raises(SettingError, match=r"the predictor did not start within 60 s:\n(.|\n)*Absent"):
        measure(tmp_path, starts=1, start_timeout_s=60)


def test_named_axes_are_measured_by_size(tmp_path: Path) -> None:
    """A model whose time is its cells; what a named axis has is not what a fixed one has."""
    (tmp_path / "model.toml").write_text('class = "model:Sleeper"\n')
    (tmp_path / "model.py").write_text(
        "import time\nclass Sleeper:\n    inputs = {'x': 'int64[rows, tokens]'}\n"
        "    def predict(self, x):\n        time.sleep(1e-4 * x.size)\n        return {'y': x[:, :1]}\n"
    )
    found = measure(tmp_path, most_rows=2, sizes=(8, 64), starts=1)
    assert [(batch.rows, batch.cells) for batch in found.batches] == [(1, 8), (2, 8), (1, 64), (2, 64)]
    for batch in found.batches:
        assert batch.seconds >= 1e-4 * batch.rows * batch.cells
    assert found.cells == (8, 64)
    assert found.parameter_bytes == 0
    assert 0 < found.start["interpreter"] < found.start_s
    assert found.memory_bytes > 10 << 20


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[str]:
    """A real one, that scrapes itself each second."""
    port, until_s = free_port(), time.monotonic() + 60
    with prometheus(tmp_path, port, [(f"127.0.0.1:{port}", {})], "1s") as address:
        while True:
            try:
                with urllib.request.urlopen(f"{address}/api/v1/query?query=up") as response:
                    if json.load(response)["data"]["result"]:
                        break
            except OSError:
                pass
            assert time.monotonic() < until_s
        yield address


def test_a_real_prometheus_is_asked(saved: Path, asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A constant rate; a query that is none is told in its own words, one without samples as having none."""
    arguments = ("--measurement", saved, "--prometheus", asked, "--since", "10m", "--step", "15s", "--query")
    found = planned(capsys, *arguments, "vector(2) or vector(2)")
    assert found["expected"]["requests"] == pytest.approx(1200, rel=0.15)
    added = planned(capsys, *arguments, 'label_replace(vector(2), "a", "1", "", "") or vector(1)')
    assert added["expected"]["requests"] == pytest.approx(1800, rel=0.15)
    assert "--query: 1:5: parse error: unclosed left parenthesis" in refusal(capsys, *arguments, "sum(")
    assert "--query: 'absent_metric' has no requests within 600 s, must have some" in refusal(
        capsys, *arguments, "absent_metric"
    )
