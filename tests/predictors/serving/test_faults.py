"""What goes wrong around a server: callers, models, the machine. Who had no part in it is served; nothing is left behind."""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TIMEOUT_S = 20
LIVE = "/v2/health/live"
INFER = "/v2/models/marked/infer"


def ask(value: float) -> bytes:
    """A request to `marked` of one row."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, 0]}
    return json.dumps({"inputs": [tensor], "outputs": [{"name": "doubled"}, {"name": "batch_rows"}]}).encode()


def doubled(reply) -> float:
    assert reply.status == 200, reply
    return reply.json()["outputs"][0]["data"][0]


def memory_of(server) -> int:
    """Bytes of memory that the process has for itself."""
    _, resident, shared = Path(f"/proc/{server.process.pid}/statm").read_text().split()[:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGESIZE")


def cpu_seconds_of(server) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@pytest.fixture
def sockets() -> Iterator[Callable[..., socket.socket]]:
    """Connect to a server by a plain socket."""
    with contextlib.ExitStack() as opened:

        def connect(server) -> socket.socket:
            return opened.enter_context(socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S))

        yield connect


# Callers


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """A thousand sockets need more than some systems give at first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


HTTP2_START = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])

IDLE = {
    "connected": (b"", b""),
    "after a request": (f"GET {LIVE} HTTP/1.1\r\nHost: h\r\n\r\n".encode(), b'{"live":true}'),
    "inside a head": (f"GET {LIVE} HTTP/1.1\r\nHo".encode(), b""),
    "HTTP/2": (HTTP2_START, bytes([0, 0, 0, 4, 1, 0, 0, 0, 0])),
}


@pytest.mark.parametrize(("said", "heard"), IDLE.values(), ids=IDLE)
def test_a_thousand_idle_connections_cost_little(
    serve, connect, sockets, many_descriptors, said: bytes, heard: bytes, request
) -> None:
    """Others are served as before, and each takes a few KiB of memory."""
    server = serve("marked")
    caller = connect(server)
    assert doubled(caller.request("POST", INFER, ask(3))) == 6
    before = memory_of(server)
    idle = [sockets(server) for _ in range(1000)]
    for connection in idle:
        connection.sendall(said)
        got = b""
        while not got.endswith(heard):
            got += connection.recv(4096)
    assert doubled(connect(server).request("POST", INFER, ask(4))) == 8
    each = (memory_of(server) - before) / len(idle)
    print(f"{request.node.callspec.id}: {each:.0f} bytes a connection")
    assert each < 40_000
    assert doubled(caller.request("POST", INFER, ask(5))) == 10


def test_who_resets_in_the_middle_of_an_answer_harms_nobody(connect, sockets, echo, binary_request) -> None:
    """Twenty callers that ask for a large answer and reset the connection; another one gets its own."""
    body, headers = binary_request({"x": np.arange(100_000, dtype="<f8").reshape(1, -1)})
    path = "/v2/models/echo/infer"
    for _ in range(20):
        leaving = connect(echo)
        leaving.send("POST", path, body, headers)
        leaving.reset()
    reply = connect(echo).request("POST", path, body, headers)
    assert reply.tensors()["x"].size == 100_000


def test_who_leaves_while_its_batch_runs_takes_nothing_from_the_others(connect, marked, gated) -> None:
    """Its rows run, for they have begun; those that it had waiting do not."""
    leaving, staying = connect(marked), connect(marked)
    with gated(marked) as gate:
        leaving.send("POST", INFER, ask(1))
        gate.wait_for_rows(1)
        stays = staying.send("POST", INFER, ask(2))
        gate.wait_for_rows(2)
        leaving.close()
        gate.wait_for_rows(1)
    reply = staying.receive(stays)
    assert doubled(reply) == 4
    assert reply.json()["outputs"][1]["data"] == [1]


# Models


def test_a_model_that_hangs_holds_up_nobody_but_its_callers(serve, connect, tmp_path) -> None:
    """The server tells about itself, deadlines are kept, a full queue is refused, and SIGTERM ends it in its time."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    server = serve("marked", "--drain-quiet-s", "0", "--drain-timeout-s", "1", GATE=str(gate))
    hanging, other = connect(server), connect(server)
    hangs = hanging.send("POST", INFER, ask(1006))
    late = json.loads(ask(1)) | {"parameters": {"timeout": 1000}}
    assert other.request("POST", INFER, json.dumps(late).encode()).status == 504
    assert other.request("GET", LIVE).status == 200
    assert b"torpor_queued_rows" in other.request("GET", "/metrics").body
    waits = other.send("POST", INFER, ask(2))
    server.process.send_signal(signal.SIGTERM)
    assert other.receive(waits).status == 503
    with pytest.raises((ConnectionError, OSError)):
        hanging.receive(hangs)
    assert server.wait() == 0


def test_a_model_that_leaks_is_seen_in_the_metrics(serve, connect) -> None:
    """Resident memory grows by what the model keeps."""
    server = serve("marked")
    caller = connect(server)

    def resident() -> float:
        text = caller.request("GET", "/metrics").body.decode()
        return float(re.search(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)[1])

    before = resident()
    assert doubled(caller.request("POST", INFER, ask(1007))) == 2014
    assert resident() - before > 60 << 20


# The machine


def test_no_request_is_lost_when_the_server_is_told_to_leave_under_load(serve, connect) -> None:
    """Callers that go on until it is unready get an answer to every request."""
    server = serve("marked", "--drain-quiet-s", "0.2", "--drain-timeout-s", "10")
    unready = threading.Event()
    statuses: list[int] = []

    def is_over(caller, reply) -> bool:
        return reply.headers.get("connection") == "close" or getattr(caller, "has_goodbye", False)

    errors: list[BaseException] = []

    def call() -> None:
        caller = connect(server)
        try:
            while not unready.is_set():
                reply = caller.request("POST", INFER, ask(1))
                statuses.append(reply.status)
                if is_over(caller, reply):
                    caller = connect(server)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    watching, end_s = connect(server), time.monotonic() + TIMEOUT_S
    while len(statuses) < 200:
        assert time.monotonic() < end_s
    server.process.send_signal(signal.SIGTERM)
    while (reply := watching.request("GET", "/v2/health/ready")).status == 200:
        if is_over(watching, reply):
            watching = connect(server)
        assert time.monotonic() < end_s
    unready.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert not errors
    assert set(statuses) == {200}
    assert server.wait() == 0


def test_a_killed_server_leaves_its_port(serve, connect) -> None:
    """The next one takes it at once, though connections to the first were open."""
    first = serve("echo")
    caller = connect(first)
    assert caller.request("GET", LIVE).status == 200
    first.process.kill()
    assert first.wait() == -signal.SIGKILL
    second = serve("echo", "--port", str(first.port))
    assert second.port == first.port
    assert connect(second).request("GET", LIVE).status == 200


JUMPS = """
import signal, time
offset_s, seconds, nanoseconds = 0, time.time, time.time_ns
time.time = lambda: seconds() + offset_s
time.time_ns = lambda: nanoseconds() + offset_s * 10**9
def jump(number, frame):
    global offset_s
    offset_s = 86400 if number == signal.SIGUSR1 else -86400
