"""A fleet of agents on one machine: real sockets and real disks, and a clock that is only counted.

Each node is an `Agent` with a folder of its own; servers and receiver are real ones on the loopback interface. What stands in
for `torpor serve` reads all files of what is installed, as a start does, and compares them with what was published: a node that
would run anything else is written down. The faults are of a seed:

    slow      every answer of every mirror breaks off after SLOW_BYTES
    power     at a change of the disk the power goes; of what was not synced a part is there afterwards, torn
    tampered  one of the two mirrors gives other bytes, other metadata, or old metadata
    full      the disk is full, from `arm` to `mend`
    clock     in 1970, days behind, days ahead or, from `arm` to `mend`, years ahead, when nothing is valid
"""

import errno
import hashlib
import heapq
import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from edge_bundles import NAME, NOW, Publisher, files
from failing_disk import RecordedDisk, Unsynced
from mirrors import Answer, Mirrors
from torpor.edge.agent import Agent, Identity
from torpor.edge.course import Do, Terms, order
from torpor.edge.disk import Disk
from torpor.edge.layout import Layout
from torpor.edge.node import Node
from torpor.edge.origin import Origin
from torpor.edge.receiver import Receiver
from torpor.edge.reports import read, standing
from torpor.edge.repository import begin_rollout, change_rollout, offers_of, publish, withdraw
from torpor.edge.rollout import NEXT, Member, Rollout

TARGET = f"{NAME}/any"
CHANGES = 60
"""Of the disk, that an update makes at least."""

INTERVAL_S = 300.0
WINDOW_S = 15.0
SLOW_BYTES = 3000
SHARES = {"slow": 0.05, "power": 0.02, "tampered": 0.01, "full": 0.01, "clock": 0.05}
YEARS_AHEAD = timedelta(days=4000)
CLOCKS = (datetime(1970, 1, 1, tzinfo=NOW.tzinfo) - NOW, timedelta(days=-3), timedelta(days=9), YEARS_AHEAD)
TAMPERINGS = ("blob", "metadata", "old")


class PowerCut(BaseException):
    """Nothing runs after it."""


class CutDisk(RecordedDisk):
    """The power goes before change number `at`."""

    def __init__(self, root: Path, at: int) -> None:
        super().__init__(root)
        self._at = at

    def _step(self) -> None:
        if len(self.changes) >= self._at:
            raise PowerCut

    def make_folder(self, path: Path) -> None:
        self._step()
        super().make_folder(path)

    def open(self, path: Path, mode: int) -> int:
        self._step()
        return super().open(path, mode)

    def write(self, file: int, offset: int, data: bytes) -> None:
        self._step()
        super().write(file, offset, data)

    def cut(self, file: int, size: int) -> None:
        self._step()
        super().cut(file, size)

    def sync(self, file: int) -> None:
        self._step()
        super().sync(file)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def link(self, path: Path, target: str) -> None:
        self._step()
        super().link(path, target)

    def remove(self, path: Path) -> None:
        self._step()
        super().remove(path)


def full_disk(kind: type[Disk], says_so: bool, most: int = 2500) -> Disk:
    """A disk that takes files of so many bytes, and what the agent and the node know. says_so: in its free bytes, too."""

    class Full(kind):  # type: ignore[misc, valid-type]
        def free_bytes(self, path: Path) -> int:
            return 1000 if says_so else 1 << 40

        def write(self, file: int, offset: int, data: bytes) -> None:
            if offset + len(data) > most and not self._is_state(file):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().write(file, offset, data)

        def _is_state(self, file: int) -> bool:
            return os.readlink(f"/proc/self/fd/{file}").endswith(".json.new")

    return Full()


@dataclass
class SimulatedNode:
    """fault: '' for none. turn: which one of those with this fault it is. clock: how far it is ahead."""

    number: int
    root: Path
    fault: str
    chance: random.Random
    disk: Disk
    clock: timedelta = timedelta()
    turn: int = 0
    agent: Agent | None = None
    stack: ExitStack = field(default_factory=ExitStack)
    cuts: int = 0

    @property
    def name(self) -> str:
        return f"node-{self.number:03}"

    @property
    def version(self) -> str:
        current = Node(self.root).current()
        return current.version if current else ""


