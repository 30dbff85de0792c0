"""`--processes N`: connections go to all workers alike, and the death of one takes nothing with it but what was inside."""

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from http.client import RemoteDisconnected
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 30


def ask(connection: Any, x: float = 1.0) -> int:
    """The process that answers."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [x]}
    reply = connection.request("POST", "/v2/models/whoami/infer", json.dumps({"inputs": [tensor]}).encode())
    assert reply.status == 200, reply
    (output,) = reply.json()["outputs"]
    return output["data"][0]


def sockets(server: Any) -> int:
    """How many the supervisor has open: it keeps those that a worker has not taken."""
    count = 0
    for entry in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed just now
            count += os.readlink(entry).startswith("socket:")
    return count


def until(condition: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end_s, what


def is_alive(pid: int) -> bool:
    """An orphan that has ended stays a zombie in a container whose process 1 waits for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def two(start) -> Callable[..., Any]:
    """Start a server of two workers."""
    return lambda *options: start("whoami", "--processes", "2", "--drain-quiet-s", "0", *options)


@pytest.fixture
def workers(connect_http1) -> Callable[[Any], set[int]]:
    """The processes of a server of two that answer, by as many connections."""

    def pids(server: Any) -> set[int]:
        connections = [connect_http1(server) for _ in range(2)]
        pids = {ask(connection) for connection in connections}
        for connection in connections:
            connection.close()
        return pids

    return pids


def ready(server: Any) -> int:
    """How many workers have been ready so far, by the log."""
    return sum("worker" in line and "ready in" in line for line in server.log)


def test_connections_are_spread_evenly(two, connect_http1, workers) -> None:
    """Each new one goes to the worker with the fewest, those that have closed not counted."""
    server = two()
    connections = [connect_http1(server) for _ in range(10)]
    pids = [ask(connection) for connection in connections]
    assert sorted(Counter(pids).values()) == [5, 5]
    # Of one worker's five close four: the next four are its.
    thinned = pids[0]
    for connection, _ in [pair for pair in zip(connections, pids, strict=True) if pair[1] == thinned][1:]:
        connection.close()
    assert {ask(connection) for connection in [connect_http1(server) for _ in range(4)]} == {thinned}


def test_the_death_of_a_worker_is_noticed_by_nobody_else(two, connect_http1, workers) -> None:
    """Its rival answers every new connection at once, and a new worker comes."""
    server = two()
    keeping = [connect_http1(server) for _ in range(2)]
    pids = [ask(connection) for connection in keeping]
    with pytest.raises((RemoteDisconnected, ConnectionResetError)):
        ask(keeping[0], -1.0)  # its own model kills it
    assert ask(keeping[1]) == pids[1]
    assert {ask(connect_http1(server)) for _ in range(20)} == {pids[1]}
    until(lambda: ready(server) == 3, "no new worker came")
    assert pids[0] not in workers(server)
    assert any("worker" in line and "has ended with status 137" in line for line in server.log)


def test_a_worker_that_hangs_is_replaced(two, connect_http1, workers) -> None:
    """Its native code keeps the interpreter's lock, so that not even its health is answered; the other goes on."""
    server = two("--worker-timeout-s", "4")
    keeping = [connect_http1(server) for _ in range(2)]
    pids = [ask(connection) for connection in keeping]
    with pytest.raises((RemoteDisconnected, ConnectionResetError)):
        ask(keeping[0], -2.0)
    until(lambda: ready(server) == 3, "no new worker came")
    assert any("has not answered for 4 s: it hangs, and is killed" in line for line in server.log)
    assert ask(keeping[1]) == pids[1]
    assert pids[0] not in workers(server)


def test_a_new_worker_gets_its_share(two, connect_http1, workers) -> None:
    """Connections stay with their worker; the one that has taken over lets half of them go, each with an answer."""
    server = two()
    dead, survivor = workers(server)
    os.kill(dead, signal.SIGKILL)
    kept = [connect_http1(server) for _ in range(6)]
    assert {ask(connection) for connection in kept} == {survivor}
    until(lambda: ready(server) == 3, "no new worker came")

    def half_is_left() -> bool:
        kept[:] = [c for c in kept if "connection" not in c.request("GET", "/v2/health/live").headers]
        return len(kept) == 3

    until(half_is_left, "not three connections were let go")
    assert {ask(connection) for connection in kept} == {survivor}
    assert survivor not in {ask(connection) for connection in [connect_http1(server) for _ in range(3)]}


