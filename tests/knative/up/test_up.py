"""`torpor up` as a whole: what it starts, what goes wrong, and how it ends."""

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from up_process import Asking, Up, ask, service

Start = Callable[..., Up]
ROOT = Path(__file__).parents[3]
MODELS = ROOT / "tests" / "transformers" / "models"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


def is_there(pid: int) -> bool:
    """Running; one that has ended and that nobody has waited for is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_refused(port: int) -> None:
    """A port closes a moment after that has been said, and who comes in between is reset."""
    while True:
        try:
            ask(port, "/new")
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue


def test_a_taken_port_is_named_before_anything_runs(up: Start) -> None:
    """With the component that wanted it and the option that changes it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        running = up(service(annotations=""), "--port", str(port))
        assert running.ended() == 1
    assert (
        f"torpor up: port {port} on 127.0.0.1, for subject: address already in use; choose others by --port"
        in running.log
    )
    assert "subject starts" not in running.log


def test_a_component_that_crashes_in_a_loop_backs_off(up: Start) -> None:
    """Each end is said with its status and when it is tried again; Ctrl-C ends it in between."""
    running = up(service("crash", annotations=""))
    running.wait_for(r"subject does not run: it ended with status 3; again in 0\.5 s")
    running.wait_for(r"subject does not run: it ended with status 3; again in 2\.0 s")
    assert running.state()["state"] in ("crashed", "starting")
    running.interrupt()
    assert running.ended() == 0
    assert "nothing was cut" in running.log


def test_a_component_that_is_never_ready_is_ended(up: Start, gate: Path) -> None:
    """After Knative's progress deadline; it is tried again, and Ctrl-C ends it in between."""
    running = up(service(f"late, {gate}", annotations="serving.knative.dev/progress-deadline: 1s"))
    running.wait_for("subject was not ready within 1 s, and is ended")
    running.wait_for(r"subject does not run: it ended by SIGKILL; again in 0\.5 s")
    running.interrupt()
    assert running.ended() == 0


@pytest.fixture
def behind_a_free_port() -> Iterator[int]:
    """A taken port; the one before it is free."""
    while True:
        with socket.socket() as taken, socket.socket() as free:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            try:
                free.bind(("127.0.0.1", port - 1))
            except OSError:
                continue
            free.close()
            yield port
            return


def test_a_taken_port_of_the_page_is_named(up: Start, behind_a_free_port: int) -> None:
    """Behind the components': nothing has been started by then."""
    running = up(service(annotations=""), "--port", str(behind_a_free_port - 1))
    assert running.ended() == 1
    assert f"torpor up: port {behind_a_free_port} on 127.0.0.1, for the page: address already in use" in running.log
    assert "subject starts" not in running.log


def test_a_command_that_is_not_here_is_named(up: Start) -> None:
    """And is tried again, since somebody may install it."""
    running = up(service(annotations="").replace("command: [", "command: [no-such-command, "))
    running.wait_for("subject does not run: there is no command 'no-such-command' on this machine; again in")


def test_what_cannot_be_run_ends_it_at_once(up: Start) -> None:
    """An image that is not torpor's, without a command."""
    yaml = "\n".join(line for line in service().splitlines() if "command:" not in line)
    running = up(yaml)
    assert running.ended() == 1
    assert "image 'example.org/subject' cannot be run here: give the container a command" in running.log


def test_ctrl_c_in_the_middle_of_a_wake_loses_nobody(up: Start, gate: Path) -> None:
    """The start goes on, the request is answered, then the process ends."""
    running = up(service(f"late, {gate}"))
    asking = Asking(running.port(), "/waits")
    running.wait_for("subject starts\n")
    running.interrupt()
    running.wait_for("draining")
    gate.open("w").close()
    assert asking.answer() == (200, b"/waits")
    assert running.ended() == 0
    assert "nothing was cut" in running.log


