"""An outcome over time as a PNG, by matplotlib (the extra `plan`)."""

from pathlib import Path
from typing import Any

from ..figure import new_figure, save
from .outcome import Outcome
from .search import Plan


def plot(plan: Plan, path: Path) -> None:
    """Raises SettingError where matplotlib is missing or the file cannot be written."""
    figure = new_figure(10, 8)
    outcome: Outcome = plan.expected
    unit_s, unit = (
        (3600.0, "h") if outcome.duration_s > 7200 else (60.0, "min") if outcome.duration_s > 300 else (1.0, "s")
    )
    times = [slot.begin_s / unit_s for slot in outcome.slots]
    width = outcome.slot_s / unit_s

    requests, pods, latency = figure.subplots(3, 1, sharex=True)

    rates = [slot.requests / outcome.slot_s for slot in outcome.slots]
    requests.fill_between(times, rates, step="post", alpha=0.35, color="tab:blue", label="requests/s")
    cold = [(time, rate) for time, rate, slot in zip(times, rates, outcome.slots, strict=True) if slot.cold >= 0.5]
    if cold:
        requests.plot(*zip(*cold, strict=True), "v", color="tab:red", markersize=6, label="some meet no pod")
    requests.set_ylabel("requests/s")
    requests.set_ylim(bottom=0)
    _legend(requests)

    there = [slot.pods for slot in outcome.slots]
    ready = [slot.ready for slot in outcome.slots]
    pods.fill_between(times, there, step="post", alpha=0.25, color="tab:gray", label="starting, ready or draining")
    pods.step(times, ready, where="post", color="tab:green", label="ready")
    pods.set_ylabel("pods")
    pods.set_ylim(bottom=0)
    _legend(pods)

    answered = [
        (time + width / 2, slot.latencies)
        for time, slot in zip(times, outcome.slots, strict=True)
        if slot.latencies.counts
    ]
    for share, color in ((0.99, "tab:red"), (0.95, "tab:orange"), (0.5, "tab:blue")):
        latency.plot([time for time, _ in answered], [1e3 * found.at(share) for _, found in answered], ".",
                     color=color, markersize=4, label=f"p{100 * share:g}")  # fmt: skip
    latency.axhline(1e3 * plan.goal.p99_s, color="black", linestyle="--", linewidth=1, label="goal of p99")
    latency.set_yscale("log")
    latency.set_ylabel("latency, ms")
    latency.set_xlabel(f"time, {unit}")
    latency.set_xlim(0, outcome.duration_s / unit_s)
    _legend(latency)

    figure.suptitle(
        f"{plan.setup.measurement.model}: {plan.traffic.name}\n"
        f"p50 {1e3 * outcome.latencies.at(0.5):.1f} ms, p99 {1e3 * outcome.latencies.at(0.99):.1f} ms, "
        f"{100 * outcome.cold_share:.2g} % cold, {outcome.wakes} starts from zero, {outcome.pod_seconds:.0f} pod-seconds",
        fontsize=11,
    )
    figure.align_ylabels()
    save(figure, path)


def _legend(axes: Any) -> None:
    """Above, where it hides nothing."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, borderaxespad=0.1)
