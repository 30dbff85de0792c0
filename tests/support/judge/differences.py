"""Where torpor answers otherwise than TorchServe 0.12, and why. `docs/torchserve.md` repeats the table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    reason: str
    """A sentence for the docs."""

    cases: dict[str, str]
    """By `scene/case` what differs: words of comparison.ASPECTS, with commas."""


DIFFERENCES: list[Difference] = []


def aspects_of(case: str) -> list[str]:
    """What is known to differ in a case."""
    return [aspect for one in DIFFERENCES if case in one.cases for aspect in one.cases[case].split(", ")]


def table() -> str:
    """As Markdown."""
    lines = ["| why | where, and in what |", "|---|---|"]
    for one in DIFFERENCES:
        cases = "; ".join(f"`{case}` ({aspects})" for case, aspects in one.cases.items())
        lines.append(f"| {one.reason} | {cases} |")
    return "\n".join(lines)