def test_ctrl_c_finishes_what_is_being_answered(up: Start) -> None:
    """Also when it comes as SIGTERM; new connections are refused meanwhile."""
    running = up(service())
    facts = json.loads(ask(running.port(), "/facts")[1])
    asking = Asking(running.port(), "/hold")
    running.wait_until(lambda state: state["in_flight"] == 1)
    running.process.send_signal(signal.SIGTERM)
    running.wait_for("draining")
    wait_until_refused(running.port())
    assert is_there(facts["pid"])
    ask(facts["port"], "/release")
    assert asking.answer() == (200, b"held")
    assert running.ended() == 0
    assert not is_there(facts["pid"])


def test_a_second_ctrl_c_ends_at_once(up: Start) -> None:
    """With a process that takes no SIGTERM, and a request that would never end."""
    running = up(service("deaf"))
    pid = json.loads(ask(running.port(), "/facts")[1])["pid"]
    asking = Asking(running.port(), "/hold")
    running.wait_until(lambda state: state["in_flight"] == 1)
    running.interrupt()
    running.wait_for("draining")
    running.interrupt()
    assert running.ended() == 130
    assert not is_there(pid)
    with contextlib.suppress(OSError, http.client.HTTPException):
        assert asking.answer()[0] == 502


def test_a_kill_leaves_no_process_behind(up: Start) -> None:
    """Even without a chance to end them: the kernel does."""
    running = up(service())
    pid = json.loads(ask(running.port(), "/facts")[1])["pid"]
    running.process.kill()
    running.ended()
    for _ in range(100_000):
        if not is_there(pid):
            return
    raise AssertionError(pid)


def test_a_memory_limit_is_held(up: Start) -> None:
    """By RLIMIT_DATA: the process says what it could not have."""
    eats = 'command: [python3, -c, "x = bytearray(1 << 30)"]'
    yaml = service(annotations="", container="resources: { limits: { memory: 200Mi } }")
    yaml = "\n".join(eats.rjust(len(eats) + 10) if "command:" in line else line for line in yaml.splitlines())
    running = up(yaml)
    running.wait_for(r"subject +\| MemoryError")


def test_a_model_is_fetched_once(up: Start, tmp_path: Path) -> None:
    """From a volume's claim in the state folder; what is not there is said, and tried again."""
    yaml = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: { name: words }
spec: { predictor: { model: { modelFormat: { name: torpor }, storageUri: "pvc://claim/counts" } } }
"""
    running = up(yaml)
    running.wait_for(rf"the claim is not here: put it at {tmp_path}/state/pvc/claim, or say --map pvc://claim=FOLDER")
    (tmp_path / "state" / "pvc").mkdir()
    (tmp_path / "state" / "pvc" / "claim").symlink_to(MODELS)
    running.wait_for("words-predictor is awake")
    assert ask(running.port("words-predictor"), "/v2/models/words")[0] == 200


FETCHED = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: { name: words }
spec: { predictor: { model: { modelFormat: { name: torpor }, storageUri: "s3://bucket/words" } } }
"""


@pytest.fixture
def storage(tmp_path: Path) -> Callable[[str], str]:
    """Writes the package that fetches, with a body for its `download(uri, folder)`; its PYTHONPATH."""

    def write(body: str) -> str:
        folder = tmp_path / "packages"
        folder.mkdir()
        code = f"class Storage:\n    @staticmethod\n    def download(uri, folder):\n        {body}\n"
        (folder / "kserve_storage.py").write_text(code)
        return str(folder)

    return write


def test_ctrl_c_ends_a_fetch(up: Start, gate: Path, storage: Callable[[str], str], tmp_path: Path) -> None:
    """Nobody waits for a model that nobody has asked for, and nothing half fetched stays."""
    running = up(FETCHED, PYTHONPATH=storage(f"print('asked', flush=True); open({str(gate)!r})"))
    running.wait_for("fetching s3://bucket/words: asked")
    running.interrupt()
    assert running.ended() == 0
    assert "nothing was cut" in running.log
    assert not [*(tmp_path / "state" / "models").iterdir()]


