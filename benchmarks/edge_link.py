"""The life of an edge node without its link: events that it answers meanwhile, and what of that its site has afterwards.

Node and site are a broker with a NATS server each; the leaf connection between them goes through a relay that can be cut.
While it is cut, senders give the node 10 000 events, each until it got its 202, and three times the broker, its NATS server
and the model are killed (SIGKILL) at once. Then the link returns. Every answer at the site is compared with raw torch's; at
last each event is sent to the model once more, whose answer must be the one that the site has, byte for byte.
"""

import asyncio
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trustme
import uvloop
from torpor.transformers.events.jetstream import JetStream as Client

from assignment import variables
from environments import UnavailableError
from loads import BadAnswerError, Rate
from measurements import probe_rows
from probe import is_right
from servers import Torpor, free_port
from wires import V2Binary

EVENTS, KILLS, SENDERS = 10_000, 3, 32
_LIMIT_S = 240.0
_RESPONSE = "io.kserve.inference.response"
_TRIGGERS = """
[[trigger]]
name = "ask"
filter = {{type = "ask"}}
subscriber = "http://127.0.0.1:{model}/"
retry = 1000
backoff_policy = "linear"
"""


@dataclass(frozen=True)
class Linked:
    """Events of which the site has no answer, another one than raw torch's, or another one than a repeat gets."""

    label: str

    def measure(self, seconds: float) -> Rate:
        return uvloop.run(self._measure())

    async def _measure(self) -> Rate:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-link-")))
            site, node = _Machine(folder / "site"), _Machine(folder / "node")
            _certify(site, node)
            leafs = free_port()
            relay = await _Relay.to(leafs)
            (folder / "nodes").write_text("node\n")
            site.has_broker("--nodes", str(folder / "nodes"), "--listen-nodes", f"127.0.0.1:{leafs}")
            node.has_broker("--site", f"127.0.0.1:{relay.port}", "--node", "node")
            node.has_model()
            stack.enter_context(site.running())
            stack.enter_context(node.running())
            async with AsyncExitStack() as ends:
                ends.push_async_callback(relay.close)
                client = await Client.connect(site.nats_url, _LIMIT_S)
                ends.push_async_callback(client.close)
                return await self._story(node, relay, client)

    async def _story(self, node: "_Machine", relay: "_Relay", site: Client) -> Rate:
        asked = _Asked()
        await asked.send([0], node.broker_port)
        await asyncio.wait_for(asked.answers_at(site, 1), _LIMIT_S)
        relay.cut()
        began_s = time.monotonic()
        numbers = iter(range(1, EVENTS + 1))
        senders = [asyncio.create_task(asked.send(numbers, node.broker_port)) for _ in range(SENDERS)]
        for kill in range(1, KILLS + 1):
            await asked.reach(kill * EVENTS // (KILLS + 1))
            node.kill()
            node.start()
        await asyncio.wait_for(asyncio.gather(*senders), _LIMIT_S)
        lost_s, linked_s = time.monotonic() - began_s, time.monotonic()
        at_site_before = len(asked.answers)
        relay.restore()
        # What never comes is what is counted.
        with suppress(TimeoutError):
            await asyncio.wait_for(asked.answers_at(site, EVENTS + 1), _LIMIT_S)
        caught_up_s = time.monotonic() - linked_s
        again = iter(range(EVENTS + 1))
        await asyncio.wait_for(
            asyncio.gather(*(asked.ask_again(again, node.model_port) for _ in range(SENDERS))), _LIMIT_S
        )
        lost = EVENTS + 1 - len(asked.answers)
        beside = {
            "events while the link was lost": float(EVENTS), "kills": float(KILLS), "lost": float(lost),
            "answered differently": float(len(asked.different)), "wrong": float(len(asked.wrong)),
            "answers that the site has twice": float(asked.repeats), "at the site before": float(at_site_before),
            "s without the link": lost_s, "s to catch up": caught_up_s,
        }  # fmt: skip
        if asked.wrong:
            raise BadAnswerError(f"events {sorted(asked.wrong)[:5]} were answered wrongly: {beside}")
        return Rate(lost + len(asked.different), math.nan, math.nan, beside)


@dataclass
class _Asked:
    """The events, and the answers to them by number."""

    accepted: set[int] = field(default_factory=set)
    answers: dict[int, bytes] = field(default_factory=dict)
    wrong: set[int] = field(default_factory=set)
    different: set[int] = field(default_factory=set)
    repeats: int = 0

    def __post_init__(self) -> None:
        self._wire = V2Binary("mlp")
        self._rows, self._expected = probe_rows("mlp")
        self._read = 0

    def _message(self, number: int) -> bytes:
        exchange = self._wire.encode(self._rows[number % len(self._rows)])
        length = {k.lower(): v for k, v in exchange.headers.items()}["inference-header-content-length"]
        fields = {
            "host": "node", "content-length": str(len(exchange.message)), "ce-specversion": "1.0", "ce-id": str(number),
            "ce-source": "/benchmark", "ce-type": "ask", "content-type": "application/octet-stream",
            "ce-inferenceheadercontentlength": length,
        }  # fmt: skip
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST / HTTP/1.1\r\n{head}\r\n".encode() + exchange.message

    async def send(self, numbers: Iterator[int] | list[int], port: int) -> None:
        """Each until the broker has it."""
        connection = _Connection(port)
        for number in numbers:
            while True:
                status, _ = await connection.post(self._message(number))
                if status == 202:
                    break
                await asyncio.sleep(0.05)
            self.accepted.add(number)
        connection.close()

    async def reach(self, count: int) -> None:
        limit_s = time.monotonic() + _LIMIT_S
        while len(self.accepted) < count:
            if time.monotonic() > limit_s:
                raise UnavailableError(f"{len(self.accepted)} events were taken within {_LIMIT_S:g} s")
            await asyncio.sleep(0.02)

    async def answers_at(self, site: Client, count: int) -> None:
        """Read the site's stream on until there are answers to so many events."""
        stored = site.read("torpor-events", self._read + 1, event_type=_RESPONSE, follows=True)
        async with aclosing(stored):
            async for one in stored:
                self._read = one.sequence
                self._arrived(int(one.event.attributes["correlationid"]), one.event.attributes, one.event.data or b"")
                if len(self.answers) == count:
                    return

    def _arrived(self, number: int, attributes: "dict[str, str]", data: bytes) -> None:
        if number in self.answers:
            self.repeats += 1
            if self.answers[number] != data:
                self.different.add(number)
            return
        self.answers[number] = data
        length = {"inference-header-content-length": attributes["inferenceheadercontentlength"]}
        index = number % len(self._rows)
        if not is_right(self._wire.decode(length, data), self._expected[index : index + 1]):
            self.wrong.add(number)

    async def ask_again(self, numbers: Iterator[int], port: int) -> None:
        """The model itself."""
        connection = _Connection(port)
        for number in numbers:
            status, body = await connection.post(self._message(number))
            if status != 200 or body != self.answers.get(number, body):
                self.different.add(number)
        connection.close()


class _Connection:
    """One request after the other; status 0 for one that got no answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, message: bytes) -> tuple[int, bytes]:
        try:
            self._streams = self._streams or await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(message)
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).decode("latin-1").lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            return int(head.split()[1]), await asyncio.wait_for(reader.readexactly(length), 30)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            self.close()
            return 0, b""

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
        self._streams = None


class _Machine:
    """The processes of one end, in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.broker_port, self._nats_port, self.model_port = free_port(), free_port(), free_port()
        self._commands: list[list[str]] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self._nats_port}"

    def has_broker(self, *options: str) -> None:
        triggers = self.folder / "triggers.toml"
        triggers.write_text(_TRIGGERS.format(model=self.model_port) if "--site" in options else "")
        self._commands.append(
            [str(Path(sys.executable).with_name("torpor")), "events", "broker", "--port", str(self.broker_port),
             "--nats-port", str(self._nats_port), "--folder", str(self.folder / "data"), "--triggers", str(triggers),
             "--certificate", str(self.folder), *options]
        )  # fmt: skip

    def has_model(self) -> None:
        self._commands.append(
            Torpor("torpor", options=("--event-store", self.nats_url)).command("mlp", self.model_port, 64)
        )

    def start(self) -> None:
        environment = os.environ | variables("mlp", "", self.model_port, 64, 1) | {"OMP_NUM_THREADS": "1"}
        with (self.folder / "log").open("ab") as log:
            self._processes = [
                subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                for command in self._commands
            ]

    def kill(self) -> None:
        """The NATS server dies with its broker (PR_SET_PDEATHSIG)."""
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
        for process in self._processes:
            process.wait(_LIMIT_S)

    @contextmanager
    def running(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            for process in self._processes:
                process.terminate()
            for process in self._processes:
                process.wait(_LIMIT_S)


class _Relay:
    """TCP to a port on this machine, for as long as it is not cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.port = 0

    @classmethod
    async def to(cls, target: int) -> "_Relay":
        relay = cls(target)
        server = await asyncio.start_server(relay._serve, "127.0.0.1", 0)
        relay.port = server.sockets[0].getsockname()[1]
        return relay

    def cut(self) -> None:
        self._is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    def restore(self) -> None:
        self._is_cut = False

    async def close(self) -> None:
        self.cut()
        if self._serving:
            await asyncio.wait(self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        if self._is_cut:
            writer.transport.abort()
            return
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            both = {writer, far_writer}
            self._writers |= both
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
            self._writers -= both
        writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


def _certify(site: _Machine, node: _Machine) -> None:
    authority = trustme.CA()
    for machine, names in ((site, ("site", "127.0.0.1")), (node, ("node",))):
        made = authority.issue_cert(*names)
        authority.cert_pem.write_to_path(machine.folder / "ca.crt")
        made.private_key_pem.write_to_path(machine.folder / "tls.key")
        made.cert_chain_pems[0].write_to_path(machine.folder / "tls.crt")