def test_connections_wait_while_no_worker_lives(two, connect_http1, workers) -> None:
    """They stay in the port's backlog, and the first worker that is ready again answers them."""
    server = two()
    for pid in workers(server):
        os.kill(pid, signal.SIGKILL)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(connect_http1(server)), range(8)))
    assert len(set(answers)) <= 2
    assert all(is_alive(pid) for pid in answers)


def test_a_connection_that_a_worker_had_not_taken_survives_it(two, connect_http1, workers) -> None:
    """Handed over and not looked at, it belongs to the next worker: stopped ones take nothing, and then they are killed."""
    server = two()
    before = sockets(server)
    pids = workers(server)
    until(lambda: sockets(server) == before, "the supervisor keeps connections that were taken")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    waiting = [connect_http1(server) for _ in range(4)]
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}
    body = json.dumps({"inputs": [tensor]}).encode()
    streams = [connection.send("POST", "/v2/models/whoami/infer", body) for connection in waiting]
    until(lambda: sockets(server) == before + 4, "the supervisor has not handed all over")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    replies = [connection.receive(stream) for connection, stream in zip(waiting, streams, strict=True)]
    assert [reply.status for reply in replies] == [200] * 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_all(two, workers, number: signal.Signals) -> None:
    """The workers drain, and the supervisor's status is 0."""
    server = two()
    pids = workers(server)
    server.process.send_signal(number)
    assert server.wait() == 0
    assert not any(map(is_alive, pids))


def test_workers_do_not_outlive_their_supervisor(two, workers) -> None:
    """Killed, it cannot tell them; they see it by their sockets."""
    server = two()
    pids = workers(server)
    server.process.kill()
    server.wait()
    until(lambda: not any(map(is_alive, pids)), "they live on")


def test_a_signal_to_one_worker_replaces_it(two, connect_http1, workers) -> None:
    """It drains alone while the other takes what is new: a rolling restart by hand."""
    server = two()
    kept = connect_http1(server)
    leaving = ask(kept)
    os.kill(leaving, signal.SIGTERM)
    until(lambda: ready(server) == 3, "no new worker came")
    assert leaving not in workers(server)


def test_a_start_that_fails_ends_the_server(failing_start, tmp_path) -> None:
    """As with one process: the model's error in the log, and status 1."""
    code = "class Broken:\n    def load(self): raise OSError('no weights')\n    def predict(self, x): ..."
    (tmp_path / "model.py").write_text(code)
    (tmp_path / "model.toml").write_text('class = "model:Broken"')
    status, log = failing_start(tmp_path, "--processes", "2")
    assert status == 1
    assert "no weights" in log
    assert "ready" not in log


def metric(connection: Any, pattern: str) -> list[float]:
    text = connection.request("GET", "/metrics").body.decode()
    return [float(value) for value in re.findall(rf"^{pattern} (.*)$", text, re.MULTILINE)]


def test_metrics_are_those_of_all(two, connect_http1, workers) -> None:
    """Counts are summed and survive a worker that dies; gauges stand for each process."""
    server = two()
    connections = [connect_http1(server) for _ in range(2)]
    for connection in (*connections, *connections, *connections):
        ask(connection)
    asking = connect_http1(server)
    answered = r'torpor_requests_total{protocol="rest",status="200"}'
    assert metric(asking, answered) == [6.0]
    assert len(metric(asking, r'torpor_queued_rows{.*process="\d"}')) == 2
    assert len(metric(asking, r'process_resident_memory_bytes{process="\d"}')) == 2
    os.kill(ask(connections[0]), signal.SIGKILL)
    until(lambda: ready(server) == 3, "no new worker came")
    asking = connect_http1(server)
    assert metric(asking, answered) in ([6.0], [7.0])  # the last answer was counted by the dead alone
    assert len(metric(asking, r"torpor_queued_rows{.*}")) == 2
    ask(connections[1])
    assert metric(asking, answered) in ([7.0], [8.0])