class Fleet:
    """folder: for the nodes. url: where a mirror of a name is; reports: the receiver's URL. syncs: whether disks are synced.
    wrong: what a version answers on a node; '' for all is well.
    """

    def __init__(
        self,
        folder: Path,
        publisher: Publisher,
        size: int,
        seed: int,
        url: Callable[[str], str],
        reports: str,
        wrong: Callable[[str, int], str] = lambda version, number: "",
        syncs: bool = True,
        threads: int = 1,
    ) -> None:
        chance = random.Random(seed)
        self._folder, self._publisher, self._url, self._reports = folder, publisher, url, reports
        self._wrong, self._syncs = wrong, syncs
        self._pool = ThreadPoolExecutor(threads)
        self.now_s = 0.0
        self.good: dict[str, dict[str, str]] = {}
        self.violations: list[str] = []
        self.old_timestamp = b""
        self.rounds = 0
        faults = [fault for fault, share in SHARES.items() for _ in range(max(1, round(share * size)))]
        faults += [""] * (size - len(faults))
        chance.shuffle(faults)
        counted: Counter[str] = Counter()
        self.nodes = []
        for number, fault in enumerate(faults):
            node = SimulatedNode(
                number, folder / f"{number:03}", fault, random.Random(seed * 1000 + number), self._plain()
            )
            turn, counted[fault] = counted[fault], counted[fault] + 1
            node.turn = turn
            if fault == "clock" and CLOCKS[turn % len(CLOCKS)] != YEARS_AHEAD:
                node.clock = CLOCKS[turn % len(CLOCKS)]
            self.nodes.append(node)
        self._due = [(node.chance.uniform(0, INTERVAL_S), node.number) for node in self.nodes]
        heapq.heapify(self._due)

    def _plain(self) -> Disk:
        return Disk() if self._syncs else Unsynced()

    @contextmanager
    def running(self) -> Iterator["Fleet"]:
        try:
            yield self
        finally:
            self._pool.shutdown()
            for node in self.nodes:
                node.stack.close()

    def now(self, node: SimulatedNode | None = None) -> datetime:
        return NOW + timedelta(seconds=int(self.now_s)) + (node.clock if node else timedelta())

    def publish(self, version: str, last: float) -> Path:
        """Make a bundle and put its blobs into the repository; what it holds is what nodes may run from now on."""
        bundle = self._publisher.bundle_only(version, last, built=self.now())
        with Layout.at(bundle) as layout:
            publish(self._publisher.repository, layout)
            parts = layout.contents(layout.index())
        for component in parts.components:
            for file in component.placed():
                data = b"".join((bundle / part.path).read_bytes() for part in file.parts)
                self.good.setdefault(version, {})[file.path] = hashlib.sha256(data).hexdigest()
        return bundle

    # Time

    def run_for(self, seconds: float) -> None:
        """Let every agent look that is due in this time."""
        end_s = self.now_s + seconds
        while self._due and self._due[0][0] <= end_s:
            self.now_s = self._due[0][0]
            batch = []
            while self._due and self._due[0][0] <= min(end_s, self.now_s + WINDOW_S):
                at_s, number = heapq.heappop(self._due)
                batch.append(self.nodes[number])
                heapq.heappush(self._due, (at_s + INTERVAL_S * self.nodes[number].chance.uniform(0.5, 1.5), number))
            list(self._pool.map(self._look, batch))
            self.rounds += len(batch)
        self.now_s = end_s

    def _look(self, node: SimulatedNode) -> None:
        try:
            if node.agent is None:
                self._boot(node)
            assert node.agent is not None
            node.agent.round()
        except PowerCut:
            self._after_cut(node)

    def _boot(self, node: SimulatedNode) -> None:
        mirrors = [Origin(self._url(f"{node.name}.{number}")) for number in (0, 1)]
        member = Member(node.name, {"ring": "canary" if node.number % 20 == 0 else "rest"})
        node.agent = Agent(
            node.root, Identity(member, NAME, self._publisher.root), mirrors, lambda generation: self._bring_up(node),
            lambda: self.now(node), Origin(self._reports), disk=node.disk,
        )  # fmt: skip
        node.stack.enter_context(node.agent.alone())

    def _bring_up(self, node: SimulatedNode) -> str:
        """In place of `torpor serve` and its smoke request."""
        version = node.version
        found = {path: hashlib.sha256(data).hexdigest() for path, data in files(node.root).items()}
        if found != self.good.get(version):
            self.violations.append(f"{node.name} would run another {version}")
        return self._wrong(version, node.number)

    # Faults

    def spoil(self, answer: Answer) -> None:
        """For `Mirrors`."""
        name, _, mirror = answer.whom.partition(".")
        node = self.nodes[int(name.removeprefix("node-"))]
        if node.fault == "slow" and len(answer.body) > SLOW_BYTES:
            answer.cut = SLOW_BYTES
        if node.fault == "tampered" and mirror == "0" and answer.status in (200, 206):
            self._tamper(answer, TAMPERINGS[node.turn % len(TAMPERINGS)])

    def _tamper(self, answer: Answer, how: str) -> None:
        is_blob = answer.path.startswith("blobs/")
        if (how == "blob" and is_blob) or (how == "metadata" and answer.path.endswith(".targets.json")):
            answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])
        elif how == "old" and answer.path == "timestamp.json":
            answer.body = self.old_timestamp or answer.body

    def arm(self, most_changes: int) -> None:
        """From here on disks are full, clocks run years ahead, and at some change of the next update the power goes."""
        for node in self.nodes:
            if node.fault == "power":
                self._change_disk(node, CutDisk(node.root, node.chance.randrange(most_changes)))
            elif node.fault == "full":
                self._change_disk(node, full_disk(Disk if self._syncs else Unsynced, says_so=node.turn % 2 == 0))
            elif node.fault == "clock" and CLOCKS[node.turn % len(CLOCKS)] == YEARS_AHEAD:
                node.clock = YEARS_AHEAD

    def _change_disk(self, node: SimulatedNode, disk: Disk) -> None:
        node.stack.close()
        node.agent, node.disk = None, disk

    def _after_cut(self, node: SimulatedNode) -> None:
        disk = node.disk
        assert isinstance(disk, CutDisk)
        node.stack.close()
        node.agent, node.cuts = None, node.cuts + 1
        after = node.root.with_name(node.root.name + ".after")
        disk.after_cut(len(disk.changes), node.chance, 0.5, after)
        shutil.rmtree(node.root)
        after.rename(node.root)
        node.disk = self._plain()

    def mend(self) -> None:
        """Somebody frees the disks and sets the clocks that run years ahead."""
        for node in self.nodes:
            if node.fault == "full":
                self._change_disk(node, self._plain())
            elif node.clock == YEARS_AHEAD:
                node.clock = timedelta()

    # What became of it

    def standing(self) -> Counter[str]:
        """How many nodes serve which version."""
        return Counter(node.version for node in self.nodes)

    def behind(self, version: str) -> list[str]:
        """Nodes that do not serve it, with their faults."""
        return [f"{node.name} {node.fault}: {node.version}" for node in self.nodes if node.version != version]

    def verify(self) -> None:
        """Read what every node serves, once more."""
        for node in self.nodes:
            self._bring_up(node)


