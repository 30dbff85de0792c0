"""A real NATS server, the broker as its command starts it, subscribers that record, and time that is virtual."""

import http.client
import http.server
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port
from torpor.transformers.events import Event, Mode, decode, encode

TIMEOUT_S = 30
BIN = Path(sys.executable).parent


def wait_for(condition: Callable[[], Any], what: Callable[[], object] = lambda: "") -> Any:
    """Poll until it is true, and give it."""
    end_s = time.monotonic() + TIMEOUT_S
    while not (result := condition()):
        assert time.monotonic() < end_s, what()
        threading.Event().wait(0.02)
    return result


class Process:
    """A process of ours; `log` is what it wrote to standard error so far, in lines."""

    def __init__(self, *command: str | Path, ready: str = "", **options: Any) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, **options
        )
        self.log: list[str] = []
        self.out: list[str] = []
        self._readers = [
            threading.Thread(target=lambda: self.log.extend(self.process.stderr)),
            threading.Thread(target=lambda: self.out.extend(self.process.stdout)),
        ]
        for reader in self._readers:
            reader.start()
        self.match = wait_for(lambda: self._find(ready) or self.process.poll() is not None, lambda: self.log)
        assert self.process.poll() is None, self.log

    def _find(self, ready: str) -> re.Match[str] | None:
        return next((match for line in self.log if (match := re.search(ready, line))), None)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(TIMEOUT_S)
        for reader in self._readers:
            reader.join(TIMEOUT_S)
        self.process.stdout.close()
        self.process.stderr.close()
        return status


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    """What `run_process` has started; it ends with the test."""
    started: list[Process] = []
    yield started
    for process in reversed(started):
        process.end()


@pytest.fixture
def run_process(processes: list[Process]) -> Callable[..., Process]:
    """Start a process."""

    def run(*command: str | Path, **options: Any) -> Process:
        processes.append(Process(*command, **options))
        return processes[-1]

    return run


class Nats:
    """A NATS server with JetStream on a port of its own, that can be killed and come back."""

    def __init__(self, run: Callable[..., Process], folder: Path) -> None:
        self._run, self.folder, self.port = run, folder, free_port()
        self.start()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = self._run(
            BIN / "nats-server",
            "-js",
            "-sd",
            self.folder,
            "-a",
            "127.0.0.1",
            "-p",
            str(self.port),
            ready="Server is ready",
        )

    def kill(self) -> None:
        self.process.end(signal.SIGKILL)


@pytest.fixture
def nats(run_process: Callable[..., Process], tmp_path: Path) -> Nats:
    return Nats(run_process, tmp_path / "jetstream")


class Broker(Process):
    """`torpor events broker`."""

    port = 0
    nats_url = ""

    def send(self, event: Event, mode: Mode = Mode.BINARY, **headers: str) -> http.client.HTTPResponse:
        return post(self.port, event, mode, **headers)

    def counts(self) -> dict[tuple[str, str], int]:
        """Of events by trigger and outcome."""
        return {(t, o): int(n) for t, o, n in re.findall(r'trigger="(.*)",outcome="(.*)"} (\d+)', self.metrics())}

    def metrics(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return text


def post(port: int, event: Event, mode: Mode = Mode.BINARY, **more: str) -> http.client.HTTPResponse:
    """Send an event; the response, read."""
    headers, body = encode(event, mode)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request("POST", "/", body, {k.decode(): v.decode() for k, v in headers.items()} | more)
    response = connection.getresponse()
    response.content = response.read()
    connection.close()
    return response


@pytest.fixture
def start_broker(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Start brokers with the text of their triggers; a free port for the ingress, and its own server unless --nats is given.

    before: of the command, what it runs in.
    """
    brokers: list[Broker] = []

    def start(triggers: str = "", *options: str, port: int = 0, before: Sequence[str] = ()) -> Broker:
        file = tmp_path / f"triggers-{len(brokers)}.toml"
        file.write_text(triggers)
        given = ["--folder", str(tmp_path / "data"), "--ack-wait-s", "1", *options]
        if "--nats" not in given and "--nats-port" not in given:
            given += ["--nats-port", "0"]
        command = [*before, BIN / "torpor", "events", "broker", "--triggers", file, "--port", str(port), *given]
        broker = Broker(*command, ready=r"ready: broker on .*:(\d+), nats (\S+),")
        broker.port, broker.nats_url = int(broker.match[1]), broker.match[2]
        brokers.append(broker)
        return broker

    yield start
    for broker in brokers:
        broker.end()


class Subscriber:
    """Records the events that come, and answers as it is told. respond: gets the event, gives status, headers, body."""

    def __init__(self, respond: Callable[[Event], tuple[int, dict[str, str], bytes]]) -> None:
        self.events: list[Event] = []
        self.times_s: list[float] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                event = decode({k.lower().encode(): v.encode() for k, v in self.headers.items()}, body)
                outer.times_s.append(time.monotonic())
                outer.events.append(event)
                status, headers, body = respond(event)
                self.send_response(status)
                for name, value in (headers | {"content-length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda request, address: None  # callers that have left are part of the tests
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def wait_for(self, count: int) -> list[Event]:
        return wait_for(lambda: len(self.events) >= count and self.events, lambda: self.events)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def subscribe() -> Iterator[Callable[..., Subscriber]]:
    """Open subscribers; without more they answer 202."""
    subscribers: list[Subscriber] = []

    def open_one(respond: Any = lambda event: (202, {}, b"")) -> Subscriber:
        subscribers.append(Subscriber(respond))
        return subscribers[-1]

    yield open_one
    for subscriber in subscribers:
        subscriber.close()


@pytest.fixture
def polling() -> Callable[..., Any]:
    return wait_for


@pytest.fixture
def send() -> Callable[..., http.client.HTTPResponse]:
    return post
