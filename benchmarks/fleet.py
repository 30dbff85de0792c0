"""A roll-out to 500 nodes with faults: `python benchmarks/fleet.py [--nodes N] [--seed N]`.

Agents of `torpor edge agent` on real sockets and real disks, synced; time is counted, so that hours pass in minutes. What
stands in for `torpor serve` reads the files that it would serve, and knows which are right (`tests/support/fleet.py`, which
has the faults as well). One server of files and one receiver of reports are all there is besides.

A version goes by steps to all nodes; a third of the nodes cannot run the next one, which is stopped by the reports and
withdrawn. It ends with 1 unless every node serves the good version at the end, and no node would ever have run anything else
than was published.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from simulated_fleet import CHANGES, INTERVAL_S, SHARES, Fleet, drive, fleet_of, start  # noqa: E402
from torpor.edge.course import Do, Terms  # noqa: E402
from torpor.edge.fleet_chart import chart, moments, plot  # noqa: E402
from torpor.edge.reports import Report, read  # noqa: E402
from torpor.edge.repository import offers_of  # noqa: E402
from torpor.edge.rollout import Rollout  # noqa: E402

CANARIES = Rollout(0, {"ring=canary": 10_000})
TERMS = Terms((500, 2500, 10_000), hold_s=900, most_failed=0.05, least=5)


def cannot_run_3(version: str, number: int) -> str:
    return "it answered 500" if version == "3" and number % 3 == 0 else ""


def told(fleet: Fleet, what: str, began_s: float) -> None:
    served = ", ".join(f"{version or 'nothing'} by {count}" for version, count in sorted(fleet.standing().items()))
    print(f"{fleet.now_s / 60:6.0f} min ({time.monotonic() - began_s:4.0f} s) {what}: {served}", flush=True)


def table(fleet: Fleet, reports: list[Report], good: str) -> str:
    lines = [f"{'fault':<10} {'nodes':>5} {'converged':>9}  said"]
    outcomes: dict[str, Counter[str]] = {}
    faults = {node.name: node.fault for node in fleet.nodes}
    for report in reports:
        if report.outcome in ("refused", "waiting"):
            outcomes.setdefault(faults[report.node], Counter())[f"{report.outcome} {report.reason}"] += 1
    for fault in (*SHARES, ""):
        nodes = [node for node in fleet.nodes if node.fault == fault]
        converged = sum(node.version == good for node in nodes)
        text = ", ".join(f"{what} {count}" for what, count in outcomes.get(fault, Counter()).most_common())
        lines.append(f"{fault or 'none':<10} {len(nodes):>5} {converged:>9}  {text}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="A roll-out to a fleet with seeded faults.")
    parser.add_argument("--nodes", type=int, default=500, help="(default 500)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults (default 1)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the good version's course as a PNG")
    options = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-fleet-") as scratch:
        folder = Path(scratch)
        with fleet_of(options.nodes, options.seed, folder, wrong=cannot_run_3, threads=8) as (fleet, publisher, file):
            start(fleet, publisher, "1", Rollout(10_000))
            fleet.old_timestamp = (publisher.repository / "timestamp.json").read_bytes()
            fleet.run_for(4 * INTERVAL_S)
            told(fleet, "installed", began_s)
            fleet.arm(CHANGES)
            start(fleet, publisher, "2", CANARIES)
            good = next(offer for offer in offers_of(publisher.repository).values() if offer.version == "2")
            ended = drive(fleet, publisher, file, TERMS, 300)
            fleet.run_for(2 * INTERVAL_S)
            told(fleet, f"2 rolled out ({ended.value})", began_s)
            fleet.mend()
            fleet.run_for(3 * INTERVAL_S)
            told(fleet, "full disks and wrong clocks mended", began_s)
            start(fleet, publisher, "3", CANARIES)
            stopped = drive(fleet, publisher, file, TERMS, 300)
            told(fleet, f"3 met its bound ({stopped.value})", began_s)
            fleet.run_for(3 * INTERVAL_S)
            told(fleet, "3 withdrawn", began_s)
            fleet.verify()
            reports = read(file)
            behind, course = fleet.behind("2"), moments(reports, good.index.digest)
            print(f"\n{table(fleet, reports, '2')}\n\nversion 2:\n{chart(course)}\n")
            cuts, ran = sum(node.cuts for node in fleet.nodes), len(fleet.violations)
            print(f"{fleet.rounds} looks, {len(reports)} reports, {cuts} power cuts, other bytes that were run: {ran}")
            for line in [*behind, *fleet.violations][:20]:
                print(line)
            if options.plot:
                plot(f"version 2 on {options.nodes} nodes", course, options.plot)
    return 0 if not behind and not ran and ended is Do.END and stopped is Do.STOP else 1


if __name__ == "__main__":
    sys.exit(main())
