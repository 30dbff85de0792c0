"""Where torpor answers otherwise than TorchServe 0.12, and why. `docs/torchserve.md` repeats the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Difference:
    reason: str
    """A sentence for the docs."""

    cases: dict[str, str]
    """By `scene/case` what differs, by a pattern of them what may: words of comparison.ASPECTS, with commas."""


DIFFERENCES: list[Difference] = []


def is_known(case: str, found: Sequence[str]) -> bool:
    """Whether it differs in just what is listed: all of what its own entry says, and nothing that no entry says."""
    must: set[str] = set()
    may: set[str] = set()
    for one in DIFFERENCES:
        for name, aspects in one.cases.items():
            if name == case:
                must.update(aspects.split(", "))
            elif "*" in name and fnmatchcase(case, name):
                may.update(aspects.split(", "))
    return must <= set(found) <= must | may


def table() -> str:
    """As Markdown."""
    lines = ["| why | where, and in what |", "|---|---|"]
    for one in DIFFERENCES:
        by_aspects: dict[str, list[str]] = {}
        for case, aspects in one.cases.items():
            by_aspects.setdefault(aspects, []).append(f"`{case}`")
        where = "; ".join(f"{aspects}: {', '.join(cases)}" for aspects, cases in by_aspects.items())
        lines.append(f"| {one.reason} | {where} |")
    return "\n".join(lines)
