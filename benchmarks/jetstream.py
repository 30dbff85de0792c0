"""Events through the local broker, each persisted: sender, broker, MLP, its answer to the broker, and to whoever waits.

Senders keep so many events on their way, and send again, with the same id, what got no 202. Every answer is compared with raw
torch's, and one that comes twice with itself, byte for byte. After the rate the load goes on, while the NATS server and then
the broker are killed (SIGKILL); whatever has got its 202 must be answered.
"""

import asyncio
import http.client
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import numpy as np
import uvloop

from bodies import Row
from environments import UnavailableError
from loads import BadAnswerError, Rate
from measurements import THREADS, probe_rows
from probe import is_right
from servers import Running, Torpor, free_port, running
from wires import V2Binary

SENDERS = 64
"""Connections, each with one event at a time."""

ON_THEIR_WAY = 256
"""Events that are sent and not answered."""

_WARM_S = 2.0
_KILLED_EVENTS = 500
"""Before, between and after the kills."""

_LIMIT_S = 60.0
_TRIGGERS = """
[[trigger]]
name = "ask"
filter = {{type = "ask"}}
subscriber = "http://127.0.0.1:{model}/"
retry = 100
[[trigger]]
name = "told"
filter = {{type = "io.kserve.inference.response"}}
subscriber = "http://127.0.0.1:{sink}/"
retry = 100
"""


@dataclass(frozen=True)
class JetStream:
    """Answers a second that arrive at the sink; latencies from an event's first try to its answer. sync: of `--sync`."""

    label: str
    sync: str

    def measure(self, seconds: float) -> Rate:
        return uvloop.run(self._measure(seconds))

    async def _measure(self, seconds: float) -> Rate:
        rows, expected = probe_rows("mlp")
        journey = _Journey(rows, expected)
        sink = await asyncio.get_running_loop().create_server(lambda: _Sink(journey), "127.0.0.1", 0)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-broker-")))
            nats, ports = free_port(), {"sink": sink.sockets[0].getsockname()[1]}
            broker = _Broker(folder, nats, self.sync)
            model = Torpor("torpor", options=("--event-store", f"nats://127.0.0.1:{nats}"))
            # The store is the broker's server; the broker's triggers name the model's port, which is known once it runs.
            stack.enter_context(broker.running(""))
            pod = stack.enter_context(running(model, "mlp", "", 64, THREADS["mlp"], ""))
            await _until(lambda: _answers(pod.port), pod, "the model")
            broker.end(signal.SIGTERM)
            broker.start(_TRIGGERS.format(model=pod.port, **ports))
            await _until(lambda: _answers(broker.port), pod, "the broker")
            senders = [asyncio.create_task(journey.send(broker.port)) for _ in range(SENDERS)]
            await asyncio.sleep(_WARM_S)
            began_s, before = time.monotonic(), len(journey.answers)
            journey.latencies_s.clear()
            await asyncio.sleep(seconds)
            rate = (len(journey.answers) - before) / (time.monotonic() - began_s)
            latencies_s = journey.latencies_s[:]
            at_kill = len(journey.accepted)
            for kill in (broker.kill_server, lambda: broker.end(signal.SIGKILL)):
                await journey.reach(len(journey.accepted) + _KILLED_EVENTS, pod)
                kill()
                if broker.process.poll() is not None:
                    broker.start(None)
            await journey.reach(len(journey.accepted) + _KILLED_EVENTS, pod)
            journey.is_over = True
            await asyncio.gather(*senders)
            await journey.finish()
            lost = journey.accepted - journey.answers.keys()
            if lost or journey.wrong:
                raise BadAnswerError(f"{len(lost)} lost of {len(journey.accepted)}, {journey.wrong[:3]}")
        sink.close()
        if len(latencies_s) < 2:
            raise BadAnswerError("no answers within the measurement")
        cut = quantiles(latencies_s, n=100)
        beside = {
            "events while killed": float(len(journey.accepted) - at_kill), "lost": float(len(lost)),
            "answers that came again": float(journey.repeats),
        }  # fmt: skip
        return Rate(rate, cut[49] * 1e3, cut[98] * 1e3, beside)