# The operator's side


@contextmanager
def fleet_of(size: int, seed: int, folder: Path, **more: object) -> Iterator[tuple[Fleet, Publisher, Path]]:
    publisher = Publisher(folder / "publisher")
    reports = folder / "reports.jsonl"
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver(("127.0.0.1", 0), reports, 1 << 30, lambda: fleet.now()))
        thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        stack.callback(thread.join)
        stack.callback(receiver.shutdown)
        mirrors = stack.enter_context(Mirrors(publisher.repository).running())
        url = f"http://127.0.0.1:{receiver.server_port}/"
        fleet = Fleet(folder / "nodes", publisher, size, seed, mirrors.url, url, **more)  # type: ignore[arg-type]
        mirrors.spoil = fleet.spoil
        yield stack.enter_context(fleet.running()), publisher, reports


def start(fleet: Fleet, publisher: Publisher, version: str, rollout: Rollout) -> None:
    with Layout.at(fleet.publish(version, float(version))) as layout:
        begin_rollout(publisher.repository, layout.index(), rollout, publisher.keys, fleet.now(), 10)


def drive(fleet: Fleet, publisher: Publisher, reports: Path, terms: Terms, minutes: int) -> Do:
    """As `torpor edge rollout watch --withdraw` does, looking once a minute."""
    raised_s = fleet.now_s
    for _ in range(minutes):
        fleet.run_for(60)
        offer = offers_of(publisher.repository)[TARGET + NEXT]
        assert offer.rollout is not None
        given = order(offer.rollout, standing(read(reports), offer.index.digest), fleet.now_s - raised_s, terms)
        if given.what is Do.RAISE:
            change_rollout(
                publisher.repository, TARGET, lambda rollout, to=given.share: rollout.raised(to, {}), publisher.keys,
                fleet.now(), 10,
            )  # fmt: skip
            raised_s = fleet.now_s
        elif given.what is Do.STOP:
            withdraw(publisher.repository, TARGET, publisher.keys, fleet.now(), 10)
            return given.what
        elif given.what is Do.END:
            return given.what
    return Do.WAIT
