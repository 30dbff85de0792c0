"""One worker process, as its owner sees it: loaded, asked, and gone in each way that there is.

What runs in it here is no handler but a few lines, which it gets as its options.
"""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from torpor.predictors.torchserve import beginning, frames, process
from torpor.predictors.torchserve.manifest import ArchiveError
from torpor.predictors.torchserve.process import WorkerProcess
from virtual_time import run_virtually

COMMAND = """
import os, signal, socket, sys, time
from torpor.predictors.torchserve import frames

link = socket.socket(fileno=int(sys.argv[1]))

def receive():
    prefix = link.recv(frames.PREFIX.size, socket.MSG_WAITALL)
    if not prefix:
        return None
    text, content = frames.PREFIX.unpack(prefix)
    return frames.unpack(link.recv(text, socket.MSG_WAITALL), link.recv(content, socket.MSG_WAITALL))

def send(head, parts=()):
    link.sendall(b"".join(frames.pack(head, parts)))

exec(receive()[0]["load"]["code"])
"""
LOADED = 'send({"loaded": 2}); '
ECHO = """
while (message := receive()) is not None:
    head, parts = message
    send({"batch": head["batch"], "replies": [{"said": head.get("said")}], "metrics": head.get("metrics", [])}, parts)
"""
STAYS = "\ntime.sleep(100)"
TIMEOUT_S = 20.0


@pytest.fixture(autouse=True)
def commanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginning, "_COMMAND", COMMAND)
    monkeypatch.setattr(process, "_LEAVING_S", TIMEOUT_S)


class Worker(WorkerProcess):
    """What its owner hears of it, in order."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.all_heard = asyncio.Event()
        super().__init__("m", 3, self._hear_end, lambda metrics: self._hear("metrics", metrics))

    def _hear(self, *said: Any) -> None:
        self.heard.append(said)
        self.all_heard.set()

    def _hear_end(self, worker: WorkerProcess, reason: str, unread: int) -> None:
        assert worker is self
        self._hear("end", reason, unread)

    async def start(self, code: str, timeout_s: float = TIMEOUT_S) -> None:
        if STAYS in code:  # it would not leave in any time
            process._LEAVING_S = 0.1
        await self.load({"code": code}, os.environ, timeout_s)

    def ask(self, timeout_s: float = TIMEOUT_S, parts: Any = ((b"a", b"b"),), **head: Any) -> None:
        def done(replies: Any, blobs: Any) -> None:
            self._hear("done", replies, [[bytes(blob) for blob in part] for part in blobs])

        self.run(head, parts, done, lambda said, piece: self._hear("piece", said, bytes(piece)), timeout_s)

    async def hears(self, count: int = 1) -> list[Any]:
        """The next things, once there are so many."""
        while len(self.heard) < count:
            self.all_heard.clear()
            await asyncio.wait_for(self.all_heard.wait(), TIMEOUT_S)
        heard, self.heard = self.heard, []
        return heard


def is_there(worker: WorkerProcess) -> bool:
    return os.path.exists(f"/proc/{worker.pid}")


def run(scenario: Callable[[Worker], Coroutine[Any, Any, Any]]) -> Any:
    """On a new worker, of which nothing is left: no process, no descriptor, no word to its owner."""

    async def whole() -> Any:
        worker = Worker()
        assert worker.pid == 0
        worker.kill()
        before = os.listdir("/proc/self/fd")
        result = await scenario(worker)
        await worker.stop()
        worker.kill()
        await worker._ending.ended()
        assert worker.heard == []
        assert not is_there(worker)
        assert os.listdir("/proc/self/fd") == before
        return result

    return asyncio.run(whole())


def test_it_loads_and_answers() -> None:
    """In the environment that it is given, without the server's folder and input; it is told how many batches it takes."""

    began_s = time.monotonic()

    async def scenario(worker: Worker) -> None:
        assert (worker.at_once, began_s <= worker.began_s <= time.monotonic()) == (1, True)
        said = "(os.environ.get('OWN'), os.environ.get('HOME'), sys.flags.safe_path, sys.stdin.read())"
        code = f'import sys; send({{"loaded": 2}}); receive(); send({{"batch": 1, "replies": {said}, "metrics": []}})'
        await worker.load({"code": code}, {"OWN": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}, TIMEOUT_S)
        assert (worker.name, worker.at_once, worker.number) == ("m worker 3", 2, 3)
        assert is_there(worker)
        worker.ask()
        assert await worker.hears(2) == [
            ("done", ["1", None, True, ""], []),
            ("end", "the handler ended its process with status 0", 0),
        ]

    run(scenario)


