"""`torpor edge agent | rollout | reports` from a first version to a bad one that is stopped, with a real `torpor serve`."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path

import pytest
from free_ports import free_port
from mirrors import Mirrors
from torpor.edge.reports import STRUCTURED, read, written
from torpor.edge.rollout import Member

TORPOR = Path(sys.executable).with_name("torpor")
KEYS = ("--keys", "keys", "--repository", "repository")

RESTART = """\
import os, signal, socket, subprocess, sys
from pathlib import Path

def listens():
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0

torpor, port, pid = sys.argv[1], int(sys.argv[2]), Path("pid")
if pid.exists():
    os.kill(int(pid.read_text()), signal.SIGINT)
    while listens():
        pass
command = [torpor, "serve", "node/current/model/m", "--host", "127.0.0.1", "--port", str(port)]
served = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
pid.write_text(str(served.pid))
while served.poll() is None and not listens():
    pass
"""

REQUEST = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}


def edge(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [TORPOR, "edge", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def done(*arguments: str | Path, folder: Path) -> str:
    result = edge(*arguments, folder=folder)
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Keys, and three bundles of a model; the third one's raises."""
    done("keys", "keys", "--repository", "repository", folder=tmp_path)
    for version in ("1", "2", "3"):
        model = tmp_path / f"model{version}"
        model.mkdir()
        (model / "model.toml").write_text('class = "model:M"\n')
        result = f"{{'y': x + {version}}}" if version != "3" else "1 / 0"
        (model / "model.py").write_text(f"class M:\n    def predict(self, x):\n        return {result}\n")
        (model / "smoke.json").write_text(json.dumps(REQUEST))
        done(
            "bundle",
            f"{version}.tar",
            "--name",
            "s",
            "--release",
            version,
            "--model",
            f"m=model{version}",
            folder=tmp_path,
        )
    return tmp_path


@pytest.fixture
def mirrors(here: Path) -> Iterator[Mirrors]:
    with Mirrors(here / "repository").running() as server:
        yield server


@pytest.fixture
def port(here: Path) -> Iterator[int]:
    yield free_port()
    if (here / "pid").exists():
        os.kill(int((here / "pid").read_text()), signal.SIGKILL)


def test_a_version_stays_when_the_served_model_answers(here: Path, mirrors: Mirrors, port: int) -> None:
    """The smoke request is the bundle's own, to the `torpor serve` that was restarted."""
    (here / "restart.py").write_text(RESTART)
    (here / "edge.toml").write_text(f'''
mirrors = ["{mirrors.url("a")}", "{mirrors.url("b")}"]
labels = {{ ring = "canary" }}
bundle = "s"
name = "n"
node = "node"
root = "repository/1.root.json"
restart = "{sys.executable} restart.py {TORPOR} {port}"
smoke_url = "http://127.0.0.1:{port}"
''')
    agent = ("agent", "--config", "edge.toml", "--once")
    said = done("rollout", "start", "1.tar", *KEYS, "--percent", "100", folder=here)
    assert "s/any: 1 is for 100 % of the nodes" in said
    done(*agent, folder=here)
    assert "current: s 1" in done("status", "--node", "node", folder=here)
    done("rollout", "start", "2.tar", *KEYS, "--percent", "0", folder=here)
    done(*agent, folder=here)
    assert "current: s 1" in done("status", "--node", "node", folder=here)
    done("rollout", "raise", *KEYS, "--percent", "ring=canary:100", folder=here)
    done(*agent, folder=here)
    assert "current: s 2" in done("status", "--node", "node", folder=here)
    done("rollout", "raise", *KEYS, "--percent", "100", folder=here)
    done("rollout", "start", "3.tar", *KEYS, "--percent", "100", folder=here)
    failed = edge(*agent, "--smoke-timeout-s", "1", folder=here)
    assert "failed 3 /v2/models/m/infer answered 500" in failed.stderr
    assert "2 is served again" in failed.stderr
    assert "current: s 2" in done("status", "--node", "node", folder=here)


def test_an_agent_ends_in_order(here: Path, mirrors: Mirrors) -> None:
    """At SIGTERM, while it waits for its next look."""
    options = ("--mirrors", mirrors.url("a"), "--node", "node", "--interval-s", "86400")
    with subprocess.Popen([TORPOR, "edge", "agent", *options], cwd=here, stderr=subprocess.PIPE, text=True) as agent:
        assert agent.stderr is not None
        assert "every 86400 s" in agent.stderr.readline()
        agent.send_signal(signal.SIGTERM)
        assert agent.stderr.read() == "torpor: stopped\n"
    assert agent.returncode == 0


def test_a_receiver_ends_in_order(here: Path) -> None:
    """At SIGTERM; what it has taken is in the file."""
    event = written(Member("n", {}), "s", "healthy", datetime.now(UTC), version="2", index="i", reason="", text="")
    command = [TORPOR, "edge", "reports", "reports.jsonl", "--port", "0"]
    with subprocess.Popen(command, cwd=here, stderr=subprocess.PIPE, text=True) as receiver:
        assert receiver.stderr is not None
        (port,) = re.findall(r":(\d+) are lines of reports", receiver.stderr.readline())
        connection = HTTPConnection("127.0.0.1", int(port), timeout=60)
        connection.request("POST", "/", event.encode(), {"Content-Type": STRUCTURED})
        assert connection.getresponse().status == 204
        connection.close()
        receiver.send_signal(signal.SIGTERM)
        assert receiver.stderr.read() == "torpor: stopped\n"
    assert receiver.returncode == 0
    assert [report.node for report in read(here / "reports.jsonl")] == ["n"]


