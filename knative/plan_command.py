"""`torpor plan`: measures a predictor, simulates its traffic on Knative, and writes the settings that reach a goal."""

import argparse
import json
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torpor.predictors.settings import SettingError

from .durations import seconds

if TYPE_CHECKING:
    from .plan.measurement import Measurement
    from .plan.outcome import Outcome
    from .plan.search import Plan
    from .plan.traffic import Traffic

_EXAMPLE = """\
example: what a model needs for a described day, with a picture of it

  torpor plan examples/mlp --shape 'daily 0/s to 40/s for 24h' --p99-ms 200 --plot day.png

measured once, planned again; the requests from a file, the settings into another

  torpor plan examples/mlp --save-measurement mlp.json --shape 'poisson 5/s for 10m'
  torpor plan --measurement mlp.json --trace monday.csv --output patch.yaml

docs/plan.md says what is simulated.
"""


def add_command(commands: Any) -> None:
    """Add `plan` to the sub-commands of `torpor`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "plan",
        help="size a predictor for its traffic on Knative",
        description="Measures a predictor, simulates Knative's autoscaler over a traffic, and prints the settings that reach "
        "a goal with the fewest pod-seconds, as YAML with the reason of each number.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", type=Path, metavar="FOLDER", help="a folder with a model.toml, to measure")
    parser.add_argument("--config", type=Path, metavar="FILE",
                        help="flags from a TOML file, by their names: p99-ms = 200; what is given here wins")  # fmt: skip
    measured = parser.add_argument_group("measurement")
    measured.add_argument("--measurement", type=Path, metavar="FILE", help="one that was saved, instead of measuring")
    measured.add_argument("--save-measurement", type=Path, metavar="FILE", help="save it, as JSON")
    measured.add_argument("--most-rows", type=_whole, metavar="N", help="largest batch to measure (default 64)")
    measured.add_argument("--sizes", type=_sizes, metavar="N,N,...",
                          help="sizes of named axes to measure (default 8,32,128)")  # fmt: skip
    measured.add_argument("--starts", type=_whole, metavar="N", help="starts, whose median counts (default 3)")
    traffic = parser.add_argument_group("traffic, one of")
    traffic.add_argument("--trace", type=Path, metavar="FILE",
                         help="requests from a file, as for `torpor simulate`: CSV or JSON lines")  # fmt: skip
    traffic.add_argument("--shape", metavar="TEXT",
                         help="in words: 'poisson 100/s for 1h', 'daily 2/s to 40/s for 24h', "
                         "'bursts 200/s of 30s every 10m for 6h', "
                         "'ramp 0/s to 50/s for 5m', 'quiet for 10m', joined by 'then'")  # fmt: skip
    traffic.add_argument("--prometheus", metavar="URL", help="a Prometheus that has seen it, with --query")
    traffic.add_argument(
        "--query", metavar="PROMQL", help="requests a second, such as sum(rate(torpor_requests_total[1m]))"
    )
    traffic.add_argument("--since", type=_duration, metavar="DURATION", help="how far to look back (default 24h)")
    traffic.add_argument("--step", type=_duration, metavar="DURATION", help="between two samples (default 1m)")
    drawn = parser.add_argument_group("requests of --shape and --prometheus")
    drawn.add_argument("--rows", type=_whole, metavar="N", help="rows of each (default 1)")
    drawn.add_argument("--lengths", type=_lengths, metavar="MEDIAN:SHORTEST:LONGEST",
                       help="size of a named axis, log-normal")  # fmt: skip
    drawn.add_argument("--seed", type=_count, metavar="N", help="of everything that is drawn (default 0)")
    goal = parser.add_argument_group("goal")
    goal.add_argument("--p99-ms", type=_positive, metavar="MS", help="latency of 99 %% of the answers (default 500)")
    goal.add_argument("--cold-share", type=_share, metavar="SHARE",
                      help="of the requests that may come while no pod is ready (default 0.005)")  # fmt: skip
    held = parser.add_argument_group("settings that are given and not searched")
    held.add_argument("--max-batch-size", type=_whole, metavar="ROWS")
    held.add_argument("--batch-timeout-micros", type=_count, metavar="MICROS")
    held.add_argument("--container-concurrency", type=_concurrency, metavar="N", help="0: no limit")
    held.add_argument("--target", type=_whole, metavar="N")
    held.add_argument("--min-scale", type=_count, metavar="PODS")
    held.add_argument("--max-scale", type=_whole, metavar="PODS")
    held.add_argument("--window", type=_window, metavar="DURATION", help="6s to 1h")
    held.add_argument("--retention", type=_retention, metavar="DURATION", help="0s to 1h")
    held.add_argument(
        "--timeout", type=_timeout, metavar="DURATION", help="of a request, its pod's start included (default 60s)"
    )
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument("--pod-start", type=_duration, metavar="DURATION",
                         help="until a pod's process starts, and gets requests; image there (default 700ms)")  # fmt: skip
    cluster.add_argument("--hop", type=_duration, metavar="DURATION",
                         help="of a request through ingress, activator and queue-proxy (default 3ms)")  # fmt: skip
    out = parser.add_argument_group("output")
    out.add_argument("--name", help="the InferenceService's (default the model's)")
    out.add_argument("--output", type=Path, metavar="FILE", help="the YAML; without it, it is printed")
    out.add_argument("--plot", type=Path, metavar="FILE", help="a PNG; needs the extra `plan`")
    out.add_argument("--json", action="store_true", help="print one JSON object instead")
    out.add_argument("--ascii", action="store_true", help="draw with ASCII only")
    parser.set_defaults(run=_run)


_DEFAULTS: dict[str, Any] = {
    "most_rows": 64, "sizes": (8, 32, 128), "starts": 3, "since": 86_400.0, "step": 60.0, "rows": 1, "seed": 0,
    "p99_ms": 500.0, "cold_share": 0.005, "timeout": 60.0, "pod_start": 0.7, "hop": 0.003,
}  # fmt: skip


def _run(options: argparse.Namespace, began_s: float) -> int:
    from .plan.search import Goal, Held, search
    from .plan.setup import Platform

    if options.config is not None:
        _read_config(options)
    for name, value in _DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    say = _Progress()
    traffic = _traffic(options)
    measurement = _measurement(options, say)
    held = Held(
        options.max_batch_size, options.batch_timeout_micros, options.container_concurrency, options.target,
        options.min_scale, options.max_scale, options.window, options.retention,
    )  # fmt: skip
    plan = search(
        measurement, traffic, Goal(options.p99_ms / 1e3, options.cold_share), held=held, timeout_s=options.timeout,
        platform=Platform(options.pod_start, options.hop), say=say,
    )  # fmt: skip
    say("")
    if options.plot is not None:
        from .plan.plot import plot

        plot(plan, options.plot)
    _print(plan, options)
    return 1 if plan.missed_by else 0


def _read_config(options: argparse.Namespace) -> None:
    """What the file says of flags that are not given. Raises SettingError."""
    path: Path = options.config
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"--config: {path}: {error}") from None
    actions = _actions()
    for name, value in content.items():
        action = actions.get(name)
        if action is None:
            raise SettingError(f"{path}: {name} is unknown, must be one of {', '.join(sorted(actions))}")
        if getattr(options, action.dest) not in (None, False):
            continue
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise SettingError(f"{path}: {name} = {value!r}, must be true or false")
            setattr(options, action.dest, value)
            continue
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        try:
            setattr(options, action.dest, action.type(text) if callable(action.type) else text)
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise SettingError(f"{path}: {name} = {error}") from None


def _actions() -> dict[str, argparse.Action]:
    """The flags by their names without dashes, and `model`."""
    commands = argparse.ArgumentParser().add_subparsers()
    add_command(commands)
    actions = {}
    for action in commands.choices["plan"]._actions:
        if action.dest not in ("help", "config"):
            actions[action.option_strings[0].lstrip("-") if action.option_strings else action.dest] = action
    return actions


def _traffic(options: argparse.Namespace) -> "Traffic":
    from torpor.predictors.batching.load import Lengths
    from torpor.predictors.batching.trace import TraceError, read_trace

    from .plan import prometheus, shape
    from .plan.traffic import Drawn, Mix, Recorded

    given = [flag for flag in ("trace", "shape", "prometheus") if getattr(options, flag) is not None]
    if len(given) != 1:
        raise SettingError(
            f"traffic: {' and '.join('--' + flag for flag in given) or 'none'} given, must be one of "
            "--trace, --shape, --prometheus"
        )
    if options.trace is not None:
        try:
            return Recorded.of(options.trace.name, read_trace(options.trace))
        except TraceError as error:
            raise SettingError(f"--trace: {error}") from None
    mix = Mix(options.rows, Lengths(*options.lengths) if options.lengths else None)
    if options.shape is not None:
        name, rates = options.shape, shape.rates(options.shape)
    else:
        if options.query is None:
            raise SettingError("--query is missing: which of Prometheus's series are requests a second?")
        name = options.query
        rates = prometheus.rates(options.prometheus, options.query, options.since, time.time(), options.step)
    traffic = Drawn(name, rates, mix, options.seed)
    if not traffic.requests:
        raise SettingError(f"--{given[0]}: {name!r} has no requests, must have some")
    return traffic


def _measurement(options: argparse.Namespace, say: "_Progress") -> "Measurement":
    from .plan.measurement import Measurement

    if options.measurement is not None:
        if options.model is not None:
            raise SettingError(
                f"--measurement: {str(options.measurement)!r} beside {str(options.model)!r}, must be one of them"
            )
        return Measurement.read(options.measurement)
    if options.model is None:
        raise SettingError("FOLDER is missing: the model to measure, or --measurement FILE")
    if not options.model.is_dir():
        raise SettingError(f"{str(options.model)!r} is not a folder")
    from .plan.measuring import measure

    measurement = measure(
        options.model, most_rows=options.most_rows, sizes=options.sizes, starts=options.starts, say=say.measuring
    )
    if options.save_measurement is not None:
        try:
            measurement.write(options.save_measurement)
        except OSError as error:
            raise SettingError(f"--save-measurement: {error}") from None
    return measurement


def _print(plan: "Plan", options: argparse.Namespace) -> None:
    from .plan.chart import chart
    from .plan.patch import patch

    yaml = patch(plan, options.name or plan.setup.measurement.model)
    if options.json:
        print(json.dumps(_figures(plan)))
    else:
        text = f"{_summary(plan)}\n\n{chart(plan.expected, plain=options.ascii)}\n"
        commented = "".join(f"# {line}".rstrip() + "\n" for line in text.splitlines())
        print(commented + (yaml if options.output is None else f"# written: {options.output}\n"), end="")
    if options.output is not None:
        try:
            options.output.write_text("".join(f"# {line}\n" for line in _summary(plan).splitlines()) + yaml)
        except OSError as error:
            raise SettingError(f"--output: {error}") from None


def _summary(plan: "Plan") -> str:
    outcome, traffic = plan.expected, plan.traffic
    goal = f"p99 {1e3 * plan.goal.p99_s:g} ms, {100 * plan.goal.cold_share:g} % cold"
    of_one_pod = 100 * outcome.pod_seconds / traffic.duration_s
    lines = [
        f"torpor plan: {plan.setup.measurement.model}, {traffic.name}: {traffic.requests} requests in {traffic.duration_s:g} s",
        f"goal: {goal}: {'MISSED, this is the best that was found' if plan.missed_by else 'reached'}",
        f"expected: {_latencies(outcome)}",
        f"expected: {100 * outcome.cold_share:.3g} % cold, {outcome.wakes} starts from zero, "
        f"{outcome.pod_seconds:.0f} pod-seconds ({of_one_pod:.3g} % of one pod all the time)",
    ]
    if outcome.refused or outcome.timed_out:
        lines.append(f"expected: {outcome.refused:.0f} refused, {outcome.timed_out:.0f} timed out")
    if plan.part is not traffic:  # what is above goes by ticks then
        lines.append(f"request by request, {plan.part.name}: {_latencies(plan.by_requests)}")
    return "\n".join(lines)


def _latencies(outcome: "Outcome") -> str:
    found = ((share, 1e3 * outcome.latencies.at(share / 100)) for share in (50, 95, 99))
    return ", ".join(f"p{share} {ms:.{0 if ms >= 1000 else 1}f} ms" for share, ms in found)


def _figures(plan: "Plan") -> dict[str, Any]:
    from dataclasses import asdict

    setup = plan.setup
    return {
        "model": setup.measurement.model,
        "traffic": plan.traffic.name,
        "goal": {"p99_ms": 1e3 * plan.goal.p99_s, "cold_share": plan.goal.cold_share, "reached": not plan.missed_by},
        "settings": {
            "max_batch_size": setup.batching.max_batch_size,
            "batch_timeout_micros": round(1e6 * setup.batching.batch_timeout_s),
            "container_concurrency": setup.scaling.container_concurrency,
            "target": setup.scaling.target,
            "min_scale": setup.scaling.min_scale,
            "initial_scale": setup.scaling.initial_scale,
            "max_scale": setup.scaling.max_scale,
            "window_s": setup.scaling.window_s,
            "retention_s": setup.scaling.retention_s,
            "timeout_s": setup.timeout_s,
            "memory_bytes": plan.memory_bytes,
            "cpu_request": plan.cpu_request,
            "cpu_limit": plan.cpu_limit,
        },
        "reasons": plan.reasons,
        "expected": plan.expected.summary(),
        "by_requests": {"traffic": plan.part.name, **plan.by_requests.summary()},
        "by_ticks": plan.by_ticks.summary(),
        "measurement": asdict(setup.measurement),
    }


class _Progress:
    """A line on a terminal's stderr, renewed; what is measured also where stderr is none."""

    def __init__(self) -> None:
        self._shown_s = 0.0

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty() and (not text or time.monotonic() > self._shown_s + 0.2):
            self._shown_s = time.monotonic()
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def measuring(self, text: str) -> None:
        self(f"measuring: {text}")