def test_batches_are_answered_by_their_numbers() -> None:
    """Each once, with what the handler has counted before it, if it has."""

    async def scenario(worker: Worker) -> None:
        await worker.start(LOADED + ECHO)
        worker.ask(said="one", metrics=[1])
        worker.ask(said="two", parts=((b"c",), ()))
        assert await worker.hears(3) == [
            ("metrics", [1]),
            ("done", [{"said": "one"}], [[b"a", b"b"]]),
            ("done", [{"said": "two"}], [[b"c"], []]),
        ]

    run(scenario)


def test_pieces_come_before_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    """What comes for nobody is in the log."""
    code = """
receive()
for number in (1, 1, 7):
    send({"batch": number, "piece": 0}, [[b"x"]])
    send({"batch": number, "replies": [], "metrics": []})
receive()
send({"batch": 2, "replies": [], "metrics": []})
receive()
"""

    async def scenario(worker: Worker) -> None:
        await worker.start(LOADED + code)
        worker.ask()
        assert await worker.hears(2) == [("piece", {"batch": 1, "piece": 0, "sizes": [[1]]}, b"x"), ("done", [], [])]
        worker.ask()
        assert await worker.hears() == [("done", [], [])]

    run(scenario)
    assert caplog.messages == ["m worker 3: an unexpected message from its worker"] * 4


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ('send({"failed": "no weights"})', "no weights"),
        ('send({"failed": "no weights"})' + STAYS, "no weights"),
        ("sys.exit(3)", "the handler ended its process with status 3 while it was loaded"),
        ("os.kill(os.getpid(), 9)", "the handler ended its process with signal 9 while it was loaded"),
        ("os.close(link.fileno())" + STAYS, "the handler ended its process with signal 9 while it was loaded"),
    ],
)
def test_one_that_cannot_load_is_no_more(code: str, reason: str) -> None:
    """Why is told to who loads it, and to nobody else."""

    async def scenario(worker: Worker) -> None:
        with pytest.raises(ArchiveError, match=f"^m worker 3: {reason}$"):
            await worker.start(code)
        assert not is_there(worker)

    run(scenario)


def test_one_that_takes_too_long_to_load_is_no_more() -> None:
    """Its time is the archive's."""

    async def scenario(worker: Worker) -> None:
        with pytest.raises(ArchiveError, match=r"^m worker 3: the handler took more than 0\.01 s to load$"):
            await worker.start(STAYS, 0.01)
        assert not is_there(worker)

    run(scenario)


