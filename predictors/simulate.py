"""`torpor simulate`: what the batching policy does with a load on a device, in virtual time."""

import argparse
import json
import os
import random
import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .batching.load import Call, ClosedLoop, Lengths, Load, Poisson
from .batching.policy import BatchingSettings
from .batching.simulation import LinearDevice, Report, simulate
from .batching.trace import TraceError, read_trace
from .catalog import find_model_file, version_folder, wanted_versions
from .settings import SETTINGS, ModelFile, SettingError, resolve

_EXAMPLE = """\
example: 32 callers in a loop with sentences of 4 to 128 tokens, on a device where a batch costs 5 ms and 0.116 ms a token

  torpor simulate --callers 32 --lengths 20:4:128 --overhead-s 0.005 --cell-s 0.000116

with the times that a running server has learned, and its model's settings

  torpor simulate examples/minilm --rate 90 --lengths 20:4:128 --url http://localhost:8080
"""


def add_command(commands: Any) -> None:
    """Add `simulate` to the sub-commands of `torpor`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "simulate",
        help="try a batching schedule in virtual time",
        description="Runs the server's batching policy over a load on a simulated device, in virtual time. "
        "HTTP costs nothing here. Settings come from where `torpor serve` has them.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="a folder with a model.toml")
    load = parser.add_argument_group("load, one of").add_mutually_exclusive_group(required=True)
    load.add_argument("--trace", type=Path, metavar="FILE",
                      help="requests from a file, CSV or JSON lines: arrival_s, rows, deadline_s, named axes")  # fmt: skip
    load.add_argument("--callers", type=_whole, metavar="N", help="N callers, each waits for its answer: a closed loop")
    load.add_argument(
        "--rate", type=_positive, metavar="PER_S", help="requests that come by themselves, as Poisson has it"
    )
    made = parser.add_argument_group("requests of --callers and --rate")
    made.add_argument("--requests", type=_whole, default=10_000, metavar="N", help="how many (default 10000)")
    made.add_argument("--rows", type=_whole, default=1, metavar="N", help="rows of each (default 1)")
    made.add_argument("--lengths", type=_lengths, metavar="MEDIAN:SHORTEST:LONGEST",
                      help="size of a named axis, log-normal; without it rows are all alike")  # fmt: skip
    made.add_argument("--sigma", type=_positive, default=0.6, help="of the lengths' logarithm (default 0.6)")
    made.add_argument("--gap-s", type=_seconds, default=0.001, metavar="SECONDS",
                      help="from an answer to that caller's next request (default 0.001)")  # fmt: skip
    made.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default 0)")
    device = parser.add_argument_group("device: both times, or where a server shows what it has learned")
    device.add_argument("--overhead-s", type=_seconds, metavar="SECONDS", help="time of a batch without its rows")
    device.add_argument("--cell-s", type=_seconds, metavar="SECONDS",
                        help="time of one cell of a row, padded: a token; of a row without named axes")  # fmt: skip
    device.add_argument("--url", help="a running server: http://HOST:PORT")
    device.add_argument("--metrics", type=Path, metavar="FILE", help="what its /metrics printed")
    device.add_argument(
        "--model-name", "--model_name", help="which of its models; of several versions or processes the last counts"
    )
    device.add_argument("--noise", type=_seconds, default=0.0, metavar="SIGMA",
                        help="of the logarithm of a factor that each batch draws (default 0)")  # fmt: skip
    batching = parser.add_argument_group("batching, as for `torpor serve`")
    for setting in SETTINGS:
        if setting.section == "batching":
            batching.add_argument(
                setting.flag, dest=setting.name, metavar=setting.kind.__name__.upper(),
                help=f"{setting.help} (default {setting.default})",
            )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace, began_s: float) -> int:
    file_settings = {} if options.folder is None else _file_settings(options.folder)
    settings = resolve(vars(options), os.environ, file_settings)
    batching = BatchingSettings.of(settings)
    learned = options.cell_s is None
    overhead_s, cell_s = _times(options)
    device = LinearDevice(overhead_s, cell_s, options.noise, options.seed)
    patience_s = settings["request_timeout_s"] or None
    report = simulate(
        _load(options), device, batching, default_patience_s=patience_s, progress=_Progress(), learned=learned
    )
    _print(report, options.json)
    return 0


def _file_settings(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise SettingError(f"{str(folder)!r} is not a folder")
    root = folder.resolve()
    newest = version_folder(root, wanted_versions(root, "latest")[0])
    return dict(ModelFile.read(find_model_file(root, newest)).settings)


def _load(options: argparse.Namespace) -> Load:
    if options.trace is not None:
        try:
            return read_trace(options.trace)
        except TraceError as error:
            raise SettingError(f"--trace: {error}") from None
    lengths = None
    if options.lengths is not None:
        median, shortest, longest = options.lengths
        lengths = Lengths(median, shortest, longest, options.sigma)
    draw = partial(_call, options.rows, lengths)
    if options.callers is not None:
        return ClosedLoop(options.callers, options.requests, draw, options.seed, options.gap_s)
    return Poisson(options.rate, options.requests, draw, options.seed)


def _call(rows: int, lengths: Lengths | None, chance: random.Random) -> Call:
    return Call(rows, () if lengths is None else lengths.draw(chance))


def _times(options: argparse.Namespace) -> tuple[float, float]:
    """(overhead_s, cell_s) from the flags, or from a server's metrics where a flag is not given."""
    overhead_s, cell_s = options.overhead_s, options.cell_s
    if options.url is not None or options.metrics is not None:
        text, source = _scrape(options)
        if overhead_s is None:
            overhead_s = _metric(text, source, "torpor_batch_overhead_seconds", options.model_name)
        if cell_s is None:
            cell_s = _metric(text, source, "torpor_cell_seconds", options.model_name)
    for flag, value in (("--overhead-s", overhead_s), ("--cell-s", cell_s)):
        if value is None:
            raise SettingError(f"{flag} is missing: give --overhead-s and --cell-s, or --url or --metrics to read them")
    return overhead_s, cell_s


