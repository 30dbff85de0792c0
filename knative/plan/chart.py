"""An outcome over time in plain characters: requests, pods, latency, cold starts."""

from collections.abc import Sequence

from ..durations import duration
from ..sparkline import sparkline
from .outcome import Latencies, Outcome, Slot


def chart(outcome: Outcome, columns: int = 72, *, plain: bool = False) -> str:
    """plain: ASCII only."""
    groups = _grouped(outcome, columns)
    span_s = outcome.duration_s / len(groups)
    rows = [
        (
            "requests/s",
            [sum(slot.requests for slot in group) / (len(group) * outcome.slot_s) for group in groups],
            "{:.3g}",
        ),
        ("pods", [max(slot.pods for slot in group) for group in groups], "{:.3g}"),
        ("ready", [sum(slot.ready for slot in group) / len(group) for group in groups], "{:.3g}"),
        ("p99 ms", [1e3 * _latencies(group).at(0.99) for group in groups], "{:.3g}"),
        ("cold", [sum(slot.cold for slot in group) for group in groups], "{:.0f}"),
    ]
    lines = [f"{name:>10} {sparkline(values, plain)} {form.format(max(values))} at most" for name, values, form in rows]
    axis = f"{'0':<{len(groups) // 2}}{duration(round(outcome.duration_s / 2)):<{len(groups) - len(groups) // 2}}"
    lines.append(f"{'':>10} {axis[: len(groups)]} {duration(round(outcome.duration_s))}, {span_s:.3g} s a column")
    return "\n".join(lines)


def _grouped(outcome: Outcome, columns: int) -> list[list[Slot]]:
    count = min(columns, len(outcome.slots))
    return [
        outcome.slots[len(outcome.slots) * n // count : len(outcome.slots) * (n + 1) // count] for n in range(count)
    ]


def _latencies(group: Sequence[Slot]) -> Latencies:
    together = Latencies()
    for slot in group:
        together.add_all(slot.latencies)
    return together