def test_one_that_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither end of its socket; who restarts it tries again later, as after any failure."""
    monkeypatch.setattr("sys.executable", "/nowhere")

    async def scenario(worker: Worker) -> None:
        with pytest.raises(ArchiveError, match=r"^m worker 3: cannot be started: .*'/nowhere'"):
            await worker.start("")

    run(scenario)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("receive(); sys.exit(3)", "the handler ended its process with status 3"),
        ("receive(); os.kill(os.getpid(), 9)", "the handler ended its process with signal 9"),
        ("receive(); os.close(link.fileno())" + STAYS, "the handler ended its process with signal 9"),
    ],
)
def test_its_end_is_told_with_the_reason(code: str, reason: str) -> None:
    """Once; a batch that it had read is none that it had not begun with."""

    async def scenario(worker: Worker) -> None:
        await worker.start(LOADED + code)
        worker.ask()
        assert await worker.hears() == [("end", reason, 0)]

    run(scenario)


def test_a_batch_that_it_had_not_read_has_not_begun() -> None:
    """It ends after the first one, when the second lies in its socket."""

    async def scenario(worker: Worker) -> None:
        await worker.start(LOADED + "receive(); link.recv(1, socket.MSG_PEEK); sys.exit(3)")
        worker.ask()
        worker.ask()
        assert await worker.hears() == [("end", "the handler ended its process with status 3", 1)]

    run(scenario)


def test_one_that_hangs_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    """The log says so before its end is told."""

    async def scenario(worker: Worker) -> None:
        await worker.start(LOADED + STAYS)
        worker.ask(0.25)
        assert await worker.hears() == [("end", "the handler took more than 0.25 s", 1)]

    run(scenario)
    assert caplog.messages == ["m worker 3: the handler took more than 0.25 s, its process is killed"]


@pytest.mark.parametrize(("code", "status"), [(ECHO, 0), (STAYS, -9)])
def test_one_that_is_stopped_goes_without_a_word(code: str, status: int) -> None:
    """By itself, or killed if it is at work."""

    async def scenario(worker: Worker) -> None:
        await worker.start(LOADED + code)
        await worker.stop()
        assert worker._process is not None
        # asyncio says 255 where `Popen.send_signal`, which looks first, was told of the end before it.
        assert worker._process.returncode in (status, 255)

    run(scenario)


class Transport:
    """A socket whose other end does nothing."""

    is_paused = False
    is_closed = False

    def writelines(self, parts: Any) -> None: ...

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        assert not self.is_closed
        self.is_paused = False

    def is_closing(self) -> bool:
        return self.is_closed


def expiries(steps: Callable[[Worker, Transport], Coroutine[Any, Any, None]]) -> list[float]:
    """The times, in seconds since the start, at which it is found to hang."""

    async def scenario() -> list[float]:
        loop = asyncio.get_running_loop()
        began_s, found = loop.time(), []
        worker = Worker()
        worker._transport = transport = Transport()  # type: ignore[assignment]
        worker.kill = lambda: found.append(loop.time() - began_s)  # type: ignore[method-assign]
        await steps(worker, transport)
        await asyncio.sleep(100)
        return found

    return run_virtually(scenario())


def answer(worker: Worker, number: int) -> None:
    worker.data_received(b"".join(frames.pack({"batch": number, "replies": [], "metrics": []})))


def test_its_time_runs_from_the_first_batch_and_from_each_answer() -> None:
    """While it has something to answer."""

    async def second_came_later(worker: Worker, transport: Transport) -> None:
        worker.ask(10.0)
        await asyncio.sleep(8)
        worker.ask(10.0)

    async def first_is_answered(worker: Worker, transport: Transport) -> None:
        await second_came_later(worker, transport)
        answer(worker, 1)

    async def all_are_answered(worker: Worker, transport: Transport) -> None:
        await first_is_answered(worker, transport)
        answer(worker, 2)

    async def asked_again(worker: Worker, transport: Transport) -> None:
        await all_are_answered(worker, transport)
        await asyncio.sleep(50)
        worker.ask(5.0)

    async def gone(worker: Worker, transport: Transport) -> None:
        async def ended() -> int:
            return 0

        worker._process = SimpleNamespace(wait=ended)  # type: ignore[assignment]
        worker._loaded.set_result(None)
        worker.ask(10.0)
        worker.connection_lost(None)

    steps = (second_came_later, first_is_answered, all_are_answered, asked_again, gone)
    assert [expiries(one) for one in steps] == [[10.0], [18.0], [], [63.0], []]


def test_who_is_held_up_has_time() -> None:
    """A batch that comes meanwhile does not begin it."""

    async def asked_while_held(worker: Worker, transport: Transport) -> None:
        worker.hold("a caller")
        worker.ask(10.0)
        await asyncio.sleep(20)
        assert transport.is_paused
        worker.let_go("another")
        assert transport.is_paused
        await asyncio.sleep(20)
        worker.let_go("a caller")
        assert not transport.is_paused

    async def gone_while_held(worker: Worker, transport: Transport) -> None:
        worker.ask(10.0)
        worker.hold("a caller")
        transport.is_closed = True
        worker.let_go("a caller")

    async def held_before_its_start(worker: Worker, transport: Transport) -> None:
        worker._transport = None
        worker.hold("a caller")
        worker.let_go("a caller")

    steps = (asked_while_held, gone_while_held, held_before_its_start)
    assert [expiries(one) for one in steps] == [[50.0], [], []]