def _scrape(options: argparse.Namespace) -> tuple[str, str]:
    if options.metrics is not None:
        try:
            return options.metrics.read_text(), str(options.metrics)
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"--metrics: {error}") from None
    parts = urlsplit(options.url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise SettingError(f"--url: {options.url!r}, must be of the form http://HOST:PORT")
    import urllib.error  # here, since `torpor serve` starts without them
    import urllib.request

    url = options.url if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.read().decode(), url
    except (urllib.error.URLError, OSError, UnicodeDecodeError) as error:
        raise SettingError(f"--url: {url}: {error}") from None


def _metric(text: str, source: str, name: str, model: str | None) -> float:
    """The value of the only model's metric, or of the one that is named; of versions and processes the last one's."""
    found = dict(re.findall(rf'^{name}\{{model_name="([^"]*)"[^}}]*\}} (\S+)$', text, re.MULTILINE))
    if model is None and len(found) > 1:
        raise SettingError(f"{source}: --model-name must be one of {', '.join(found)}")
    value = next(iter(found.values()), None) if model is None else found.get(model)
    if value is None:
        of_model = "" if model is None else f" of model {model!r}"
        raise SettingError(f"{source}: no {name}{of_model}: it is not torpor's, or nothing has run there yet")
    return float(value)


class _Progress:
    """A line on a terminal's stderr, twice a second at most."""

    def __init__(self) -> None:
        self._shown_s = time.monotonic()

    def __call__(self, requests: int, now: float) -> None:
        if sys.stderr.isatty() and time.monotonic() > self._shown_s + 0.5:
            self._shown_s = time.monotonic()
            print(f"\r{requests} requests, {now:.1f} s of virtual time ", end="", file=sys.stderr, flush=True)


def _print(report: Report, as_json: bool) -> None:
    figures = report.summary()
    if as_json:
        print(json.dumps(figures))
        return
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    for name, value in figures.items():
        print(
            f"{name:20} {value:12,.0f}" if isinstance(value, int) else f"{name:20} {value:14,.2f}".replace("nan", "-")
        )


def _number(text: str, low: float, words: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not low <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}, must be {words}")
    return value


def _positive(text: str) -> float:
    return _number(text, 1e-9, "a number above 0")


def _seconds(text: str) -> float:
    return _number(text, 0.0, "a number, at least 0")


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}, must be an integer, at least 1")
    return int(text)


def _lengths(text: str) -> tuple[int, int, int]:
    match [int(part) if part.isdecimal() else 0 for part in text.split(":")]:
        case [median, shortest, longest] if 1 <= shortest <= median <= longest:
            return median, shortest, longest
    raise argparse.ArgumentTypeError(f"{text!r}, must be MEDIAN:SHORTEST:LONGEST, such as 20:4:128")
