"""What a supervisor decides about its workers, which are played here (`test_processes.py` has real ones)."""

import asyncio
import errno
import itertools
import logging
import math
import os
import re
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torpor.predictors.errors import NotFound, Unavailable
from torpor.predictors.serving import supervisor as supervisor_module
from torpor.predictors.serving.channel import Channel, Handler
from torpor.predictors.serving.data_plane import DataPlane
from torpor.predictors.serving.metrics import ServerMetrics
from torpor.predictors.serving.repository import Repository
from torpor.predictors.serving.supervisor import GIVEN, State, Supervisor, Worker, bound_port
from torpor.predictors.serving.worker import Colleagues
from virtual_time import run_virtually

TIMEOUT_S = 10


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, TIMEOUT_S))


@contextmanager
def supervising(processes: int = 2, worker_timeout_s: float = 30.0) -> Iterator[Supervisor]:
    """A supervisor with a port and without workers."""
    with bound_port("127.0.0.1", 0) as port:
        yield Supervisor([], processes, port, drain_timeout_s=25.0, worker_timeout_s=worker_timeout_s)


def worker_of(supervisor: Supervisor, state: State = State.READY, connections: int = 0) -> Worker:
    """One more worker, by the next number."""
    worker = Worker(len(supervisor._workers) + 1, supervisor._handlers, supervisor._take_back)
    worker.state, worker.connections, worker.was_ready = state, connections, state is not State.STARTING
    supervisor._workers.append(worker)
    return worker


@asynccontextmanager
async def joined(worker: Worker, other: Channel) -> AsyncIterator[None]:
    """The worker's channel leads to another one, until this ends or either is closed."""
    tasks = []
    for channel, end in zip((worker.channel, other), socket.socketpair(), strict=True):
        await channel.open(end)
        tasks.append(asyncio.create_task(channel.run()))
    yield
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


# Failures and ends


class Ends:
    """Workers that end as soon as they are started: with these (was it ready, status), one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ends: tuple[bool, int]) -> None:
        self.started_s: list[float] = []

        async def run(worker: Worker, command: Any) -> int:
            self.started_s.append(asyncio.get_running_loop().time())
            worker.was_ready, status = ends[len(self.started_s) - 1]
            return status

        monkeypatch.setattr(Worker, "run", run)


def kept(supervisor: Supervisor) -> int:
    """The server's status when it has given up."""

    async def story() -> int:
        await supervisor._keep(1)
        assert not supervisor._workers
        return supervisor._status

    return run_virtually(story())