def _number(text: str, low: float, high: float, words: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r}, must be {words}")
    return value


def _positive(text: str) -> float:
    return _number(text, 1e-9, 1e9, "a number above 0")


def _share(text: str) -> float:
    return _number(text, 0, 1, "a number in [0, 1]")


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}, must be an integer, at least 1")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, must be an integer, at least 0")
    return int(text)


def _concurrency(text: str) -> int:
    if not text.isdecimal() or int(text) > 1000:
        raise argparse.ArgumentTypeError(f"{text!r}, must be an integer in [0, 1000]")
    return int(text)


def _sizes(text: str) -> Sequence[int]:
    return tuple(sorted({_whole(part.strip()) for part in text.split(",")}))


def _lengths(text: str) -> tuple[int, int, int]:
    match [int(part) if part.isdecimal() else 0 for part in text.split(":")]:
        case [median, shortest, longest] if 1 <= shortest <= median <= longest:
            return median, shortest, longest
    raise argparse.ArgumentTypeError(f"{text!r}, must be MEDIAN:SHORTEST:LONGEST, such as 20:4:128")


def _within(text: str, low_s: float, high_s: float, words: str) -> float:
    try:
        value_s = seconds(text)
    except ValueError:
        value_s = -1.0
    if not low_s <= value_s <= high_s:
        raise argparse.ArgumentTypeError(f"{text!r}, must be {words}")
    return value_s


def _duration(text: str) -> float:
    return _within(text, 0.001, 31 * 86_400, "a duration such as 700ms, 1m30s or 24h")


def _window(text: str) -> float:
    return float(int(_within(text, 6, 3600, "a duration of whole seconds in [6s, 1h]")))


def _retention(text: str) -> float:
    return float(int(_within(text, 0, 3600, "a duration of whole seconds in [0s, 1h]")))


def _timeout(text: str) -> float:
    return float(int(_within(text, 1, 600, "a duration of whole seconds in [1s, 10m], as Knative's defaults allow")))
