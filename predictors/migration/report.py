"""What became of each archive, for people (Markdown) and for programs (JSON)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from .comparison import Row
from .folder import Migrated


@dataclass
class Outcome:
    """Of one archive. migrated: None where it stays an archive. reason: why, or why the two could not be compared."""

    name: str
    archive: str
    migrated: Migrated | None = None
    reason: str = ""
    rows: list[Row] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        if self.migrated is None:
            return "stays an archive"
        if self.reason:
            return "not compared"
        if any(row.difference for row in self.rows):
            return "differs"
        return f"same on {len(self.rows)} sample{'s' * (len(self.rows) != 1)}" if self.rows else "both start; no sample"

    @property
    def is_good(self) -> bool:
        return self.migrated is not None and not self.reason and not any(row.difference for row in self.rows)


def as_json(outcomes: Sequence[Outcome]) -> str:
    return json.dumps({"models": [_plain(outcome) for outcome in outcomes]}, indent=2) + "\n"


def _plain(outcome: Outcome) -> dict[str, object]:
    done = outcome.migrated
    return {
        "name": outcome.name,
        "archive": outcome.archive,
        "verdict": outcome.verdict,
        "reason": outcome.reason,
        "form": done.form if done else "",
        "needs_torchserve": done.needs_torchserve if done else True,
        "carried": done.carried if done else [],
        "not_carried": done.left if done else [],
        "compared": [asdict(row) for row in outcome.rows],
    }


def as_markdown(outcomes: Sequence[Outcome]) -> str:
    return "# From TorchServe's archives\n\n" + "\n".join("\n".join(_section(outcome)) + "\n" for outcome in outcomes)


def _section(outcome: Outcome) -> Iterator[str]:
    yield f"## {outcome.name}: {outcome.verdict}"
    yield ""
    yield f"From `{outcome.archive}`."
    if outcome.reason:
        yield outcome.reason + "."
    done = outcome.migrated
    if done is None:
        yield "torpor serves it as it is."
        return
    yield from ("", "Carried over:", *(f"- {text}" for text in done.carried))
    yield from ("", "Not carried over:", *(f"- {text}" for text in done.left), "")
    if not outcome.rows:
        yield "No request was compared: give files with `--sample`."
        return
    yield "| request | by | archive | folder | |"
    yield "|---|---|---|---|---|"
    for row in outcome.rows:
        found = (
            f"**{_cell(row.difference)}**" if row.difference else "same" + f" ({_cell(row.notes)})" * bool(row.notes)
        )
        yield f"| {_cell(row.sample)} | {row.protocol} | {row.theirs} | {row.ours} | {found} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def as_table(outcomes: Sequence[Outcome]) -> str:
    """For a terminal."""
    lines: list[str] = []
    for outcome in outcomes:
        lines.append(f"{outcome.name}: {outcome.verdict}" + f": {outcome.reason}" * bool(outcome.reason))
        for row in outcome.rows:
            found = f"DIFFERS: {row.difference}" if row.difference else "same" + f" ({row.notes})" * bool(row.notes)
            lines.append(f"  {row.sample:24} {row.protocol:12} {row.theirs} {row.ours}  {found}")
    return "\n".join(lines)