def test_a_second_ctrl_c_ends_a_fetch_that_is_waited_for(up: Start, gate: Path, storage: Callable[[str], str]) -> None:
    """The first lets the request have its answer, so the fetch goes on."""
    running = up(FETCHED, PYTHONPATH=storage(f"print('asked', flush=True); open({str(gate)!r})"))
    running.wait_for("fetching s3://bucket/words: asked")
    asking = Asking(running.port("words-predictor"), "/v2/health/ready")
    running.wait_until(lambda state: state["waiting"] == 1, "words-predictor")
    running.interrupt()
    running.wait_for("draining")
    running.interrupt()
    assert running.ended() == 130
    with contextlib.suppress(OSError, http.client.HTTPException):
        assert asking.answer()[0] == 502


def test_a_full_disk_is_said_with_what_is_free(up: Start, storage: Callable[[str], str], tmp_path: Path) -> None:
    running = up(FETCHED, PYTHONPATH=storage("open('/dev/full', 'wb', 0).write(b'words')"))
    running.wait_for(rf"s3://bucket/words: the disk of {tmp_path}/state/models is full, \d+ MiB are free")
    running.interrupt()
    assert running.ended() == 0


def test_a_fetch_that_fails_says_why(up: Start, storage: Callable[[str], str]) -> None:
    running = up(FETCHED, PYTHONPATH=storage("raise RuntimeError('no such bucket')"))
    running.wait_for("s3://bucket/words could not be fetched: RuntimeError: no such bucket")


EVENTS = """\
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {{ name: default }}
---
{service}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {{ name: ask }}
spec:
  broker: default
  filter: {{ attributes: {{ type: ask }} }}
  subscriber: {{ ref: {{ apiVersion: serving.knative.dev/v1, kind: Service, name: words-predictor }} }}
  delivery: {{ retry: 3, backoffPolicy: exponential, backoffDelay: PT0.2S, timeout: PT30S }}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {{ name: tell }}
spec:
  broker: default
  filter: {{ attributes: {{ type: io.kserve.inference.response }} }}
  subscriber: {{ uri: "{sink}" }}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{ name: other }}
"""


