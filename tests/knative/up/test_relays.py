"""The way of requests through an activator: held, counted, passed on as they come, and what happens when they fail."""

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torpor.predictors.protocol.messages import message
from up_process import TIMEOUT_S, Asking, Up, ask, service

Start = Callable[..., Up]


def connection(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), TIMEOUT_S)


def read_until(one: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        piece = one.recv(1 << 16)
        assert piece, data
        data += piece
    return data


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """What a late subject waits for before it listens."""
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


def test_requests_wait_while_it_wakes(up: Start, gate: Path) -> None:
    """All that come meanwhile are answered, each on its connection, and only one process was started."""
    running = up(service(f"late, {gate}"))
    asking = [Asking(running.port(), f"/{n}") for n in range(20)]
    assert running.wait_until(lambda state: state["waiting"] == 20)["state"] == "starting"
    gate.open("w").close()
    assert [one.answer() for one in asking] == [(200, b"/%d" % n) for n in range(20)]
    assert running.log.count("subject starts") == 1


def test_concurrency_is_bounded_and_the_rest_waits(up: Start) -> None:
    """containerConcurrency: so many are inside, the others in order behind them."""
    running = up(service(spec="containerConcurrency: 2"))
    port = json.loads(ask(running.port(), "/facts")[1])["port"]
    asking = [Asking(running.port(), "/hold") for _ in range(5)]
    running.wait_until(lambda state: (state["in_flight"], state["waiting"]) == (2, 3))
    ask(port, "/release")
    assert [one.answer()[0] for one in asking] == [200] * 5


def test_who_finds_the_queue_full_is_refused(up: Start) -> None:
    """Without the activator in the path ten times the concurrency waits; the next is told when to come again."""
    annotations = 'autoscaling.knative.dev/initial-scale: "0", autoscaling.knative.dev/target-burst-capacity: "0"'
    running = up(service(annotations=annotations, spec="containerConcurrency: 1"))
    port = json.loads(ask(running.port(), "/facts")[1])["port"]
    asking = [Asking(running.port(), "/hold") for _ in range(11)]
    running.wait_until(lambda state: (state["in_flight"], state["waiting"]) == (1, 10))
    with connection(running.port()) as refused:
        refused.sendall(b"GET /hold HTTP/1.1\r\nhost: a\r\n\r\n")
        answer = read_until(refused, b"}")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in answer
    ask(port, "/release")
    assert [one.answer()[0] for one in asking] == [200] * 11
    assert running.state()["refused"] == 1


def test_an_answer_that_does_not_come_in_time_is_504(up: Start) -> None:
    """The component sees that its caller has left, and goes on."""
    running = up(service(spec="timeoutSeconds: 1"))
    assert ask(running.port(), "/first") == (200, b"/first")
    status, body = ask(running.port(), "/hold")
    assert (status, body) == (504, b'{"error":"subject did not answer within 1 s"}')
    facts = json.loads(ask(running.port(), "/facts")[1])
    assert facts["left"] == 1


def test_a_wake_counts_against_the_timeout(up: Start, gate: Path) -> None:
    """As on a cluster: the start goes on, and a later request is answered."""
    running = up(service(f"late, {gate}", spec="timeoutSeconds: 1"))
    assert ask(running.port(), "/early")[0] == 504
    gate.open("w").close()
    running.wait_for("subject is awake")
    assert ask(running.port(), "/later") == (200, b"/later")
    assert running.log.count("subject starts") == 1


def test_bodies_stream_both_ways(up: Start) -> None:
    """Each piece comes back before the next is sent."""
    running = up(service())
    with connection(running.port()) as one:
        one.sendall(b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        read_until(one, b"\r\n\r\n")
        for text in (b"first", b"second"):
            one.sendall(b"%x\r\n%s\r\n" % (len(text), text))
            assert read_until(one, text + b"\r\n") == b"%x\r\n%s\r\n" % (len(text), text)
        one.sendall(b"0\r\n\r\n")
        assert read_until(one, b"0\r\n\r\n") == b"0\r\n\r\n"


def test_large_bodies_pass_whole(up: Start) -> None:
    """Longer than any buffer on the way, held first, then on the connection that is there; nobody keeps them in memory."""
    running = up(service())
    body = os.urandom(20 << 20)
    with connection(running.port()) as one:
        for _ in range(2):
            head = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
            sending = threading.Thread(target=one.sendall, args=(head + body,))
            sending.start()
            response = http.client.HTTPResponse(one)
            response.begin()
            assert response.read() == body
            sending.join(TIMEOUT_S)


def test_pipelined_requests_are_answered_in_order(up: Start) -> None:
    """Three heads in one packet, the last with a body, on a connection that outlives them."""
    running = up(service())
    with connection(running.port()) as one:
        one.sendall(
            b"GET /a HTTP/1.1\r\nhost: a\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n"
            b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n/c"
        )
        data = read_until(one, b"0\r\n\r\n")
        assert data.index(b"/a") < data.index(b"/b") < data.index(b"/c")
        one.sendall(b"GET /d HTTP/1.1\r\nhost: a\r\n\r\n")
        read_until(one, b"/d")


def test_who_leaves_takes_no_place(up: Start) -> None:
    """A caller that gives up in the queue or at the component is forgotten, and the component told."""
    running = up(service(spec="containerConcurrency: 1"))
    ask(running.port(), "/first")
    inside, waiting = connection(running.port()), connection(running.port())
    for one in (inside, waiting):
        one.sendall(b"GET /hold HTTP/1.1\r\nhost: a\r\n\r\n")
    running.wait_until(lambda state: (state["in_flight"], state["waiting"]) == (1, 1))
    waiting.close()
    running.wait_until(lambda state: (state["in_flight"], state["waiting"]) == (1, 0))
    inside.close()
    assert json.loads(ask(running.port(), "/facts")[1])["left"] == 1


def test_a_crash_is_502_before_an_answer_and_a_cut_within_one(up: Start) -> None:
    """What has begun never looks complete; what comes next waits for the next process."""
    running = up(service())
    status, body = ask(running.port(), "/crash")
    assert status == 502
    assert b"subject closed the connection" in body
    running.wait_until(lambda state: state["crashes"] == 1)  # until then the system takes connections for the dead
    with connection(running.port()) as one:
        one.sendall(b"GET /half HTTP/1.1\r\nhost: a\r\n\r\n")
        read_until(one, b"half")
        assert one.recv(10) == b""
    assert ask(running.port(), "/again") == (200, b"/again")
    assert running.state()["crashes"] == 2


def kept(port: int) -> socket.socket:
    """A connection that has been used, so that it has one behind it."""
    one = connection(port)
    one.sendall(b"GET /kept HTTP/1.1\r\nhost: a\r\n\r\n")
    read_until(one, b"/kept")
    return one


def dead(pid: int) -> None:
    """Kill it, and wait until its connections have closed."""
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):  # it has been waited for
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            pass


def test_who_waits_is_not_let_into_a_process_that_is_dying(up: Start) -> None:
    """Its death is seen first by the request inside, whose place the next would take; and by connections of those who wait."""
    running = up(service(spec="containerConcurrency: 1"))
    facts = json.loads(ask(running.port(), "/facts")[1])
    with kept(running.port()) as inside, kept(running.port()) as waiting, connection(running.port()) as new:
        inside.sendall(b"GET /hold HTTP/1.1\r\nhost: a\r\n\r\n")
        running.wait_until(lambda state: state["in_flight"] == 1)
        waiting.sendall(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nsafe")
        new.sendall(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nsafe")
        running.wait_until(lambda state: state["waiting"] == 2)
        os.kill(running.process.pid, signal.SIGSTOP)
        dead(facts["pid"])
        os.kill(running.process.pid, signal.SIGCONT)
        assert read_until(inside, b"}").startswith(b"HTTP/1.1 502 ")
        for one in (waiting, new):
            assert read_until(one, b"0\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    state = running.state()
    assert (state["crashes"], state["failed"]) == (1, 1)


def test_what_a_dead_process_has_not_read_is_not_lost(up: Start) -> None:
    """Without a body it goes to the next instance; with one, of which it may have read a part, it may be sent again."""
    running = up(service())
    pid = json.loads(ask(running.port(), "/facts")[1])["pid"]
    with kept(running.port()) as get, kept(running.port()) as post:
        os.kill(pid, signal.SIGSTOP)
        get.sendall(b"GET /again HTTP/1.1\r\nhost: a\r\n\r\n")
        post.sendall(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody")
        running.wait_until(lambda state: state["in_flight"] == 2)
        dead(pid)
        assert read_until(get, b"/again").startswith(b"HTTP/1.1 200 ")
        refusal = read_until(post, b"}")
        assert refusal.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in refusal


def test_what_two_readers_could_understand_differently_is_refused(up: Start) -> None:
    """The head never reaches the component."""
    running = up(service())
    with connection(running.port()) as one:
        one.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n")
        assert read_until(one, b"}").startswith(b"HTTP/1.1 400 ")
        assert one.recv(1) == b""
    assert "subject wakes" not in running.log


def test_a_connection_outlives_a_sleep(up: Start) -> None:
    """The caller's stays, the one behind it is another process's."""
    running = up(
        service(annotations='autoscaling.knative.dev/window: "6s", autoscaling.knative.dev/initial-scale: "0"')
    )
    with connection(running.port()) as one:
        pids = set()
        for count in (1, 2):
            one.sendall(b"GET /facts HTTP/1.1\r\nhost: a\r\n\r\n")
            pids.add(json.loads(read_until(one, b"}}").partition(b"\r\n\r\n")[2])["pid"])
            began_s = time.monotonic()
            running.wait_for("subject is asleep", count)
            assert time.monotonic() - began_s > 5
        assert len(pids) == 2


@pytest.fixture(scope="module")
def torpor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, SimpleNamespace]]:
    """A model of torpor's behind an activator, asleep at first; and what the fixtures for connections take as a server."""
    model = Path(__file__).parents[2] / "predictors" / "serving" / "models" / "echo"
    yaml = f"""\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{ name: echo, annotations: {{ autoscaling.knative.dev/initial-scale: "0" }} }}
spec:
  predictor:
    minReplicas: 0
    containerConcurrency: 4
    timeout: 20
    model: {{ modelFormat: {{ name: torpor }}, storageUri: "file://{model}" }}
"""
    running = Up(tmp_path_factory.mktemp("up"), yaml)
    port = running.port("echo-predictor")
    yield running, SimpleNamespace(port=port, address=f"127.0.0.1:{port}")
    running.interrupt()
    assert running.ended() == 0, running.log
    assert running.process.stderr is not None
    running.process.stderr.close()


def tensor_request(value: float, rows: int = 1) -> bytes:
    data = [value] * rows * 4
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 4], "data": data}]}).encode()


