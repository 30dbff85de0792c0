"""Servers as `torpor serve` starts them, and one client for HTTP/1.1 and prior-knowledge HTTP/2."""

import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import h2.settings
import hypothesis
import numpy as np
import pytest
from free_ports import free_port
from torpor.predictors.protocol.messages import message

MODELS = Path(__file__).parent / "predictors" / "serving" / "models"
TIMEOUT_S = 20

# Property tests run the same examples each time, however slow the machine.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("steady")

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that turns a close into a reset."""

Headers = Mapping[str, str]
NONE: Headers = {}


class Server:
    """A `torpor serve` process on a free port; `log` is what it wrote so far.

    within: limits of the process by their constants in the module `resource`.
    """

    def __init__(
        self, model: str | Path, *options: str, within: Mapping[int, int] | None = None, **environment: str
    ) -> None:
        torpor = Path(sys.executable).with_name("torpor")
        command = [torpor, "serve", model, "--host", "127.0.0.1", "--port", "0", *options]
        if within:
            code = "import os, resource, sys\n"
            code += "".join(f"resource.setrlimit({limit}, ({most}, {most}))\n" for limit, most in within.items())
            command = [sys.executable, "-c", code + "os.execv(sys.argv[1], sys.argv[1:])", *command]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TORPOR_", "K_SERVICE", "PORT"))}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=kept | environment)
        self.log: list[str] = []
        self.port = 0
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if match := re.search(r"ready in .* on .*:(\d+)$", line):
                self.port = int(match[1])
                break
        assert self.port, "".join(self.log)
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr or ()))
        self._reader.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> int:
        """Interrupt it, without the quiet that SIGTERM waits for; its exit status."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.wait()
            raise

    def wait(self) -> int:
        status = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@dataclass