def test_an_event_wakes_a_component_and_its_answer_arrives(up: Start) -> None:
    """Broker, trigger, a predictor asleep, its reply through the broker to a sink; NATS stops last."""
    pytest.importorskip("nats")
    came: list[dict[str, str]] = []
    arrived = threading.Event()

    class Sink(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append({name.lower(): value for name, value in self.headers.items()})
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(202)
            self.end_headers()
            arrived.set()

        def log_message(self, *arguments: object) -> None:
            pass

    sink = HTTPServer(("127.0.0.1", 0), Sink)
    thread = threading.Thread(target=sink.serve_forever)
    thread.start()
    try:
        predictor = f"""\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{ name: words, annotations: {{ autoscaling.knative.dev/initial-scale: "0" }} }}
spec: {{ predictor: {{ minReplicas: 0, model: {{ modelFormat: {{ name: torpor }}, storageUri: "file://{MODELS}/counts" }} }} }}
"""
        running = up(EVENTS.format(service=predictor, sink=f"http://127.0.0.1:{sink.server_port}/"))
        broker = int(running.wait_for(r"broker takes events at http://127\.0\.0\.1:(\d+)/")[1])
        assert "Deployment other is not run here" in running.log
        head = {
            "ce_specversion": "1.0",
            "ce_id": "1",
            "ce_source": "/me",
            "ce_type": "ask",
            "content_type": "application/json",
        }
        assert ask(broker, "/", "POST", json.dumps({"instances": [[1.0, 2.0]]}), **head)[0] == 202
        assert arrived.wait(30), running.log
        assert came[0]["ce-type"] == "io.kserve.inference.response"
        running.interrupt()
        assert running.ended() == 0, running.log
        assert running.log.index("words-predictor has stopped") < running.log.index("nats has stopped")
    finally:
        sink.shutdown()
        thread.join()
        sink.server_close()


BOUND = """\
apiVersion: sources.knative.dev/v1
kind: SinkBinding
metadata: {{ name: to-{name} }}
spec:
  subject: {{ apiVersion: {subject}, name: {name} }}
  sink: {sink}
  {overrides}
"""


def test_a_sink_binding_sets_its_subjects_environment(up: Start) -> None:
    """Sink and overrides as on a cluster, whatever the container says itself; a subject that is not here is named."""
    own = "env: [{ name: K_SINK, value: 'http://own' }]"
    yaml = "\n---\n".join([
        service(container=own),
        service(name="other"),
        service(name="free"),
        BOUND.format(name="subject", subject="serving.knative.dev/v1, kind: Service", sink="{ uri: 'http://sink/' }",
                     overrides="ceOverrides: { extensions: { site: edge1 } }"),
        BOUND.format(name="other", subject="serving.knative.dev/v1, kind: Service", overrides="",
                     sink="{ ref: { apiVersion: serving.knative.dev/v1, kind: Service, name: free }, uri: /in }"),
        BOUND.format(name="job", subject="batch/v1, kind: Job", sink="{ uri: 'http://sink/' }", overrides=""),
    ])  # fmt: skip
    running = up(yaml)
    environments = {
        name: json.loads(ask(running.port(name), "/facts")[1])["environment"] for name in ("subject", "other", "free")
    }
    assert environments["subject"]["K_SINK"] == "http://sink/"
    assert json.loads(environments["subject"]["K_CE_OVERRIDES"]) == {"extensions": {"site": "edge1"}}
    assert environments["other"]["K_SINK"] == f"http://127.0.0.1:{running.port('free')}/in"
    assert environments["other"]["K_CE_OVERRIDES"] == ""
    assert "K_SINK" not in environments["free"]
    assert "SinkBinding to-job is left out: its subject does not run here" in running.log


def test_a_sink_binding_to_a_broker(up: Start) -> None:
    """Its port is known before the component runs that is to send there; one that is not in the files is named."""
    pytest.importorskip("nats")
    broker = "apiVersion: eventing.knative.dev/v1\nkind: Broker\nmetadata: { name: default }\n"
    sink = "{ ref: { apiVersion: eventing.knative.dev/v1, kind: Broker, name: default } }"
    binding = BOUND.format(name="subject", subject="serving.knative.dev/v1, kind: Service", sink=sink, overrides="")
    running = up("\n---\n".join([broker, service(), binding]))
    address = running.wait_for(r"broker takes events at (http://\S+)")[1]
    assert json.loads(ask(running.port(), "/facts")[1])["environment"]["K_SINK"] == address
    running.interrupt()
    assert running.ended() == 0
    alone = up("\n---\n".join([service(), binding]))
    assert alone.ended() == 1
    assert "sink: the Broker default is not in the files" in alone.log


def test_a_transformer_wakes_and_so_does_its_predictor(up: Start) -> None:
    """One InferenceService, both asleep: one request wakes the chain, and the page tells of both wakes."""
    yaml = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: { name: words, annotations: { autoscaling.knative.dev/initial-scale: "0" } }
spec:
  transformer:
    minReplicas: 0
    containers: [{ image: torpor, args: ["/models/words"] }]
  predictor:
    minReplicas: 0
    model: { modelFormat: { name: pytorch }, storageUri: "file:///models/counts" }
"""
    running = up(yaml, "--map", f"/models={MODELS}")
    body = json.dumps({"instances": ["ab", "c"]})
    status, answer = ask(running.port("words-transformer"), "/v1/models/words:predict", "POST", body)
    assert status == 200, answer
    assert [row["total"] for row in json.loads(answer)["predictions"]] == [195.0, 99.0]
    for name in ("words-transformer", "words-predictor"):
        state = running.wait_until(lambda state: "import" in state["wakes"][0]["phases"], name)
        assert state["state"] == "awake"
    running.interrupt()
    assert running.ended() == 0
    assert running.log.index("words-transformer has stopped") < running.log.index("words-predictor stops")