for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, jump)
"""
"""Makes the time of day of a Python process jump by its signals: a day ahead of the machine's, or behind it."""


def test_a_clock_that_jumps_is_seen_by_nobody_who_waits(start, connect, gated, gate_path, tmp_path: Path) -> None:
    """Neither by requests, with deadlines or without, nor by a drain; what is written for people follows it."""
    (tmp_path / "sitecustomize.py").write_text(JUMPS)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    options = ("--drain-quiet-s", "0", "--drain-timeout-s", "20")
    server = start("marked", *options, GATE=str(gate_path), PYTHONPATH=path.removesuffix(os.pathsep))

    def until(path: str, condition: Callable[[Any], bool]) -> None:
        end_s = time.monotonic() + TIMEOUT_S
        while not condition(reply := connect(server).request("GET", path)):
            assert time.monotonic() < end_s, reply

    def jump(number: signal.Signals, days: int) -> None:
        server.process.send_signal(number)
        day = timedelta(days=1)
        until(LIVE, lambda r: round((parsedate_to_datetime(r.headers["date"]) - datetime.now(UTC)) / day) == days)

    waiting = [(connect(server), headers) for headers in ({}, {"grpc-timeout": "60S"}, {"grpc-timeout": "60S"})]
    with gated(server) as gate:
        streams = [caller.send("POST", INFER, ask(1), headers) for caller, headers in waiting[:2]]
        gate.wait_for_rows(2)
        for number, days in ((signal.SIGUSR1, 1), (signal.SIGUSR2, -1)):
            jump(number, days)
            assert connect(server).request("POST", INFER, ask(2), {"grpc-timeout": "50m"}).status == 504
            gate.wait_for_rows(2)
        server.process.send_signal(signal.SIGTERM)
        until("/v2/health/ready", lambda r: r.status == 503)
        jump(signal.SIGUSR1, 1)
        streams.append(waiting[2][0].send("POST", INFER, ask(1), waiting[2][1]))
        gate.wait_for_rows(3)
    replies = [caller.receive(stream) for (caller, _), stream in zip(waiting, streams, strict=True)]
    assert [doubled(reply) for reply in replies] == [2, 2, 2]
    assert server.wait() == 0
    stopped = [line for line in server.log if line.endswith("stopped\n")]
    assert [line[:10] for line in stopped] == [(datetime.now() + timedelta(days=1)).date().isoformat()]


def test_serving_needs_no_disk(serve, connect, binary_request) -> None:
    """No process may write a byte to a file, as on a full disk: it starts, serves, counts and leaves as ever."""
    server = serve("echo", "--drain-quiet-s", "0", within={resource.RLIMIT_FSIZE: 0})
    caller = connect(server)
    for rows in (1, 1000):
        body, headers = binary_request({"x": np.ones((rows, 10), "<f4")})
        assert caller.request("POST", "/v2/models/echo/infer", body, headers).status == 200
    assert caller.request("GET", "/metrics").status == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0


DESCRIPTORS = 60


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_server_without_descriptors_waits_for_some(serve, sockets, connect, processes: str) -> None:
    """It neither ends nor runs hot, goes on with those that it has, and takes new callers when others have left."""
    server = serve("echo", "--processes", processes, within={resource.RLIMIT_NOFILE: DESCRIPTORS})
    served = connect(server)
    assert served.request("GET", LIVE).status == 200
    callers = [sockets(server) for _ in range(2 * DESCRIPTORS)]
    began_s = cpu_seconds_of(server)
    callers[-1].settimeout(1)
    with contextlib.suppress(TimeoutError, ConnectionError):  # it waits in the backlog, or has been turned away
        callers[-1].recv(1)
        callers[0].settimeout(1)
        callers[0].recv(1)
    assert cpu_seconds_of(server) - began_s < 0.5
    assert served.request("GET", LIVE).status == 200
    for caller in callers:
        caller.close()
    end_s = time.monotonic() + TIMEOUT_S
    while True:
        with contextlib.suppress(ConnectionError):
            if connect(server).request("GET", LIVE).status == 200:
                break
        assert time.monotonic() < end_s
    assert server.process.poll() is None