def test_a_worker_that_fails_again_and_again_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five times in a row, each try later than the one before; who was ready in between has begun anew."""
    died, failed = (True, 137), (False, 3)
    ends = Ends(monkeypatch, died, failed, failed, died, *[failed] * 5)
    with supervising(processes=1) as supervisor:
        supervisor._is_open = True
        assert kept(supervisor) == 3
    waits = [after - before for before, after in zip(ends.started_s, ends.started_s[1:], strict=False)]
    assert waits == pytest.approx([0, 1, 2, 0, 1, 2, 4, 8])


def test_a_first_start_that_ends_is_a_failure_whatever_it_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody serves, even if the worker's status is 0."""
    Ends(monkeypatch, (False, 0))
    with supervising(processes=1) as supervisor:
        assert kept(supervisor) == 1
    assert caplog.messages == ["worker 1 has ended with status 0"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_as_many_workers_as_there_are(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """They begin together, are told by the signal that came, and the status is theirs."""
    started: list[int] = []
    told: list[signal.Signals] = []

    async def story() -> int:
        ends = asyncio.Event()

        async def run(worker: Worker, command: Any) -> int:
            started.append(worker.number)
            if len(started) == 3:
                os.kill(os.getpid(), number)
            await ends.wait()
            return 0

        def send_signal(worker: Worker, number: signal.Signals) -> None:
            told.append(number)
            ends.set()

        monkeypatch.setattr(Worker, "run", run)
        monkeypatch.setattr(Worker, "send_signal", send_signal)
        with supervising(processes=3) as supervisor:
            return await asyncio.wait_for(supervisor.run(), TIMEOUT_S)

    assert asyncio.run(story()) == 0
    assert (started, told) == ([1, 2, 3], [number] * 3)


COUNTED = """# HELP a_total x
# TYPE a_total counter
a_total 3.0
# HELP b x
# TYPE b gauge
b 5.0
"""


def test_what_a_worker_leaves_behind_is_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that it had not taken, at once, and what it has counted; how things stood with it is nobody's."""

    async def story() -> None:
        with supervising() as supervisor, socket.socket() as connection:
            supervisor._is_open = True
            living = worker_of(supervisor)
            living._handover, its = socket.socketpair()

            async def dies(worker: Worker, command: Any) -> int:
                worker.untaken.append(connection)
                worker.metrics = COUNTED
                supervisor.stop()
                return 137

            monkeypatch.setattr(Worker, "run", dies)
            with living._handover, its:
                await supervisor._keep(2)
                assert list(living.untaken) == [connection]
            assert "a_total 3.0" in supervisor._retired
            assert "5.0" not in supervisor._retired

    run(story())


def test_one_worker_that_fails_while_all_leave_is_the_servers_status(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever of them ends last; that they end is no error then."""

    async def story() -> int:
        async def run(worker: Worker, command: Any) -> int:
            await asyncio.sleep(worker.number)
            return 1 if worker.number == 1 else 0

        monkeypatch.setattr(Worker, "run", run)
        with supervising() as supervisor:
            supervisor._is_open = True
            keeping = [asyncio.create_task(supervisor._keep(number)) for number in (1, 2)]
            await asyncio.sleep(0)
            supervisor.stop()
            await asyncio.gather(*keeping)
            return supervisor._status

    assert run_virtually(story()) == 1
    assert not caplog.records


def test_a_worker_that_does_not_end_is_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When it has had time to drain, to finish what is in flight, and 5 s; a second signal changes nothing."""

    async def story() -> list[tuple[float, signal.Signals]]:
        loop = asyncio.get_running_loop()
        sent: list[tuple[float, signal.Signals]] = []
        began_s = loop.time()
        with supervising() as supervisor:
            worker = worker_of(supervisor)
            monkeypatch.setattr(worker, "send_signal", lambda number: sent.append((loop.time() - began_s, number)))
            supervisor.stop(signal.SIGTERM)
            await asyncio.sleep(10)
            supervisor.stop(signal.SIGINT)
            await asyncio.sleep(100)
        return sent

    assert run_virtually(story()) == [(0, signal.SIGTERM), (10, signal.SIGINT), (35, signal.SIGKILL)]
    assert caplog.messages == ["worker 1 has not ended in time and is killed"]


LINGERS = "import os, sys, threading; os.close(int(sys.argv[3])); threading.Event().wait()"


def test_a_worker_that_leaves_and_does_not_end_is_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Python waits for each thread that a model has started and is no daemon; nobody would take the worker's place."""
    monkeypatch.setattr(supervisor_module, "_DYING_S", 0.01)

    async def story() -> None:
        with supervising() as supervisor:
            worker = worker_of(supervisor)
            assert await worker.run([sys.executable, "-c", LINGERS]) == 128 + signal.SIGKILL
            worker.send_signal(signal.SIGTERM)  # which comes too late, and is nobody's

    run(story())
    assert caplog.messages == ["worker 1 has left and does not end, and is killed"]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(0)", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", 128 + signal.SIGKILL),
    ],
    ids=["ends", "fails", "is killed"],
)
def test_a_workers_status_is_as_a_shell_has_it(code: str, status: int) -> None:
    """A signal's number is added to 128."""

    async def story() -> None:
        with supervising() as supervisor:
            assert await worker_of(supervisor).run([sys.executable, "-c", code]) == status

    run(story())


