"""The course of a roll-out, from the fleet's reports: as lines of text, and as a PNG by matplotlib (the extra `plan`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from torpor.knative.durations import duration
from torpor.knative.figure import new_figure, save
from torpor.knative.sparkline import sparkline

from .reports import OUTCOMES, Report

_COLORS = {"healthy": "tab:green", "failed": "tab:red", "refused": "tab:orange", "waiting": "tab:gray"}


@dataclass(frozen=True)
class Moment:
    """So many nodes have said so last about the version, by outcome."""

    at: datetime
    counts: dict[str, int]


def moments(reports: Sequence[Report], index: str) -> list[Moment]:
    """One for each report on the version."""
    last: dict[str, str] = {}
    found = []
    for report in reports:
        if report.index == index:
            last[report.node] = "healthy" if report.outcome == "serving" else report.outcome
            counts = {outcome: sum(each == outcome for each in last.values()) for outcome in OUTCOMES[1:]}
            found.append(Moment(report.at, counts))
    return found


def chart(course: Sequence[Moment], columns: int = 60, *, plain: bool = False) -> str:
    """plain: ASCII only."""
    if not course:
        return "no node has reported on it"
    begin, end = course[0].at, max(moment.at for moment in course)
    span_s = (end - begin).total_seconds()
    slots = [course[0].counts] * columns
    for moment in course:
        first = round((moment.at - begin).total_seconds() / span_s * (columns - 1)) if span_s > 0 else 0
        slots[max(0, first) :] = [moment.counts] * (columns - max(0, first))
    lines = [
        f"{outcome:>10} {sparkline([slot[outcome] for slot in slots], plain)} {slots[-1][outcome]}"
        for outcome in _COLORS
        if any(slot[outcome] for slot in slots)
    ]
    return "\n".join([*lines, f"{'':>10} {'0':<{columns}} {duration(round(span_s))}"])


def plot(title: str, course: Sequence[Moment], path: Path) -> None:
    """Raises SettingError where matplotlib is missing or the file cannot be written."""
    figure = new_figure(10, 5)
    axes = figure.subplots()
    minutes = [(moment.at - course[0].at).total_seconds() / 60 for moment in course]
    for outcome, color in _COLORS.items():
        axes.step(minutes, [moment.counts[outcome] for moment in course], where="post", color=color, label=outcome)
    axes.set_xlabel("minutes since the first report")
    axes.set_ylabel("nodes")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", frameon=False)
    figure.suptitle(title, fontsize=11)
    save(figure, path)