def test_a_watch_that_is_interrupted_leaves_the_roll_out_as_it_is(here: Path) -> None:
    """And ends by itself where there is nothing to watch any more."""
    done("rollout", "start", "1.tar", *KEYS, "--percent", "0", folder=here)
    (here / "reports.jsonl").touch()
    watch = ("rollout", "watch", *KEYS, "--reports", "reports.jsonl", "--hold", "0", "--steps", "10,100")
    with subprocess.Popen([TORPOR, "edge", *watch], cwd=here, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stderr is not None
        assert "1 is for 10 % of the nodes" in watching.stderr.readline()
        watching.send_signal(signal.SIGINT)
        assert watching.stderr.read() == "torpor: s/any stays as it is; the same command goes on\n"
    assert watching.returncode == 130
    done("rollout", "withdraw", *KEYS, folder=here)
    ended = edge(*watch, "--target", "s/any", folder=here)
    assert (ended.returncode, ended.stdout) == (1, "s/any: the candidate was taken back, or is in force\n")


def test_a_roll_out_is_shown_paused_withdrawn_and_stopped_by_reports(here: Path) -> None:
    done("rollout", "start", "1.tar", *KEYS, "--percent", "100", folder=here)
    done("rollout", "start", "2.tar", *KEYS, "--percent", "5", folder=here)
    index = json.loads(done("rollout", "status", "--repository", "repository", "--json", folder=here))
    index = index["targets"][0]["candidate"]["index"]
    reports = [
        written(Member(f"n{number}", {}), "s", outcome, datetime.now(UTC), version="2", index=index, text="no answer")
        for number, outcome in enumerate(("healthy", "healthy", "failed"))
    ]
    (here / "reports.jsonl").write_text("\n".join(reports))
    status = ("rollout", "status", "--repository", "repository", "--reports", "reports.jsonl")
    shown = done(*status, "--plot", "course.png", folder=here)
    assert "s/any: 2 is for 5 % of the nodes" in shown
    assert "n2 failed: no answer" in shown
    assert "served: 2 by 2" in shown
    assert (here / "course.png").read_bytes().startswith(b"\x89PNG")
    value = json.loads(done(*status, "--json", folder=here))
    assert value["targets"][0]["nodes"] == {"healthy": 2, "failed": {"n2": "no answer"}, "refused": {}, "waiting": {}}
    watch = ("rollout", "watch", *KEYS, "--reports", "reports.jsonl", "--steps", "5,100")
    stopped = edge(*watch, folder=here)
    assert stopped.returncode == 1
    assert "s/any: paused: 1 of 3 nodes failed, more than 5 %" in stopped.stdout
    assert "and paused" in done(*status, folder=here)
    done("rollout", "raise", *KEYS, "--again", folder=here)
    done("rollout", "pause", *KEYS, folder=here)
    done("rollout", "raise", *KEYS, folder=here)
    done(*watch, "--max-failed", "50", "--hold", "0", "--min-reports", "1", folder=here)
    assert "2 is for 100 % of the nodes" in done(*status, folder=here)
    assert "nodes go back to 1" in done("rollout", "withdraw", *KEYS, folder=here)
    assert "1 is in force" in done(*status, folder=here)
    done("rollout", "start", "2.tar", *KEYS, "--percent", "5", folder=here)
    assert "withdrawn: 1 of 3" in edge(*watch, "--withdraw", folder=here).stdout
    assert "for 7 days" in done("rollout", "refresh", *KEYS, "--days", "7", folder=here)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("agent",), 2, "mirrors is empty"),
        (("agent", "--mirrors", "ftp://x"), 2, "'ftp://x' must be like http://HOST"),
        (("agent", "--mirrors", "http://x", "--interval-s", "0"), 2, "interval_s = 0.0, must be in [1, 86400]"),
        (("agent", "--config", "wrong.toml"), 2, "colour is unknown, must be one of bundle"),
        (("agent", "--config", "none.toml"), 2, "none.toml"),
        (("agent", "--mirrors", "http://x", "--labels", "a"), 1, "labels = 'a', must be NAME=VALUE"),
        (("rollout", "raise", *KEYS, "--percent", "101"), 2, "'101', must be a percentage in [0, 100]"),
        (("rollout", "raise", *KEYS, "--percent", "a:1"), 2, "labels = 'a', must be NAME=VALUE"),
        (("rollout", "raise", *KEYS, "--days", "0"), 2, "'0', must be at least 1"),
        (("rollout", "raise", *KEYS, "--days", "x"), 2, "'x', must be at least 1"),
        (("rollout", "watch", *KEYS, "--reports", "x", "--steps", "5,5"), 2, "'5,5', must ascend"),
        (("rollout", "watch", *KEYS, "--reports", "x", "--hold", "5"), 2, "'5' is no duration"),
        (("rollout", "raise", *KEYS), 1, "nothing is rolled out"),
        (("rollout", "pause", *KEYS, "--target", "s/any"), 1, "s/any has no candidate"),
        (("rollout", "status", "--repository", "repository", "--target", "x"), 1, "x is not named"),
        (("rollout", "start", "none.tar", *KEYS), 1, "none.tar does not exist"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, arguments: tuple[str, ...], status: int, said: str) -> None:
    done("keys", "keys", "--repository", "repository", folder=tmp_path)
    (tmp_path / "wrong.toml").write_text('colour = "red"')
    result = edge(*arguments, folder=tmp_path)
    assert said in result.stderr
    assert result.returncode == status