def test_a_model_answers_over_either_version(torpor: tuple[Up, SimpleNamespace], connect: Any) -> None:
    """REST over HTTP/1.1 and HTTP/2, the first of them waking it."""
    _, server = torpor
    client = connect(server)
    for value in (1.0, 2.0):
        reply = client.request("POST", "/v2/models/echo/infer", tensor_request(value))
        assert reply.status == 200
        assert reply.json()["outputs"][0]["data"] == [value] * 4


def test_streams_share_a_connection(torpor: tuple[Up, SimpleNamespace], connect_http2: Any) -> None:
    """Fifty at once over HTTP/2, of which four are inside at a time; each gets its own answer, large ones too."""
    _, server = torpor
    client = connect_http2(server)
    rows = [1 if number % 10 else 4000 for number in range(50)]
    streams = [
        client.send("POST", "/v2/models/echo/infer", tensor_request(float(number), rows[number]))
        for number in range(50)
    ]
    for number, stream in enumerate(streams):
        reply = client.receive(stream)
        assert reply.status == 200
        assert reply.json()["outputs"][0]["data"] == [float(number)] * 4 * rows[number]


def test_a_cancelled_stream_leaves_the_others_alone(torpor: tuple[Up, SimpleNamespace], connect_http2: Any) -> None:
    """Its header block still goes to the component, which keeps a table of them; twice the concurrency is cancelled."""
    running, server = torpor
    client = connect_http2(server)
    for round_number in range(3):
        fields = {f"x-round-{round_number}": "a name and value for the table"}
        streams = [client.send("POST", "/v2/models/echo/infer", tensor_request(1.0), fields) for _ in range(12)]
        for stream in streams[:8]:
            client.cancel(stream)
        assert [client.receive(stream).status for stream in streams[8:]] == [200] * 4
    running.wait_until(lambda state: state["in_flight"] == state["waiting"] == 0, "echo-predictor")


def test_grpc(torpor: tuple[Up, SimpleNamespace], grpc_infer: Any) -> None:
    """By grpcio's own client, which waits for the server's SETTINGS before it asks."""
    _, server = torpor
    request = message("inference.ModelInferRequest")(
        model_name="echo",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 2], "contents": {"fp32_contents": [1.0, 2.0]}}],
    )
    infer = grpc_infer(server)
    for _ in range(3):
        assert infer(request).model_name == "echo"


def test_http2_stream_without_an_answer_in_time_is_504(up: Start, gate: Path, connect_http2: Any) -> None:
    """The head alone, which gRPC reads as UNAVAILABLE; the connection goes on."""
    running = up(service(f"late, {gate}", spec="timeoutSeconds: 1"))
    client = connect_http2(SimpleNamespace(port=running.port()))
    assert [client.request("GET", "/").status for _ in range(2)] == [504, 504]