LEAVES_A_CHILD = "import os, sys; os.fork() or (os.close(int(sys.argv[4])), open(sys.argv[1]))"
TAKES_TWO = (
    "import os, sys; h = int(sys.argv[3]); os.write(h, b't'); os.read(h, 1); os.write(h, b't'); open(sys.argv[1])"
)


def test_a_worker_is_heard_whose_predecessor_left_a_child(tmp_path: Path) -> None:
    """The child has that one's end of the handover, which does not end so; ours has closed, and the next has its number."""
    gates = [tmp_path / "child", tmp_path / "worker"]
    for gate in gates:
        os.mkfifo(gate)

    async def story() -> None:
        with supervising() as supervisor:
            first, second = (worker_of(supervisor) for _ in range(2))
            assert await first.run([sys.executable, "-c", LEAVES_A_CHILD, str(gates[0])]) == 0
            taken = [asyncio.Event(), asyncio.Event()]
            second.untaken.extend(SimpleNamespace(close=event.set) for event in taken)  # type: ignore[misc]
            running = asyncio.create_task(second.run([sys.executable, "-c", TAKES_TWO, str(gates[1])]))
            await taken[0].wait()
            assert second._handover is not None
            second._handover.send(GIVEN)
            await taken[1].wait()
            for gate in gates:
                gate.open("w").close()
            assert await running == 0

    run(story())


SAYS_ITS_LAST = """
import os, sys
_, handover, calls = map(int, sys.argv[1:])
os.close(calls)
os.read(handover, 1)
os.write(handover, b"t" * 5000)
"""


def test_what_a_worker_says_last_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that it had taken go to nobody else, however many these are, and however late it is listened to."""

    async def story() -> None:
        with supervising() as supervisor, socket.socket() as connection:
            worker = worker_of(supervisor)
            worker.untaken.extend([connection] * 5000)

            async def end(process: asyncio.subprocess.Process) -> int:
                assert worker._handover is not None
                worker._handover.send(GIVEN)
                poll = select.poll()
                poll.register(worker._handover, 0)
                poll.poll()  # until the other end is closed; meanwhile nothing is heard
                return 0

            monkeypatch.setattr(worker, "_end", end)
            await worker.run([sys.executable, "-c", SAYS_ITS_LAST])
            assert not worker.untaken
            assert worker._process is not None
            await worker._process.wait()

    run(story())


def test_a_worker_that_takes_nothing_has_no_room_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs; the supervisor, which has others, does not wait for it."""

    async def story() -> None:
        with supervising() as supervisor, socket.socket() as connection:
            worker = worker_of(supervisor)
            serve = worker.channel.run

            async def fill() -> None:
                given = len([*itertools.takewhile(bool, (worker.give(connection) for _ in itertools.count()))])
                assert worker.connections == len(worker.untaken) == given > 0
                worker.send_signal(signal.SIGKILL)
                await serve()

            monkeypatch.setattr(worker.channel, "run", fill)
            await worker.run([sys.executable, "-c", "import signal; signal.pause()"])

    run(story())


def test_a_worker_that_has_left_is_given_nothing() -> None:
    """It sees that by the end of its handover, and the others have what comes."""

    async def story() -> None:
        with supervising() as supervisor:
            leaving, other = (worker_of(supervisor, State.DRAINING) for _ in range(2))
            leaving._handover, its = socket.socketpair()
            with leaving._handover, its:
                await supervisor._handlers(leaving)["leave"](None)
                assert its.recv(1) == b""
            assert supervisor._takers() == [other]

    run(story())


# Silence


