"""The benchmark's command: `run.py [NAME ...] [--json FILE]`.

Run it by its path, never with `python -m` from the repository's root: that would put the repository's own packages
before the installed ones.

Rounds are interleaved: in each round every line is measured once, and medians over the rounds are quoted, since a small
machine drifts by more than the differences that matter. Compare ratios of one run, never rates of two.

It ends with 0 when every measured target holds, 1 when one is missed, 2 when any answer was wrong or refused.
"""

import argparse
import fcntl
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from environments import UnavailableError
from figures import FIGURES, Figure
from loads import BadAnswerError
from measurements import Served
from report import Result


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def alone() -> Iterator[None]:
    """One run at a time on a machine: two would measure each other."""
    with (Path(tempfile.gettempdir()) / "torpor-benchmarks.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is under way; waiting for its end ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def measured(figure: Figure, rounds: int, seconds: float, peers: set[str]) -> Result:
    result = Result(figure)
    for number in range(rounds):
        for line in figure.measurements:
            name = line.peer.name if isinstance(line, Served) else line.label
            if (peers and name not in peers | {"torpor"}) or line.label in result.absent | result.wrong:
                continue
            try:
                rate = line.measure(seconds)
            except UnavailableError as reason:
                result.absent[line.label] = str(reason)
                result.rates.pop(line.label, None)
                say(f"{figure.name} {number + 1}/{rounds}: {line.label} absent: {reason}")
            except BadAnswerError as trouble:
                result.wrong[line.label] = str(trouble)
                result.rates.pop(line.label, None)
                say(f"{figure.name} {number + 1}/{rounds}: {line.label} WRONG: {trouble}")
            else:
                result.rates.setdefault(line.label, []).append(rate)
                say(f"{figure.name} {number + 1}/{rounds}: {line.label} {rate.value:.4g} {figure.unit}")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py", description="Measures torpor beside its peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="figures to measure; none: all of them")
    parser.add_argument("--list", action="store_true", help="print the figures and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of one measurement (default 8)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; medians are quoted (default 3)")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME",
                        help="measure only this peer beside torpor; may be repeated")  # fmt: skip
    options = parser.parse_args()
    # A run that is ended from outside must still end the server it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.list:
        for name, make in FIGURES.items():
            print(f"{name:<16} {make().about}")
        return 0
    if unknown := [name for name in options.names if name not in FIGURES]:
        parser.error(f"unknown figure {unknown[0]}, must be one of {', '.join(FIGURES)}")
    results = []
    with alone():
        for name in options.names or FIGURES:
            results.append(measured(FIGURES[name](), options.rounds, options.seconds, set(options.peer)))
            print(results[-1].table(), flush=True)
    entries = [entry for result in results for entry in result.entries()]
    if options.json:
        options.json.write_text(json.dumps(entries, indent=2) + "\n")
    if any(result.wrong for result in results):
        say("\nWRONG OR REFUSED ANSWERS: " + "; ".join(
            f"{result.figure.name} {label}" for result in results for label in result.wrong))  # fmt: skip
        return 2
    return 1 if any(entry["holds"] is False for entry in entries) else 0


if __name__ == "__main__":
    sys.exit(main())
