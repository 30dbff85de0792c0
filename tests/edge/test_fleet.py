"""A small fleet with every kind of fault, on real sockets and disks; its clock is only counted."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from edge_bundles import NAME, Publisher
from fleet import INTERVAL_S, Fleet
from mirrors import Mirrors
from torpor.edge.course import Do, Terms, order
from torpor.edge.layout import Layout
from torpor.edge.receiver import Receiver
from torpor.edge.reports import read, standing
from torpor.edge.repository import begin_rollout, change_rollout, offers_of, withdraw
from torpor.edge.rollout import NEXT, Rollout

TARGET = f"{NAME}/any"
CHANGES = 60
"""Of the disk, that an update makes at least."""


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


def test_every_node_converges_and_nothing_bad_ever_runs(tmp_path: Path) -> None:
    """A version by steps to all nodes, of which some have bad links, disks, clocks and mirrors; then a bad one, which stops by
    itself and is taken back.
    """

    def wrong(version: str, number: int) -> str:
        return "it answered 500" if version == "3" and number % 3 == 0 else ""

    with fleet_of(80, 7, tmp_path, wrong=wrong, syncs=False) as (fleet, publisher, reports):
        start(fleet, publisher, "1", Rollout(10_000))
        fleet.old_timestamp = (publisher.repository / "timestamp.json").read_bytes()
        fleet.run_for(4 * INTERVAL_S)
        assert fleet.standing() == {"1": 80}
        fleet.arm(CHANGES)
        terms = Terms((500, 2500, 10_000), hold_s=600, most_failed=0.1, least=3)
        start(fleet, publisher, "2", Rollout(0, {"ring=canary": 10_000}))
        assert drive(fleet, publisher, reports, terms, 120) is Do.END
        fleet.run_for(4 * INTERVAL_S)
        assert {node.fault for node in fleet.nodes if node.version == "1"} == {"full", "clock"}
        fleet.mend()
        fleet.run_for(4 * INTERVAL_S)
        assert fleet.behind("2") == []
        assert all(node.cuts for node in fleet.nodes if node.fault == "power")
        start(fleet, publisher, "3", Rollout(0, {"ring=canary": 10_000}))
        assert drive(fleet, publisher, reports, terms, 120) is Do.STOP
        assert 0 < fleet.standing()["3"] < 40
        fleet.run_for(4 * INTERVAL_S)
        assert fleet.behind("2") == []
        fleet.verify()
        assert fleet.violations == []
