"""A node's reports: at each change and from time to time, until the broker has them."""

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from edge_bundles import NOW, Publisher
from torpor.edge.layout import Layout
from torpor.edge.node import Node
from torpor.edge.report import Watch, report
from torpor.transformers.events import Event, decode

TORPOR = Path(sys.executable).with_name("torpor")


class Answers:
    """A broker, and a server that is ready or not: POST and GET answer with the status that is set."""

    def __init__(self) -> None:
        self.post, self.get = 202, 200
        self.events: list[Event] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.events.append(decode({k.lower().encode(): v.encode() for k, v in self.headers.items()}, body))
                self._answer(outer.post)

            def do_GET(self) -> None:
                self._answer(outer.get)

            def _answer(self, status: int) -> None:
                self.send_response(status)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def said(self) -> list[dict]:
        return [json.loads(event.data) for event in self.events]


@pytest.fixture
def broker() -> Iterator[Answers]:
    answers = Answers()
    yield answers
    answers.close()


def reported(
    watch: Watch, broker: Answers, *steps: Callable[[], object], every_s: float = 3600.0
) -> tuple[bool, list[str]]:
    """Report, and do one of the steps at each wait; whether all was told, and what was said about it."""
    said: list[str] = []
    waiting = iter(steps)

    def wait(seconds: float) -> bool:
        step = next(waiting, None)
        if step is not None:
            step()
        return step is None

    return report(watch, broker.url, every_s, wait, said.append), said


def nothing() -> None:
    pass


def test_each_change_is_told_once(tmp_path: Path, broker: Answers) -> None:
    """What is served, its generation, and until when updates are taken; nothing while nothing changes."""
    publisher = Publisher(tmp_path)
    node = Node(tmp_path / "node")

    def install(version: str) -> Callable[[], object]:
        def step() -> None:
            with Layout.at(publisher.bundle(version, float(version))) as bundle:
                node.install(bundle, NOW, publisher.root)

        return step

    steps = (nothing, install("1"), nothing, install("2"), nothing, node.roll_back)
    assert reported(Watch(node, "node-1"), broker, *steps)[0]
    served = [one["current"] and (one["current"]["version"], one["current"]["generation"]) for one in broker.said()]
    assert served == [None, ("1", 1), ("2", 2), ("1", 1)]
    last = broker.said()[-1]
    assert (last["node"], last["current"]["bundle"], last["current"]["index"][:7]) == ("node-1", "sentences", "sha256:")
    assert set(last["ends"]) == {"root", "timestamp", "snapshot", "targets"}
    assert {(event.type, event.source) for event in broker.events} == {
        ("dev.torpor.edge.status", "/torpor/edge/node-1")
    }
    assert len({event.id for event in broker.events}) == 4


def test_a_damaged_state_is_told(tmp_path: Path, broker: Answers) -> None:
    """In the words of `status`."""
    (tmp_path / "node.json").write_text("{}")
    assert reported(Watch(Node(tmp_path), "n"), broker)[0]
    assert "node.json is damaged" in broker.said()[0]["state"]


def test_what_is_served_and_cannot_be_read_is_told(tmp_path: Path, broker: Answers) -> None:
    (tmp_path / "current").symlink_to("generations/1")
    assert reported(Watch(Node(tmp_path), "n"), broker)[0]
    (said,) = broker.said()
    assert said["current"] is None
    assert "generation 1: its seal cannot be read" in said["state"]


def test_health_is_told_when_it_changes(tmp_path: Path, broker: Answers) -> None:
    """By each URL; one where nobody answers is not ready."""

    def fall_ill() -> None:
        broker.get = 503

    watch = Watch(Node(tmp_path), "n", (broker.url, "http://127.0.0.1:9/"))
    reported(watch, broker, nothing, fall_ill, nothing)
    assert [one["ready"] for one in broker.said()] == [
        {broker.url: True, "http://127.0.0.1:9/": False}, {broker.url: False, "http://127.0.0.1:9/": False},
    ]  # fmt: skip


def test_what_has_not_changed_is_told_from_time_to_time(tmp_path: Path, broker: Answers) -> None:
    """As another event."""
    reported(Watch(Node(tmp_path), "n"), broker, nothing, nothing, every_s=0.0)
    assert len({event.id for event in broker.events}) == 3


def test_what_no_broker_takes_is_sent_again_as_it_was(tmp_path: Path, broker: Answers) -> None:
    """With its id, so that it is there once; the trouble is said once."""

    def stop() -> None:
        broker.post = 503

    def start() -> None:
        broker.post = 202

    stop()
    told, said = reported(Watch(Node(tmp_path), "n"), broker, nothing, start, nothing)
    assert told
    assert len(broker.events) == 3
    assert len({event.id for event in broker.events}) == 1
    assert [line.split(":")[0] for line in said] == ["not told yet", 'told {"node"']
    stop()
    assert reported(Watch(Node(tmp_path), "n"), broker)[0] is False


def test_a_broker_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    said: list[str] = []
    told = report(Watch(Node(tmp_path), "n"), "http://127.0.0.1:9/", 3600, lambda seconds: True, said.append)
    assert not told
    assert said[0].startswith("not told yet: http://127.0.0.1:9/: ")


def test_a_broker_that_will_never_take_it_ends_the_reports(tmp_path: Path, broker: Answers) -> None:
    """A wrong address, most likely."""
    broker.post = 405
    with pytest.raises(ValueError, match=r"http://.*: 405"):
        reported(Watch(Node(tmp_path), "n"), broker)


def test_the_command(tmp_path: Path, broker: Answers) -> None:
    """Once, and its exit statuses."""
    command = [TORPOR, "edge", "report", broker.url, "--name", "n", "--node", tmp_path, "--once"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], capture_output=True, text=True, check=False)

    done = run("--ready", broker.url)
    assert (done.returncode, done.stdout[:14]) == (0, 'told {"node": ')
    broker.post = 503
    assert run().returncode == 1
    broker.post = 405
    refused = run()
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"torpor: {broker.url}: 405")
    assert (run("--every-s", "0.5").returncode, "--every-s = 0.5, must be" in run("--every-s", "0.5").stderr) == (
        2,
        True,
    )
