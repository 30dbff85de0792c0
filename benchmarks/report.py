"""What a run prints and writes.

A figure's value is torpor's median rate, its target the highest rate that any claim asks for (factor times the rival's
median of the same run); it holds when the value reaches it. When a rival of a claim is missing, the figure can only
fail or stay open (`holds` null), never hold.
"""

import math
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from environments import BENCHMARKS, versions_of
from figures import Claim, Figure
from loads import Rate
from losses import COLUMNS, Losses
from measurements import Offline, Served, Tuned
from servers import Torpor


@dataclass
class Result:
    figure: Figure
    rates: dict[str, list[Rate]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    """Lines whose answers were wrong or refused: no figure."""

    def value(self, label: str) -> float | None:
        """The median, or the sum; none for a line without every round."""
        taken = [rate.value for rate in self.rates.get(label, [])]
        if not taken:
            return None
        return sum(taken) if self.figure.adds_up else median(taken)

    def beside(self, label: str) -> dict[str, float]:
        """Medians of what was measured beside the value."""
        taken = self.rates[label]
        return {name: median(rate.beside[name] for rate in taken) for name in taken[0].beside}

    def holds(self, claim: Claim) -> bool | None:
        ours, theirs = self.value(claim.subject), self._rival(claim)
        if ours is None or theirs is None:
            return None
        if claim.at_most:
            return ours <= claim.factor * theirs
        # "Ahead of" is strict, "times" isn't; with measured rates nobody will see the difference.
        return ours > theirs if claim.factor == 1 else ours >= claim.factor * theirs

    def subject_holds(self, subject: str) -> bool | None:
        verdicts = [self.holds(claim) for claim in self._counted(subject)]
        if False in verdicts:
            return False
        return None if None in verdicts else True

    def target(self, subject: str) -> float | None:
        wanted = [
            claim.factor * theirs for claim in self._counted(subject) if (theirs := self._rival(claim)) is not None
        ]
        return max(wanted, default=None)

    def _rival(self, claim: Claim) -> float | None:
        return self.value(claim.rival) if claim.rival else 1.0

    def _counted(self, subject: str) -> list[Claim]:
        return [claim for claim in self.figure.claims if claim.subject == subject and not claim.is_hope]

    def table(self) -> str:
        lines = [f"\n{self.figure.name}: {self.figure.about}"]
        width = max(len(line.label) for line in self.figure.measurements)
        for line in self.figure.measurements:
            label = line.label
            form = line.wire.form if isinstance(line, Served) else ""
            if label in self.wrong:
                text = f"WRONG: {self.wrong[label]}"
            elif (value := self.value(label)) is None:
                text = f"absent: {self.absent.get(label, 'left out by --peer')}"
            else:
                digits = 0 if value >= 100 else 2
                rounds = " ".join(f"{rate.value:.{digits}f}" for rate in self.rates[label])
                times = [rate for rate in self.rates[label] if not math.isnan(rate.p50_ms)]
                quick = f"p50 {median(rate.p50_ms for rate in times):.1f} ms  " if times else ""
                each = f"{1e6 / value:6.2f} µs each  " if self.figure.prints_cost else ""
                text = f"{value:10.{digits}f} {self.figure.unit:<12} {each}{quick}rounds {rounds}"
            lines.append(f"  {label:<{width}}  {form:<10} {text}")
        for name, reason in self.figure.absent.items():
            lines.append(f"  {name:<{width}}  {'':<10} absent: {reason}")
        for line in self.figure.measurements:
            if isinstance(line, Offline | Tuned) and line.tried:
                unit = "batch:threads" if isinstance(line, Offline) else "batch bound and threads' waiting"
                each = ", ".join(f"{choice} {rate:.0f}" for choice, rate in line.tried.items())
                lines.append(f"  {line.label} by {unit}: {each}")
        lines += _columns([line for line in self.figure.measurements if isinstance(line, Losses) and line.events])
        for label in self.rates:
            if beside := self.beside(label):
                each = ", ".join(f"{name} {number:.3g}" for name, number in beside.items())
                lines.append(f"  {label:<{width}}  beside it: {each}")
        for claim in self.figure.claims:
            ours, theirs = self.value(claim.subject), self._rival(claim)
            ratio = f"{ours / theirs:8.2f} x" if ours and theirs else "       ? x"
            verdict = {True: "holds", False: "MISSED", None: "open"}[self.holds(claim)]
            kind = "hope  " if claim.is_hope else "target"
            least = "at most " if claim.at_most else ""
            if claim.rival:
                wanted = f"{ratio} {claim.rival:<{width}} {kind} {least}{claim.factor:.3g} x"
            else:
                wanted = f"{kind} {least}{claim.factor:.4g} {self.figure.unit}"
            lines.append(f"  {wanted} for {claim.subject}: {verdict}")
        return "\n".join(lines)

    def entries(self) -> list[dict[str, Any]]:
        """One for each of torpor's forms in the figure: the JSON figure has two."""
        return [
            {
                "name": self.figure.name,
                "subject": subject,
                "value": self.value(subject),
                "unit": self.figure.unit,
                "target": self.target(subject),
                "holds": self.subject_holds(subject),
                "claims": [
                    {"rival": claim.rival, "factor": claim.factor, "hope": claim.is_hope, "holds": self.holds(claim)}
                    for claim in self.figure.claims
                    if claim.subject == subject
                ],
                "peers": {label: self.value(label) for label in self.rates if label != subject},
                "tried": {
                    line.label: line.tried for line in self.figure.measurements if isinstance(line, Offline | Tuned)
                },
                "counts": {
                    line.label: {"events": line.events, **line.counts}
                    for line in self.figure.measurements
                    if isinstance(line, Losses)
                },
                "beside": {label: beside for label in self.rates if (beside := self.beside(label))},
                "rounds": {label: [rate.value for rate in taken] for label, taken in self.rates.items()},
                "absent": self.figure.absent | self.absent | self.wrong,
                "machine": machine(),
                "versions": self.versions(),
            }
            for subject in self.figure.subjects()
        ]

    def versions(self) -> dict[str, dict[str, str]]:
        found = {"torpor": _ours()}
        for line in self.figure.measurements:
            if isinstance(line, Served) and not isinstance(line.peer, Torpor) and line.label in self.rates:
                found[line.peer.name] = versions_of(line.peer.name, line.peer.packages)
        return found


def _columns(lines: Sequence[Losses]) -> list[str]:
    """What became of the requests of each way, and how many a second there were in each round."""
    table = []
    for line in lines:
        table.append(f"  {f'{line.label}, {line.events} times':<30}" + "  ".join(COLUMNS) + "  a second, of capacity")
        for way, counts in line.counts.items():
            numbers = "  ".join(f"{counts[name]:{len(name)}}" for name in COLUMNS)
            table.append(f"    {way:<28}{numbers}  {', '.join(line.rates[way])}")
    return table


def machine() -> dict[str, Any]:
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**20, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _ours() -> dict[str, str]:
    command = ["git", "-C", str(BENCHMARKS), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    found = {"commit": result.stdout.strip() or "none"}
    for package in ("torpor", "torch", "uvloop"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