class Reply:
    """An HTTP response, names of headers in lower case; `trailers` on HTTP/2 only."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)

    def json(self):
        assert self.headers["content-type"] == "application/json", self
        return json.loads(self.body)

    def error(self) -> str:
        """The text of a REST error, which has one form and a small body."""
        assert len(self.body) < 700, self
        assert self.status >= 400
        answer = self.json()
        assert list(answer) == ["error"]
        return answer["error"]

    def tensors(self) -> dict[str, np.ndarray]:
        """The outputs of a v2 response with binary data."""
        length = int(self.headers["inference-header-content-length"])
        head, at, tensors = json.loads(self.body[:length]), length, {}
        for output in head["outputs"]:
            size = output["parameters"]["binary_data_size"]
            data = np.frombuffer(self.body[at : at + size], TYPES[output["datatype"]])
            tensors[output["name"]] = data.reshape(output["shape"])
            at += size
        assert at == len(self.body)
        return tensors


TYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


class Http1:
    """One request after the other on a connection."""

    version = "HTTP/1.1"

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        if tls is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        else:
            self._connection = http.client.HTTPSConnection("localhost", port, timeout=TIMEOUT_S, context=tls)

    def send(self, method: str, path: str, body: bytes | None = None, headers: Headers = NONE) -> int:
        self._connection.request(method, path, body, dict(headers))
        return 0

    def receive(self, stream: int) -> Reply:
        response = self._connection.getresponse()
        body = response.read()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, body)

    def request(self, method: str, path: str, body: bytes | None = None, headers: Headers = NONE) -> Reply:
        return self.receive(self.send(method, path, body, headers))

    def reset(self) -> None:
        """Leave without a word."""
        self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.close()

    def close(self) -> None:
        self._connection.close()


class Http2:
    """Many requests at a time on a connection with prior knowledge."""

    version = "HTTP/2"

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        if tls is not None:
            self._socket = tls.wrap_socket(self._socket, server_hostname="localhost")
        self._state = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._state.initiate_connection()
        self._replies: dict[int, Reply] = {}
        self._ended: dict[int, object] = {}
        self.has_goodbye = False
        """GOAWAY has come: this takes no more requests."""
        self._flush()

    def send(self, method: str, path: str, body: bytes | None = None, headers: Headers = NONE) -> int:
        """Send a request and give its stream; of a body that the server refuses, the rest is kept back."""
        stream = self._state.get_next_available_stream_id()
        fields = {":method": method, ":path": path, ":scheme": "http", ":authority": "torpor"}
        if body is not None:
            fields["content-length"] = str(len(body))
        fields |= {k.lower(): v for k, v in headers.items()}
        self._state.send_headers(stream, list(fields.items()), end_stream=not body)
        at = 0
        while body and at < len(body) and stream not in self._ended:
            window = self._state.local_flow_control_window(stream)
            room = min(window, self._state.max_outbound_frame_size, len(body) - at)
            if room:
                self._state.send_data(stream, body[at : at + room], end_stream=at + room == len(body))
                at += room
                self._flush()
            else:
                self._read()
        self._flush()
        return stream

    def receive(self, stream: int) -> Reply:
        while stream not in self._ended:
            try:
                self._read()
            except ConnectionResetError:  # its answer may have come with the goodbye
                if stream not in self._ended:
                    raise
        if isinstance(self._ended[stream], h2.events.StreamReset) and stream not in self._replies:
            raise ConnectionResetError(self._ended[stream])
        return self._replies[stream]

    def request(self, method: str, path: str, body: bytes | None = None, headers: Headers = NONE) -> Reply:
        return self.receive(self.send(method, path, body, headers))

    def cancel(self, stream: int) -> None:
        """Tell the server that nobody waits for the answer."""
        self._state.reset_stream(stream, 8)
        self._flush()

    def close_windows(self) -> None:
        """Let the server send no data on streams from now on; returns when it has taken note."""
        self._state.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        self._flush()
        while self._state.local_settings.initial_window_size:
            self._read()

    def reset(self) -> None:
        """Leave without a word."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.close()

    def close(self) -> None:
        self._socket.close()

    def _flush(self) -> None:
        self._socket.sendall(self._state.data_to_send())

    def _read(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        for event in self._state.receive_data(data):
            stream = getattr(event, "stream_id", 0)
            match event:
                case h2.events.ResponseReceived():
                    headers = dict(event.headers)
                    self._replies[stream] = Reply(int(headers.pop(":status")), headers)
                case h2.events.DataReceived():
                    self._replies[stream].body += event.data
                    self._state.acknowledge_received_data(event.flow_controlled_length, stream)
                case h2.events.TrailersReceived():
                    self._replies[stream].trailers = dict(event.headers)
                case h2.events.StreamEnded() | h2.events.StreamReset():
                    self._ended.setdefault(stream, event)
                case h2.events.ConnectionTerminated():
                    self.has_goodbye = True
                    raise ConnectionResetError(f"GOAWAY {event.error_code}")
        self._flush()


Connect = Callable[..., Http1 | Http2]


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers of model folders, by name of one in `models` or by path; they end with the session."""
    servers: list[Server] = []

    def start(model: str | Path, *options: str, **more: Any) -> Server:
        servers.append(Server(MODELS / model, *options, **more))
        return servers[-1]

    yield start
    statuses = [server.stop() for server in servers if server.process.poll() is None]
    assert not any(statuses)


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Start servers that end with the test, if they have not before."""
    servers: list[Server] = []

    def run(model: str | Path, *options: str, **environment: str) -> Server:
        servers.append(Server(MODELS / model, *options, **environment))
        return servers[-1]

    yield run
    for server in servers:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture
def failing_start() -> Callable[..., tuple[int, str]]:
    """Start a server that ends by itself: its exit status and what it wrote."""

    def run(model: str | Path, *options: str) -> tuple[int, str]:
        command = [Path(sys.executable).with_name("torpor"), "serve", model, "--port", "0", *options]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S)
        return done.returncode, done.stderr

    return run


@pytest.fixture(scope="session")
def kserve_server() -> Callable[..., contextlib.AbstractContextManager[SimpleNamespace]]:
    """Run a stock kserve.ModelServer with the models of folders, for as long as a `with` lasts: its ports, http and grpc,
    its process and its log."""
    if importlib.util.find_spec("kserve") is None:
        pytest.skip("needs kserve")

    @contextlib.contextmanager
    def start(*folders: Path, **environment: str) -> Iterator[SimpleNamespace]:
        for _ in range(3):  # the SDK cannot choose ports itself, so another pair is tried
            ports = [free_port(), free_port()]
            process = subprocess.Popen(
                [sys.executable, MODELS.with_name("kserve_server.py"), *map(str, ports), *folders],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment,
            )  # fmt: skip
            assert process.stdout is not None
            log: list[str] = []
            for line in process.stdout:
                log.append(line)
                if "Uvicorn running" in line:
                    break
            else:
                process.wait(TIMEOUT_S)
                process.stdout.close()
                continue
            reader = threading.Thread(target=log.extend, args=(process.stdout,))
            reader.start()
            try:
                yield SimpleNamespace(http=ports[0], grpc=f"127.0.0.1:{ports[1]}", process=process, log=log)
            finally:
                process.terminate()
                process.wait(30)
                reader.join(TIMEOUT_S)
                process.stdout.close()
            return
        pytest.fail("".join(log))

    return start


