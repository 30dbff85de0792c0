"""A small fleet with every kind of fault, on real sockets and disks; its clock is only counted."""

from pathlib import Path

from simulated_fleet import CHANGES, INTERVAL_S, drive, fleet_of, start
from torpor.edge.course import Do, Terms
from torpor.edge.rollout import Rollout


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
