"""`torpor rollout` and `torpor rollback`: a new revision on a part of the traffic, promoted or taken back by its counts."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .durations import seconds

if TYPE_CHECKING:
    from torpor.knative.cluster import Object
    from torpor.knative.rollout import Outcome, Rollout

    from .manifests import Document

PROMOTED, TAKEN_BACK, NOTHING_DONE, BROKEN_OFF, INTERRUPTED = 0, 1, 2, 3, 130


def add_command(commands: Any) -> None:
    """Add `rollout` and `rollback` to the sub-commands of `torpor`."""
    rollout: argparse.ArgumentParser = commands.add_parser(
        "rollout",
        help="roll an InferenceService or Knative Service out by steps, or take it back",
        description="Applies FILEs, tries the new revision on a growing part of the traffic, and promotes or returns it. "
        "The same command again goes on with a rollout that was broken off.",
        epilog="Exit status: 0 promoted, or nothing new; 1 taken back; 2 nothing was changed; 3 broken off, and says what is "
        "left; 130 interrupted, the same.",
    )
    add = rollout.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="a file, a folder, or - for standard input")
    text = "shares of the traffic, the last of them 100 (default 10,50,100)"
    add("--steps", type=_steps, default=(10, 50, 100), metavar="PERCENT,…", help=text)
    add("--hold", type=_seconds, default=30.0, metavar="TIME", help="of each step at least (default 30s)")
    text = "for enough requests to judge a step by (default 5m)"
    add("--step-timeout", type=_seconds, default=300.0, metavar="TIME", help=text)
    text = "for the new revision's first pod (default 5m)"
    add("--ready-timeout", type=_seconds, default=300.0, metavar="TIME", help=text)
    text = "that the new revision must have answered in a step; 0 promotes without any (default 20)"
    add("--min-requests", type=int, default=20, metavar="N", help=text)
    text = "above the stable revision's share of errors (default 1%%)"
    add("--max-errors", type=_share, default=0.01, metavar="PERCENT", help=text)
    text = "an answer is slow beyond so many times the stable revision's p99, and 20 ms (default 2)"
    add("--latency-ratio", type=float, default=2.0, metavar="X", help=text)
    text = (
        "JSON of a v2 or v1 request, which must be answered with 200 before any traffic is shifted; without it zeros in the "
        "shape that the model declares are sent, and may be refused with 4xx"
    )
    add("--smoke", type=Path, metavar="FILE", help=text)
    add("--model", default="", metavar="NAME", help="that the smoke request asks (default: what the server lists)")
    text = "where the ingress is reached, if the service's name leads nowhere from here"
    add("--ingress", metavar="URL", help=text)
    add("--prometheus", metavar="URL", help="take the counts from there, not from the pods")
    add("--force-conflicts", action="store_true", help="take over fields that another program manages")
    rollout.set_defaults(run=_rollout)
    rollback: argparse.ArgumentParser = commands.add_parser(
        "rollback",
        help="give all traffic back to the revision before",
        description="Gives all traffic of a service back to the revision before, in the middle of a rollout or after one. "
        "What was applied stays in the object; the next rollout goes from there.",
        epilog="Exit status: 0 done; 2 nothing was changed; 3 broken off; 130 interrupted.",
    )
    rollback.add_argument("name", metavar="NAME", help="of the InferenceService or Knative Service")
    rollback.set_defaults(run=_rollback)
    for parser in (rollout, rollback):
        parser.add_argument("-n", "--namespace", help="default: the kubeconfig's")
        parser.add_argument("--context", help="of the kubeconfig (default: its current one)")
        text = "for an API server that does not answer (default 2m)"
        parser.add_argument("--away-timeout", type=_seconds, default=120.0, metavar="TIME", help=text)


class Progress:
    """Lines on standard error; on a terminal what is passing takes one line, elsewhere it is left out."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._open = False

    def __call__(self, text: str, stays: bool) -> None:
        if self._live:
            clear = "\r\x1b[K" if self._open else ""
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1 if not stays else len(text)
            print(clear + text[:width], end="\n" if stays else "", file=sys.stderr, flush=True)
            self._open = not stays
        elif stays:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._open:
            print(file=sys.stderr)
            self._open = False