@dataclass
class _Journey:
    """What was sent, taken and answered."""

    rows: list[Row]
    expected: np.ndarray
    accepted: set[int] = field(default_factory=set)
    answers: dict[int, bytes] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    repeats: int = 0
    is_over: bool = False

    def __post_init__(self) -> None:
        self._wire = V2Binary("mlp")
        self._numbers = itertools.count()
        self._sent_s: dict[int, float] = {}
        self._room = asyncio.Semaphore(ON_THEIR_WAY)

    async def send(self, port: int) -> None:
        """One event after the other on a connection, each until it is taken."""
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self.is_over:
            await self._room.acquire()
            number = next(self._numbers)
            message = self._message(number)
            self._sent_s[number] = time.monotonic()
            while number not in self.accepted:
                try:
                    connection = connection or await asyncio.open_connection("127.0.0.1", port)
                    reader, writer = connection
                    writer.write(message)
                    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
                    if b" 202 " in head[:16]:
                        self.accepted.add(number)
                        continue
                except (OSError, asyncio.IncompleteReadError, TimeoutError):
                    pass
                if connection is not None:
                    connection[1].transport.abort()
                connection = None
                await asyncio.sleep(0.05)
        if connection is not None:
            connection[1].transport.abort()

    def _message(self, number: int) -> bytes:
        exchange = self._wire.encode(self.rows[number % len(self.rows)])
        fields = {"host": "broker", "content-length": str(len(exchange.message)), "ce-specversion": "1.0",
                  "ce-id": str(number), "ce-source": "/benchmark", "ce-type": "ask",
                  "content-type": "application/octet-stream"}  # fmt: skip
        length = {k.lower(): v for k, v in exchange.headers.items()}["inference-header-content-length"]
        fields["ce-inferenceheadercontentlength"] = length
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST / HTTP/1.1\r\n{head}\r\n".encode() + exchange.message

    def arrived(self, headers: dict[str, str], body: bytes) -> None:
        """An answer has come."""
        number = int(headers["ce-correlationid"])
        if number in self.answers:
            self.repeats += 1
            if self.answers[number] != body:
                self.wrong.append(f"another answer to event {number}")
            return
        self.answers[number] = body
        self.latencies_s.append(time.monotonic() - self._sent_s[number])
        self._room.release()
        length = {"inference-header-content-length": headers["ce-inferenceheadercontentlength"]}
        found = self._wire.decode(length, body)
        index = number % len(self.rows)
        wanted = self.expected[index : index + 1]
        if not is_right(found, wanted):
            self.wrong.append(f"wrong answer to event {number}: {found.ravel()[:4]}")

    async def reach(self, count: int, pod: Running) -> None:
        """Until so many were taken."""
        await _until(lambda: len(self.accepted) >= count, pod, f"{count} events")

    async def finish(self) -> None:
        """Until all that were taken are answered, or nothing more comes."""
        limit_s = time.monotonic() + _LIMIT_S
        while self.accepted - self.answers.keys() and time.monotonic() < limit_s:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


class _Sink(asyncio.Protocol):
    """Takes answers, one after the other on a connection."""

    def __init__(self, journey: _Journey) -> None:
        self._journey = journey
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, rest = self._data.partition(b"\r\n\r\n")
        if not end:
            return
        lines = head.decode("latin-1").split("\r\n")[1:]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers["content-length"])
        if len(rest) < length:
            return
        self._data = rest[length:]
        try:
            self._journey.arrived(headers, rest[:length])
        except (KeyError, ValueError, IndexError) as error:
            self._journey.wrong.append(f"no answer ({error!r}): {head[:300]!r}")
        self._transport.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")


@dataclass
class _Broker:
    """`torpor events broker` with a NATS server of its own, which goes with it."""

    folder: Path
    nats_port: int
    sync: str
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.port = free_port()

    @contextmanager
    def running(self, triggers: str) -> Iterator[None]:
        self.start(triggers)
        try:
            yield
        finally:
            self.end(signal.SIGTERM)

    def start(self, triggers: str | None) -> None:
        """triggers: None for those that there are."""
        file = self.folder / "triggers.toml"
        if triggers is not None:
            file.write_text(triggers)
        executable = Path(sys.executable).with_name("torpor")
        with (self.folder / "broker.log").open("ab") as log:
            self.process = subprocess.Popen(
                [executable, "events", "broker", "--triggers", file, "--port", str(self.port), "--nats-port",
                 str(self.nats_port), "--folder", self.folder / "data", "--sync", self.sync],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def kill_server(self) -> None:
        (server,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(server), signal.SIGKILL)

    def end(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(_LIMIT_S)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


async def _until(condition: Callable[[], bool], pod: Running, what: str) -> None:
    limit_s = time.monotonic() + _LIMIT_S
    while not await asyncio.to_thread(condition):
        pod.check_alive()
        if time.monotonic() > limit_s:
            raise UnavailableError(f"{what} not within {_LIMIT_S:g} s")
        await asyncio.sleep(0.02)