@pytest.fixture(scope="session")
def echo(serve: Callable[..., Server]) -> Server:
    """Serves a model that gives back what comes, with bodies of up to 1 MiB."""
    return serve("echo", "--max-body-bytes", str(1 << 20))


@pytest.fixture(scope="session")
def gate_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gate") / "gate"
    os.mkfifo(path)
    return path


@pytest.fixture(scope="session")
def marked(serve: Callable[..., Server], gate_path: Path) -> Server:
    """Serves a model that misbehaves on marked rows, with a queue of 16 rows."""
    return serve("marked", GATE=str(gate_path))


@pytest.fixture(params=[Http1, Http2], ids=["http1", "http2"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Open connections of either HTTP version, closed with the test; over TLS with a context."""
    connections: list[Http1 | Http2] = []

    def open_connection(server: Server, tls: ssl.SSLContext | None = None) -> Http1 | Http2:
        connections.append(request.param(server.port, tls))
        return connections[-1]

    yield open_connection
    for connection in connections:
        connection.close()


@pytest.fixture
def connect_http1() -> Iterator[Callable[[Server], Http1]]:
    """Open HTTP/1.1 connections, closed with the test."""
    connections: list[Http1] = []

    def open_connection(server: Server) -> Http1:
        connections.append(Http1(server.port))
        return connections[-1]

    yield open_connection
    for connection in connections:
        connection.close()


@pytest.fixture
def connect_http2() -> Iterator[Callable[[Server], Http2]]:
    """Open HTTP/2 connections, closed with the test."""
    connections: list[Http2] = []

    def open_connection(server: Server) -> Http2:
        connections.append(Http2(server.port))
        return connections[-1]

    yield open_connection
    for connection in connections:
        connection.close()


@pytest.fixture(scope="session")
def binary_request() -> Callable[..., tuple[bytes, dict[str, str]]]:
    """Make a v2 request with binary tensors: body and headers."""
    names = {np.dtype(code): name for name, code in TYPES.items()}

    def make(inputs: dict[str, np.ndarray], **fields: object) -> tuple[bytes, dict[str, str]]:
        entries, blobs = [], []
        for name, array in inputs.items():
            blobs.append(array.tobytes())
            entries.append({
                "name": name, "datatype": names[array.dtype], "shape": array.shape,
                "parameters": {"binary_data_size": len(blobs[-1])},
            })  # fmt: skip
        head = json.dumps({"inputs": entries, "parameters": {"binary_data_output": True}} | fields).encode()
        return b"".join([head, *blobs]), {"inference-header-content-length": str(len(head))}

    return make


class Gate:
    """A model that is busy: what comes meanwhile waits in the queue, to be batched together afterwards."""

    def __init__(self, metrics: Callable[[], str]) -> None:
        self._metrics = metrics

    def wait_for_rows(self, rows: int) -> None:
        """Ask the server until so many rows wait."""
        end_s = time.monotonic() + TIMEOUT_S
        while not re.search(rf"^torpor_queued_rows{{.*}} {rows}\.0$", metrics := self._metrics(), re.MULTILINE):
            assert time.monotonic() < end_s, metrics


@pytest.fixture
def gated(gate_path: Path) -> Callable[[Server], contextlib.AbstractContextManager[Gate]]:
    """Keep the model `marked` busy for as long as a `with` lasts."""

    @contextlib.contextmanager
    def hold(server: Server) -> Iterator[Gate]:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1006, 0]}
        body = json.dumps({"inputs": [tensor]}).encode()
        asking, watching = Http1(server.port), Http1(server.port)
        try:
            stream = asking.send("POST", "/v2/models/marked/infer", body)
            with gate_path.open("wb"):  # opens when the model has opened its end
                yield Gate(lambda: watching.request("GET", "/metrics").body.decode())
            assert asking.receive(stream).status == 200
        finally:
            asking.close()
            watching.close()

    return hold


@pytest.fixture
def grpc_channel() -> Iterator[Callable[[Server], grpc.Channel]]:
    """Open grpcio's channels, closed with the test."""
    with contextlib.ExitStack() as channels:
        yield lambda server: channels.enter_context(grpc.insecure_channel(server.address))


@pytest.fixture
def grpc_infer(grpc_channel) -> Callable[[Server], Callable[..., object]]:
    """ModelInfer as grpcio's own client calls it."""
    response = message("inference.ModelInferResponse")
    return lambda server: grpc_channel(server).unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", lambda m: m.SerializeToString(), response.FromString
    )