class Watched:
    """A worker that has just become ready; each answer takes it so long, in seconds, and the first as long as `first_s`."""

    def __init__(self, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, first_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.began_s = self.loop.time()
        self.answers_s = first_s
        self.asked = 0
        self.killed_s: float | None = None
        supervisor._is_open = True  # without the port
        self.worker = worker_of(supervisor, State.STARTING)
        self.worker.channel = SimpleNamespace(call=self._call)  # type: ignore[assignment]
        self._gone = self.loop.create_future()
        monkeypatch.setattr(self.worker, "send_signal", self._killed)

    async def _call(self, name: str) -> None:
        assert name == "live"
        self.asked += 1
        answers_s, self.answers_s = self.answers_s, 0.0
        await asyncio.wait([self._gone], timeout=answers_s)
        if self._gone.done():
            raise Unavailable("it has ended")

    def _killed(self, number: signal.Signals) -> None:
        assert number is signal.SIGKILL
        self.killed_s = self.loop.time() - self.began_s
        self._gone.set_result(None)


def test_a_worker_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """After its time, with a reason in the log; until then others are given connections before it, and after it alone."""

    async def story() -> None:
        with supervising() as supervisor:
            watched = Watched(supervisor, monkeypatch, first_s=math.inf)
            busy = worker_of(supervisor, connections=5)
            await supervisor._handlers(watched.worker)["ready"]({})
            assert supervisor._takers() == [watched.worker, busy]
            await asyncio.sleep(4)
            assert supervisor._takers() == [busy, watched.worker]
            await asyncio.sleep(40)
            assert watched.killed_s == pytest.approx(30)
            assert supervisor._takers() == [busy]
            assert watched.asked == 1

    run_virtually(story())
    (record,) = caplog.records
    assert record.getMessage() == "worker 1 has not answered for 30 s: it hangs, and is killed"


def test_a_worker_that_answers_late_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Native code may keep the interpreter for long, and then goes on; it is asked again, and is like the others."""

    async def story() -> None:
        with supervising() as supervisor:
            watched = Watched(supervisor, monkeypatch, first_s=29)
            await supervisor._handlers(watched.worker)["ready"]({})
            await asyncio.sleep(60)
            assert watched.killed_s is None
            assert watched.asked > 5
            assert not watched.worker.is_silent
            watched.answers_s = math.inf
            await asyncio.sleep(60)
            assert watched.killed_s is not None

    run_virtually(story())


def test_a_machine_that_stood_still_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an hour of a paused container both go on, and the worker has its time, less what it had used of it before."""

    async def story() -> None:
        with supervising() as supervisor:
            watched = Watched(supervisor, monkeypatch, first_s=3600 + 20)
            await supervisor._handlers(watched.worker)["ready"]({})
            await asyncio.sleep(1)
            watched.loop.now += 3600  # type: ignore[attr-defined]
            await asyncio.sleep(100)
            assert watched.killed_s is None

    run_virtually(story())


def test_a_worker_without_a_limit_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 is none; nor is one asked that is still starting, whose imports may keep the interpreter's lock."""

    async def story() -> None:
        for worker_timeout_s, is_ready in ((0.0, True), (30.0, False)):
            with supervising(worker_timeout_s=worker_timeout_s) as supervisor:
                watched = Watched(supervisor, monkeypatch, first_s=math.inf)
                supervisor._changes = {} if is_ready else {"m": True}
                await supervisor._handlers(watched.worker)["ready"]({})
                await asyncio.sleep(100)
                assert not watched.asked

    run_virtually(story())


# Connections


def test_the_least_busy_of_those_that_are_ready_come_first() -> None:
    """Who drains is asked when nobody is ready, and who has no descriptor left never."""

    async def story() -> None:
        with supervising() as supervisor:
            assert not supervisor._takers()
            draining = worker_of(supervisor, State.DRAINING)
            worker_of(supervisor, State.STARTING)
            worker_of(supervisor, State.CLOSED)
            assert supervisor._takers() == [draining]
            busy, idle, full = (worker_of(supervisor, connections=count) for count in (5, 1, 0))
            full.is_full = True
            assert supervisor._takers() == [idle, busy]
            idle.is_full = busy.is_full = True
            assert not supervisor._takers()

    run(story())


def test_a_connection_that_nobody_takes_waits_for_somebody(caplog: pytest.LogCaptureFixture) -> None:
    """The worker that it was meant for has just died; another one, which comes later, gets it."""
    caplog.set_level(logging.INFO)

    async def story() -> None:
        with supervising() as supervisor:
            dead, living = (worker_of(supervisor, state) for state in (State.READY, State.STARTING))
            (dead._handover, gone), (living._handover, its) = socket.socketpair(), socket.socketpair()
            gone.close()
            its.setblocking(False)
            supervisor._open()
            port = supervisor._port.getsockname()[1]
            assert re.fullmatch(rf"ready in 0\.\d\d s: 2 processes on 127\.0\.0\.1:{port}", *caplog.messages)
            with dead._handover, living._handover, its, socket.socket() as caller:
                caller.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(caller, supervisor._port.getsockname())
                supervisor._accept()
                assert len(supervisor._held) == 1
                living.state = State.READY
                assert await loop.sock_recv(its, 16) == GIVEN
                (taken,) = living.untaken
                assert taken.getpeername() == caller.getsockname()
                taken.close()
            loop.remove_reader(supervisor._port)

    run(story())


@asynccontextmanager
async def calling(supervisor: Supervisor) -> AsyncIterator[tuple[Worker, socket.socket]]:
    """Somebody has called a port that is open. A worker that is not ready, and its end of the handover."""
    worker = worker_of(supervisor, State.STARTING)
    worker._handover, its = socket.socketpair()
    its.setblocking(False)
    loop = asyncio.get_running_loop()
    supervisor._port.listen()
    with worker._handover, its, socket.socket() as caller:
        caller.setblocking(False)
        await loop.sock_connect(caller, supervisor._port.getsockname())
        yield worker, its
        loop.remove_reader(supervisor._port)
        for connection in worker.untaken:
            connection.close()


def test_connections_stay_in_the_backlog_while_nobody_is_ready() -> None:
    """They would each cost a descriptor here."""

    async def story() -> None:
        with supervising() as supervisor:
            async with calling(supervisor) as (worker, its):
                supervisor._accept()
                assert not supervisor._held
                worker.state = State.READY
                assert await asyncio.get_running_loop().sock_recv(its, 16) == GIVEN
                supervisor._accept()  # nobody else has called, which is no error

    run(story())


def test_a_connection_for_which_no_descriptor_is_left_waits(caplog: pytest.LogCaptureFixture) -> None:
    """In the backlog, from which it comes when there is one again."""

    async def story() -> None:
        with supervising() as supervisor:
            async with calling(supervisor) as (worker, its):
                worker.state = State.READY
                port = supervisor._port

                def accept() -> Any:
                    supervisor._port = port
                    raise OSError(errno.EMFILE, "Too many open files")

                supervisor._port = SimpleNamespace(accept=accept, fileno=port.fileno)  # type: ignore[assignment]
                supervisor._accept()
                assert not worker.untaken
                loop = asyncio.get_running_loop()
                assert await loop.sock_recv(its, 16) == GIVEN
                with socket.socket() as another:
                    another.setblocking(False)
                    await loop.sock_connect(another, port.getsockname())
                    assert await loop.sock_recv(its, 16) == GIVEN

    run(story())
    assert caplog.messages == ["accept: [Errno 24] Too many open files"]


def test_a_connection_that_a_worker_had_no_descriptor_for_goes_to_another() -> None:
    """Nothing else need happen at the port for that; and so the next time."""

    async def story() -> None:
        with supervising() as supervisor, socket.socket() as connection:
            worker = worker_of(supervisor)
            worker._handover, its = socket.socketpair()
            its.setblocking(False)
            with worker._handover, its:
                supervisor._open()
                for _ in range(2):
                    supervisor._take_back(connection)
                    assert await asyncio.get_running_loop().sock_recv(its, 16) == GIVEN
            asyncio.get_running_loop().remove_reader(supervisor._port)

    run(story())


def test_connections_are_let_in_when_all_are_ready() -> None:
    """Not before."""

    async def story() -> None:
        with supervising(worker_timeout_s=0) as supervisor:
            address = supervisor._port.getsockname()
            first, second = (worker_of(supervisor, State.STARTING) for _ in range(2))
            first._handover, its = socket.socketpair()
            its.setblocking(False)
            with first._handover, its:
                assert await supervisor._handlers(first)["ready"]({}) == {}
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(address)
                assert await supervisor._handlers(second)["ready"]({}) == {}
                assert (supervisor._is_open, first.was_ready, second.state) == (True, True, State.READY)
                second.is_full = True
                loop = asyncio.get_running_loop()
                with socket.create_connection(address):
                    assert await loop.sock_recv(its, 16) == GIVEN
                first.untaken.pop().close()
            loop.remove_reader(supervisor._port)

    run(story())


class Limits:
    """What workers are told to keep, as "number: most"."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []

        async def limit(worker: Worker, most: int | None) -> None:
            worker.most = most
            self.told.append(f"{worker.number}: {most}")

        monkeypatch.setattr(Worker, "limit", limit)

    async def after(self, seconds: float) -> list[str]:
        """What was told meanwhile."""
        self.told.clear()
        await asyncio.sleep(seconds)
        return [*self.told]


def test_a_new_worker_is_passed_connections_until_it_has_about_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client with many that are idle takes one of those, and the new worker would get none of half of them."""

    async def story() -> None:
        limits = Limits(monkeypatch)
        with supervising(processes=3) as supervisor:
            busy, small, new = (worker_of(supervisor, connections=count) for count in (90, 10, 0))
            supervisor._even_out()
            assert await limits.after(0.5) == ["1: 34"]
            busy.connections = 34
            assert await limits.after(1.0) == ["1: 15"]
            busy.connections, new.connections = 15, 12
            assert await limits.after(1.0) == ["1: None"]
            small.connections = 0
            assert await limits.after(100.0) == []

    run_virtually(story())


def test_who_has_its_share_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes to it later would end with the next answer."""

    async def story() -> None:
        limits = Limits(monkeypatch)
        with supervising(processes=3) as supervisor:
            for count in (68, 34, 0):
                worker_of(supervisor, connections=count)
            supervisor._even_out()
            assert await limits.after(0.5) == ["1: 34"]

    run_virtually(story())


def test_connections_stay_where_nobody_has_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one is not passed back and forth, and nobody asks again."""

    async def story() -> None:
        limits = Limits(monkeypatch)
        with supervising() as supervisor:
            supervisor._even_out()
            for counts in ((1, 0), (4, 3), (3, 3)):
                supervisor._workers.clear()
                for count in counts:
                    worker_of(supervisor, connections=count)
                supervisor._even_out()
                assert supervisor._evening_out is None
                assert await limits.after(0) == []

    run_virtually(story())


@pytest.mark.parametrize(("fewest", "told"), [(6, []), (5, ["1: 8"])])
def test_three_quarters_of_its_share_are_enough(monkeypatch: pytest.MonkeyPatch, fewest: int, told: list[str]) -> None:
    """Of sixteen and of fifteen connections."""

    async def story() -> None:
        limits = Limits(monkeypatch)
        with supervising() as supervisor:
            worker_of(supervisor, connections=10)
            worker_of(supervisor, connections=fewest)
            supervisor._even_out()
            assert await limits.after(0.5) == told

    run_virtually(story())


def test_a_worker_that_becomes_ready_is_passed_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on."""

    async def story() -> None:
        limits = Limits(monkeypatch)
        with supervising(worker_timeout_s=0) as supervisor:
            supervisor._is_open = True
            worker_of(supervisor, connections=4)
            new = worker_of(supervisor, State.STARTING)
            await supervisor._handlers(new)["ready"]({})
            assert await limits.after(0.5) == ["1: 2"]

    run_virtually(story())


def test_a_worker_that_is_left_alone_keeps_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the new one drains or dies, it would end the connections beyond half of them with each answer."""

    async def story() -> None:
        limits = Limits(monkeypatch)
        with supervising() as supervisor:
            worker_of(supervisor, connections=8)
            new = worker_of(supervisor)
            supervisor._even_out()
            assert await limits.after(0.5) == ["1: 4"]
            await supervisor._handlers(new)["drain"](None)
            assert await limits.after(0.1) == ["1: None"]  # at once, and not when the shares are looked at again
            supervisor._workers.remove(new)
            supervisor._workers[0].most = 4

            async def dies(worker: Worker, command: Any) -> int:
                supervisor.stop()
                return 137

            monkeypatch.setattr(Worker, "run", dies)
            await supervisor._keep(2)
            assert await limits.after(0.5) == ["1: None"]

    run_virtually(story())


def test_a_worker_keeps_as_many_connections_as_it_is_told() -> None:
    """None is all of them; a worker that is ending is told nothing."""

    async def story() -> None:
        with supervising() as supervisor:
            worker = worker_of(supervisor)
            colleagues = Colleagues(Repository(Nothing(), DataPlane("0"), may_change=True), ServerMetrics())
            async with joined(worker, colleagues.channel):
                await worker.limit(4)
                assert (worker.most, colleagues.most_connections) == (4, 4)
                await worker.limit(None)
                assert colleagues.most_connections == math.inf
            await worker.limit(4)

    run(story())


# Metrics


def test_a_worker_that_does_not_tell_its_metrics_counts_as_before(caplog: pytest.LogCaptureFixture) -> None:
    """One that hangs, one that has just ended; one that has never been ready has none."""

    async def never(_: str) -> str:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def gone(_: str) -> str:
        raise Unavailable("it has ended")

    async def tells(_: str) -> str:
        return "new"

    async def story() -> list[tuple[str, str]]:
        with supervising() as supervisor:
            for call in (never, gone, tells):
                worker = worker_of(supervisor)
                worker.metrics, worker.channel = "old", SimpleNamespace(call=call)  # type: ignore[assignment]
            worker_of(supervisor, State.STARTING).channel = SimpleNamespace(call=tells)  # type: ignore[assignment]
            return await supervisor._metrics()

    assert run_virtually(story()) == [("", ""), ("1", "old"), ("2", "old"), ("3", "new")]
    reasons = [message.removeprefix("worker ") for message in caplog.messages]
    assert reasons == ["1 does not tell its metrics: ", "2 does not tell its metrics: it has ended"]


# Changes


class Nothing:
    """A catalog without models: all that can be done is unload."""

    def names(self) -> list[str]:
        return []

    def model(self, name: str) -> Any:
        raise AssertionError


def test_a_worker_follows_what_was_changed_before_it_is_ready() -> None:
    """Also what was changed after it had asked, and then it counts as ready."""

    async def story() -> None:
        with supervising(processes=2) as supervisor:
            supervisor._changes = {"a": False, "b": False}
            repository = Repository(Nothing(), DataPlane("0"), may_change=True)
            await repository.load_all({"a": False})
            assert repository.changes == {"a": False}  # nothing is followed twice
            colleagues = Colleagues(repository, ServerMetrics())
            worker = worker_of(supervisor, State.STARTING)
            async with joined(worker, colleagues.channel):
                await colleagues.become_ready()
                assert repository.changes == {"a": False, "b": False}
                assert worker.state is State.READY

    run(story())


def test_a_worker_that_comes_during_a_change_follows_it() -> None:
    """It is not one of those that change together, and does not count as ready before they have."""

    async def story() -> None:
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def prepare(_: Any) -> None:
            begun.set()
            await may_end.wait()

        async def commit(_: Any) -> None:
            pass

        with supervising() as supervisor:
            old, new = (worker_of(supervisor, state) for state in (State.READY, State.STARTING))
            handlers: dict[str, Handler] = {"prepare": prepare, "commit": commit}
            its, comes = Channel(handlers), Channel({})
            async with joined(old, its), joined(new, comes):
                changing = asyncio.create_task(its.call("change", ["m", True]))
                await begun.wait()
                ready = asyncio.create_task(comes.call("ready", {}))
                await comes.call("changes")  # what was called before has begun as well
                may_end.set()
                await changing
                assert await ready == {"m": True}
                assert new.state is State.STARTING

    run(story())


def test_changes_are_made_one_after_the_other() -> None:
    """Two callers at two workers would else prepare and commit across each other."""

    async def story() -> None:
        steps: list[str] = []

        async def prepare(change: tuple[str, bool]) -> None:
            steps.append(f"prepare {change[0]}")
            await asyncio.sleep(0)

        async def commit(change: tuple[str, bool]) -> None:
            steps.append(f"commit {change[0]}")

        with supervising() as supervisor:
            worker = worker_of(supervisor, State.DRAINING)  # it still answers, and so it changes too
            its = Channel({"prepare": prepare, "commit": commit})
            async with joined(worker, its):
                await asyncio.gather(*(its.call("change", [name, True]) for name in "ab"))
        assert steps == ["prepare a", "commit a", "prepare b", "commit b"]

    run(story())


def test_a_change_that_one_cannot_prepare_is_made_by_nobody() -> None:
    """Whoever asked is told why, when all have said what they can, and all forget it."""

    async def story() -> None:
        told: list[str] = []
        may_end = asyncio.Event()

        async def prepare(_: Any) -> None:
            await may_end.wait()
            told.append("prepared")

        async def fail(_: Any) -> None:
            may_end.set()
            raise NotFound("no such model")

        async def abort(name: str) -> None:
            told.append(f"abort {name}")

        with supervising() as supervisor:
            able, unable = Channel({"prepare": prepare, "abort": abort}), Channel({"prepare": fail, "abort": abort})
            async with joined(worker_of(supervisor), able), joined(worker_of(supervisor), unable):
                with pytest.raises(NotFound, match="no such model"):
                    await able.call("change", ["m", True])
            assert told == ["prepared", "abort m", "abort m"]
            assert supervisor._changes == {}

    run(story())


DIES_OF_A_CHANGE = "import os, sys; os.read(int(sys.argv[3]), 1)"


def test_a_worker_that_dies_of_a_change_holds_back_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that takes its place follows."""

    async def story() -> None:
        async def done(_: Any) -> None:
            pass

        with supervising() as supervisor:
            dying = worker_of(supervisor)
            serve, is_there = dying.channel.run, asyncio.Event()

            async def run() -> None:
                is_there.set()
                await serve()

            monkeypatch.setattr(dying.channel, "run", run)
            running = asyncio.create_task(dying.run([sys.executable, "-c", DIES_OF_A_CHANGE]))
            its = Channel({"prepare": done, "commit": done})
            async with joined(worker_of(supervisor), its):
                await is_there.wait()
                await its.call("change", ["m", True])
            assert await running == 0
            assert supervisor._changes == {"m": True}

    run(story())


def test_a_worker_that_does_not_do_what_all_have_prepared_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The others have, and so the caller is told that it is done."""

    async def prepare(_: Any) -> None:
        pass

    async def commit(_: Any) -> None:
        raise NotFound("no such model")

    async def story() -> None:
        with supervising() as supervisor:
            its = Channel({"prepare": prepare, "commit": commit})
            async with joined(worker_of(supervisor), its):
                await its.call("change", ["m", True])
            assert supervisor._changes == {"m": True}

    run(story())
    assert caplog.messages == ["a worker did not change model m: no such model"]


# The port


def test_a_port_is_free_again_at_once() -> None:
    """Connections that the server has closed linger for a minute, and would keep a restart from it."""
    with bound_port("127.0.0.1", 0) as port:
        port.listen()
        address = port.getsockname()
        with socket.create_connection(address) as caller:
            port.setblocking(True)
            port.accept()[0].close()
            assert caller.recv(1) == b""
    with bound_port(*address) as port:
        assert port.getsockname() == address


def test_a_port_that_is_taken_is_an_error() -> None:
    """Of the system, with its number."""
    with bound_port("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(OSError, match="Address already in use") as raised:
            bound_port(*taken.getsockname())
    assert raised.value.errno == errno.EADDRINUSE