def _rollout(options: argparse.Namespace, began_s: float) -> int:
    from torpor.predictors.errors import InvalidInput, Unavailable

    from .rollout import ApiServer, PodMetrics, PrometheusMetrics, Rollout, Smoke, Terms, Tolerance, target_of
    from .rollout.ownership import apply
    from .rollout.smoke import read_body

    applied: list[str] = []
    try:
        objects = _objects(options.files)
        tolerance = Tolerance(options.max_errors, options.latency_ratio, requests=options.min_requests)
        terms = Terms(options.steps, options.hold, options.step_timeout, options.ready_timeout, tolerance=tolerance)
        smoke = Smoke(read_body(options.smoke) if options.smoke else None, options.model, options.ingress)
        cluster = ApiServer(options.context)
        namespace = options.namespace or cluster.namespace
        targets = [(each, target_of(cluster, namespace, each)) for each in objects]
        target = next((target for _, target in targets if target), None)
        if target is None:
            raise InvalidInput("no InferenceService and no Knative Service is among the objects")
        for document, other in targets:
            if other is None:
                apply(cluster, document, namespace, dry_run=False, force=options.force_conflicts)
                applied.append(f"{document['kind']} {document['metadata']['name']}")
                print(f"applied {applied[-1]}", file=sys.stderr)
    except (InvalidInput, Unavailable, ValueError, OSError) as error:
        print(f"torpor: {error}", file=sys.stderr)
        if applied:
            print(f"torpor: applied before that, and left: {', '.join(applied)}", file=sys.stderr)
        return BROKEN_OFF if applied else NOTHING_DONE
    metrics = PrometheusMetrics(options.prometheus, target.namespace) if options.prometheus else PodMetrics(cluster)
    progress = Progress()
    rollout = Rollout(
        cluster, target, terms, smoke, metrics, progress,
        force=options.force_conflicts, away_timeout_s=options.away_timeout,
    )  # fmt: skip
    return _drive(rollout, rollout.run, progress, again=f"torpor rollout {' '.join(map(str, options.files))}")


def _rollback(options: argparse.Namespace, began_s: float) -> int:
    from torpor.predictors.errors import InvalidInput, Unavailable

    from .rollout import ApiServer, Rollout, Smoke, Terms, find_target

    try:
        cluster = ApiServer(options.context)
        target = find_target(cluster, options.namespace or cluster.namespace, options.name)
    except (InvalidInput, Unavailable) as error:
        print(f"torpor: {error}", file=sys.stderr)
        return NOTHING_DONE
    progress = Progress()
    rollout = Rollout(cluster, target, Terms(), Smoke(), None, progress, away_timeout_s=options.away_timeout)
    status = _drive(rollout, rollout.take_back, progress, again=f"torpor rollback {options.name}")
    return PROMOTED if status == TAKEN_BACK else status


def _drive(rollout: "Rollout", run: Any, progress: Progress, again: str) -> int:
    from torpor.predictors.errors import InvalidInput, Unavailable

    from .rollout import Superseded

    try:
        outcome: Outcome = run()
    except (InvalidInput, Unavailable, KeyboardInterrupt) as error:
        progress.close()
        interrupted = isinstance(error, KeyboardInterrupt)
        print(f"torpor: {'interrupted' if interrupted else error}", file=sys.stderr)
        print(f"torpor: {rollout.standing()}", file=sys.stderr)
        if rollout.changed and not isinstance(error, Superseded):
            back = (
                ""
                if again.startswith("torpor rollback")
                else f"; `torpor rollback {rollout.target.name}` takes it back"
            )
            print(f"torpor: `{again}` goes on{back}", file=sys.stderr)
        if interrupted:
            return INTERRUPTED
        return BROKEN_OFF if rollout.changed else NOTHING_DONE
    progress.close()
    name = f"{rollout.target.kind} {rollout.target.name}"
    if outcome.why == "asked for":
        print(f"{name}: all traffic is back")
        return TAKEN_BACK
    said = {"promoted": "promoted", "returned": f"taken back: {outcome.why}", "unchanged": outcome.why}[outcome.what]
    print(f"{name}: {said}")
    for line in outcome.lines:
        print(f"  {line}")
    return TAKEN_BACK if outcome.what == "returned" else PROMOTED


def _objects(files: list[Path]) -> "list[Object]":
    """Checked as `torpor validate` does. Raises ValueError with all errors, OSError."""
    from .manifests import files_of, read, read_file
    from .rules import findings
    from .schema import Schemas, bundled

    documents: list[Document] = []
    for given in files:
        if str(given) == "-":
            documents += read(sys.stdin.read())
        else:
            documents += [document for file in files_of(given) for document in read_file(file)]
    errors = [
        f"{document.file}:{finding.line or document.line_of(finding.place)}: {finding.message}"
        for document, finding in findings(documents, Schemas(bundled()))
        if finding.severity == "error"
    ]
    if errors:
        raise ValueError("\n".join(["nothing is applied, since there are errors:", *errors]))
    rolled = [each for each in documents if (each.kind, each.api_version) in _ROLLED]
    if len(rolled) > 1:
        names = ", ".join(f"{each.kind} {each.name}" for each in rolled)
        raise ValueError(f"{names}: one of them at a time")
    return [document.data for document in documents]


_ROLLED = (("InferenceService", "serving.kserve.io/v1beta1"), ("Service", "serving.knative.dev/v1"))


def _steps(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _seconds(text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _share(text: str) -> float:
    share = float(text.removesuffix("%")) / 100
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text}, must be a percentage from 0 to below 100")
    return share
