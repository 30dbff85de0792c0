"""The command `torpor serve`: which model is meant, and what ends a start."""

import json
import logging
import re
import socket
import sys
from pathlib import Path

import pytest
from torpor.predictors import command
from torpor.predictors.catalog import Catalog, ModelClass, Outside
from torpor.predictors.settings import SettingError, resolve

MODELS = Path(__file__).parent / "serving" / "models"


@pytest.fixture(autouse=True)
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names neither a model nor what it is called."""
    for variable in ("TORPOR_MODEL", "TORPOR_MODEL_NAME", "INFERENCE_SERVICE_NAME"):
        monkeypatch.delenv(variable, raising=False)


def meant(*arguments: str) -> Catalog:
    """What the command's arguments mean."""
    return command._catalog(command._parser().parse_args(["serve", *arguments]), Outside({}, {}))


def write_model(folder: Path, text: str = "") -> Path:
    folder.mkdir()
    (folder / "model.toml").write_text(f'class = "model:Model"\n{text}')
    return folder


def test_a_model_is_named_by_flag_environment_file_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order."""
    plain, named = write_model(tmp_path / "plain"), write_model(tmp_path / "other", 'name = "named"')
    assert meant(str(plain)).names() == ["plain"]
    assert meant(str(named)).names() == ["named"]
    monkeypatch.setenv("INFERENCE_SERVICE_NAME", "service")
    assert meant(str(named)).names() == ["service"]
    monkeypatch.setenv("TORPOR_MODEL_NAME", "own")
    assert meant(str(named)).names() == ["own"]
    assert meant(str(named), "--model-name", "flag").names() == ["flag"]


def test_a_folder_with_a_colon_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none, it is a class."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "a:B")
    assert not isinstance(meant("a:B").model("a:B"), ModelClass)
    assert isinstance(meant("c:D").model("d"), ModelClass)


def test_several_models_have_the_names_of_their_folders(tmp_path: Path) -> None:
    """A flag cannot name them; the environment, which is the service's, does not."""
    for name in ("a", "b"):
        write_model(tmp_path / name)
    assert meant(str(tmp_path)).names() == ["a", "b"]
    with pytest.raises(SettingError, match=r"--model-name: 'm', but .* has several models, named like their folders"):
        meant(str(tmp_path), "--model-name", "m")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    """In words, also where it is a file."""
    (tmp_path / "weights.pt").write_text("")
    for source in ("absent", str(tmp_path / "weights.pt")):
        with pytest.raises(SettingError, match=f"'{source}' is neither a folder nor MODULE:CLASS"):
            meant(source)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_port_that_is_taken_ends_the_start(failing_start, processes: str) -> None:
    """With status 1, and the port in the log."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, log = failing_start(MODELS / "echo", "--host", "127.0.0.1", "--port", port, "--processes", processes)
    assert status == 1
    assert f"port {port} on 127.0.0.1: " in log
    assert "Traceback" not in log


IGNORED = (
    "grpc_port", "workers", "max_threads", "max_asyncio_workers", "enable_grpc", "enable_docs_url", "enable_latency_logging",
    "configure_logging", "log_config_file", "access_log_format", "protocol", "predictor_use_ssl",
    "enable_predictor_health_check", "grpc_max_send_message_length", "grpc_max_receive_message_length", "event-loop",
    "timeout-keep-alive",
)  # fmt: skip


def test_flags_of_kserves_own_server_are_ignored_and_told_once(start, connect_http1) -> None:
    """With a value or without, as manifests have them; the server is what it would be without."""
    flags = [word for flag in IGNORED for word in ((f"--{flag}",) if "enable" in flag else (f"--{flag}", "1"))]
    server = start(MODELS / "echo", *flags)
    assert connect_http1(server).request("GET", "/v2/models/echo/ready").status == 200
    (told,) = [line for line in server.log if "ignored" in line]
    assert told.endswith(f"ignored, without meaning here: {', '.join(f'--{flag}' for flag in IGNORED)}\n")


@pytest.mark.parametrize(
    ("flag", "value", "name", "meant"),
    [
        ("--http_port", "81", "port", 81),
        ("--predictor_host", "host:82", "predictor", "host:82"),
        ("--predictor_request_timeout_seconds", "7", "predictor_timeout_s", 7.0),
        ("--predictor_request_retries", "5", "predictor_retries", 5),
        ("--ssl_certfile", "a.pem", "tls_cert", "a.pem"),
        ("--ssl_keyfile", "b.pem", "tls_key", "b.pem"),
    ],
)
def test_names_of_kserves_own_server_are_settings(flag: str, value: str, name: str, meant: object) -> None:
    """Those that mean something here; none is forgotten."""
    both = ["--tls-cert", "c", "--tls-key", "k"] if name.startswith("tls") else []
    options = command._parser().parse_args(["serve", *both, flag, value])
    assert resolve(vars(options), {}, {})[name] == meant
    assert flag in command._KSERVE_ALIASES[name]
    assert len(command._KSERVE_ALIASES) == 6


def test_the_start_is_one_line_with_its_phases(start, connect_http1) -> None:
    """In the log as in `/metrics`: what each took, and all together at least as much as these."""
    server = start(MODELS / "echo")
    (line,) = [line for line in server.log if "ready in" in line]
    told = re.search(r"ready in (\S+) s \((.+)\): echo on 127\.0\.0\.1:\d+$", line)
    assert told is not None, line
    phases = dict(phase.split() for phase in told[2].split(", "))
    assert [*phases] == ["start", "import", "load", "warm_up"]
    text = connect_http1(server).request("GET", "/metrics").body.decode()
    shown = dict(re.findall(r'^torpor_start_seconds\{phase="(\w+)"\} (\S+)$', text, re.MULTILINE))
    assert {name: f"{float(seconds):.2f}" for name, seconds in shown.items()} == phases
    assert 0 < sum(map(float, shown.values())) < float(told[1]) + 0.01


def test_a_line_of_the_log_as_json_has_the_exception() -> None:
    """One line each, whatever is in it."""
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("torpor", logging.ERROR, "", 0, "it %s", ("failed",), sys.exc_info())
    line = command._JsonFormatter().format(record)
    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "torpor", "it failed")
    assert entry["exception"].endswith("ValueError: two\nlines")
