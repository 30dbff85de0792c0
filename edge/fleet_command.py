"""`torpor edge agent | reports | rollout`: a fleet that updates itself from a server of files, and who decides how far."""

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .agent_settings import SETTINGS, resolve
from .roles import ROLES

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

    from .agent import Agent
    from .interruption import Interruption
    from .reports import Report, Standing
    from .repository import Offered
    from .rollout import Offer, Rollout

DONE, REFUSED, WRONG = 0, 1, 2
CONFIG = Path("/etc/torpor/edge.toml")
LOOK_S = 5.0
MOST_PRINTED = 10

Add = Callable[[Any, str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_commands(kinds: Any, add: Add) -> None:
    """Add the fleet's commands to those of `torpor edge`."""
    agent = add(kinds, "agent", _agent, "keep this node at what its fleet's repository names for it")
    agent.epilog = (
        "A setting comes from its flag, else its variable (TORPOR_EDGE_MIRRORS for --mirrors), else FILE. SIGTERM ends it in "
        "order: what is under way goes on at the next start. Exit status: 0 ended in order; 1 with --once: the look met "
        "with trouble, or another agent runs; 2 a wrong setting."
    )
    for setting in SETTINGS:
        default = f" (default {setting.default:g})" if isinstance(setting.default, float) else ""
        default = default or (f" (default {setting.default})" if setting.default else "")
        agent.add_argument(
            setting.flag, dest=setting.name, metavar=setting.form, help=(setting.help + default).replace("%", "%%")
        )
    agent.add_argument("--config", type=Path, metavar="FILE", help=f"TOML (default {CONFIG}, if it is there)")
    agent.add_argument("--once", action="store_true", help="look once, and end")

    reports = add(kinds, "reports", _reports, "receive the reports of a fleet: each event is a line of a file")
    reports.add_argument("file", type=Path, metavar="FILE")
    reports.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    reports.add_argument("--port", type=int, default=8900, help="(default 8900; 0 for a free one)")
    text = "beyond which no more is taken (default 100000000)"
    reports.add_argument("--most-bytes", type=int, default=100_000_000, metavar="N", help=text)

    text = "say which nodes of a fleet take a version, and see what becomes of it"
    rollout: argparse.ArgumentParser = kinds.add_parser("rollout", help=text, description=text.capitalize() + ".")
    steps = rollout.add_subparsers(metavar="COMMAND", required=True)
    start = add(steps, "start", _start, "publish a bundle, and name it as the candidate")
    start.add_argument("bundle", type=Path, metavar="BUNDLE")
    higher = add(steps, "raise", _raise, "have more nodes take the candidate; a paused roll-out goes on")
    text = "let nodes try it once more on which it has failed"
    higher.add_argument("--again", action="store_true", help=text)
    for parser in (start, higher):
        parser.add_argument(
            "--percent", type=_share, action="append", default=[], metavar="[LABELS:]N",
            help="of all nodes or, such as ring=canary:100, of those with these labels; the largest that fits a node counts; "
            "may be repeated",
        )  # fmt: skip
    pause = add(steps, "pause", _pause, "have no further node take the candidate; those that have it keep it")
    withdraw = add(steps, "withdraw", _withdraw, "have all nodes go back to the version before the candidate")
    watch = add(
        steps, "watch", _watch, "raise the share by steps while reports are good, and stop by itself when they are not"
    )
    watch.epilog = "Exit status: 0 the last step was held; 1 stopped, or refused; 2 a wrong argument; 130 interrupted."
    text = "shares of all nodes in percent; without it the share stays (such as 1,10,50,100)"
    watch.add_argument("--steps", type=_steps, default=(), metavar="N,…", help=text)
    watch.add_argument(
        "--hold", type=_seconds, default=600.0, metavar="TIME", help="of each step at least (default 10m)"
    )
    text = "of the nodes that have tried it, beyond which it stops (default 5)"
    watch.add_argument("--max-failed", type=_bound, default=0.05, metavar="PERCENT", help=text)
    text = "reports before a step is followed by the next one; with fewer, failures count as among so many (default 5)"
    watch.add_argument("--min-reports", type=int, default=5, metavar="N", help=text)
    watch.add_argument("--withdraw", action="store_true", help="take it back where it stops, rather than pause it")
    refresh = add(steps, "refresh", _refresh, "sign what is named anew, before it expires")
    status = add(steps, "status", _status, "what is named, and what the fleet has reported on it")
    status.add_argument("--json", action="store_true", help="print an object")
    status.add_argument("--plot", type=Path, metavar="FILE", help="draw its course: PNG, needs the extra `plan`")
    for parser in (start, higher, pause, withdraw, watch, refresh, status):
        text = "of TUF's metadata and the blobs: what the mirrors have"
        parser.add_argument("--repository", type=Path, required=True, metavar="FOLDER", help=text)
        if parser not in (start, refresh):
            text = "NAME/PLATFORM, where more than one is rolled out"
            parser.add_argument("--target", default="", metavar="TARGET", help=text)
        if parser in (watch, status):
            text = "the file of `torpor edge reports`"
            parser.add_argument("--reports", type=Path, required=parser is watch, metavar="FILE", help=text)
        if parser is not status:
            text = "with targets.pem, snapshot.pem, timestamp.pem"
            parser.add_argument("--keys", type=Path, required=True, metavar="KEYS", help=text)
            text = "until nodes take no update by this metadata (default 90)"
            parser.add_argument("--days", type=_days, default=90, metavar="N", help=text)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# The node's side


def _agent(options: argparse.Namespace) -> int:
    from .agent import Stopped
    from .interruption import Interruption

    file = options.config or (CONFIG if CONFIG.exists() else None)
    settings = resolve(vars(options), os.environ, file)
    stop = Interruption()
    agent = _made(settings, stop)
    try:
        with stop.heeded(), agent.alone():
            if options.once:
                return REFUSED if agent.round() else DONE
            _say(f"torpor: {settings['name']} asks {settings['mirrors']} every {settings['interval_s']:g} s")
            stop.wait(random.uniform(0, settings["interval_s"] / 10))
            while True:
                agent.round()
                stop.wait(settings["interval_s"] * random.uniform(0.5, 1.5))
    except Stopped:
        _say("torpor: stopped")
        return DONE


def _made(settings: dict[str, Any], stop: "Interruption") -> "Agent":
    from .agent import Agent, Identity
    from .k3s import K3s
    from .origin import Origin
    from .rollout import Member, labels_of
    from .service import Service

    root = Path(settings["node"])
    k3s = K3s(Path(settings["k3s"])) if settings["k3s"] else None
    url = "" if settings["smoke_url"] == "off" else settings["smoke_url"]
    service = Service(root / "current", settings["restart"], url, settings["smoke_timeout_s"], k3s, stop.interruptible)
    member = Member(settings["name"], labels_of(settings["labels"]))
    first = Path(settings["root"]).read_bytes() if settings["root"] else None
    return Agent(
        root,
        Identity(member, settings["bundle"], first),
        [Origin(url) for url in settings["mirrors"].split(",")],
        service.bring_up,
        _now,
        Origin(settings["reports"]) if settings["reports"] else None,
        lambda line: _say(f"torpor: {line}"),
        interruptible=stop.interruptible,
    )


# The operator's side


def _reports(options: argparse.Namespace) -> int:
    from .receiver import Receiver

    with Receiver((options.host, options.port), options.file, options.most_bytes, _now) as receiver:
        _say(f"torpor: reports to http://{options.host}:{receiver.server_port} are lines of {options.file}")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            receiver.serve_forever()
        except KeyboardInterrupt:
            _say("torpor: stopped")
    return DONE


def _start(options: argparse.Namespace) -> int:
    from torpor.knative.rollout_command import Progress

    from .layout import Layout
    from .repository import begin_rollout, publish
    from .rollout import Rollout

    keys = _keys(options)
    progress = Progress()
    with Layout.at(options.bundle) as layout:
        came = publish(options.repository, layout, lambda done, all: progress(f"{done} of {all} bytes", stays=False))
        progress.close()
        share, by_labels = _shares(options.percent)
        rollout = Rollout().raised(share, by_labels)
        offer = begin_rollout(options.repository, layout.index(), rollout, keys, _now(), options.days)
    print(f"{came} bytes are new in {options.repository}")
    print(_described(offer))
    return DONE


def _raise(options: argparse.Namespace) -> int:
    share, by_labels = _shares(options.percent)
    return _change(options, lambda rollout: rollout.raised(share, by_labels), again=options.again)


def _pause(options: argparse.Namespace) -> int:
    return _change(options, lambda rollout: rollout.paused())


def _change(options: argparse.Namespace, change: "Callable[[Rollout], Rollout]", again: bool = False) -> int:
    from .repository import change_rollout

    keys, target = _keys(options), _target(options)
    print(_described(change_rollout(options.repository, target, change, keys, _now(), options.days, again=again)))
    return DONE


def _withdraw(options: argparse.Namespace) -> int:
    from .repository import withdraw

    target = _target(options)
    stable = withdraw(options.repository, target, _keys(options), _now(), options.days)
    print(
        f"{target}: {f'nodes go back to {stable.version}' if stable else 'nothing is named; nodes keep what they have'}"
    )
    return DONE


def _refresh(options: argparse.Namespace) -> int:
    from .repository import change_offers

    change_offers(options.repository, _keys(options), _now(), options.days)
    print(f"what is named may be taken for {options.days} days")
    return DONE


def _status(options: argparse.Namespace) -> int:
    from .fleet_chart import moments, plot
    from .reports import read, serving, standing
    from .repository import offers_of

    offers = offers_of(options.repository)
    reports = read(options.reports) if options.reports else []
    values = []
    for target in [options.target] if options.target else sorted({_stem(name) for name in offers}):
        candidate = _candidate(offers, target)
        offer = candidate or offers.get(target)
        if offer is None:
            _say(f"torpor: {target} is not named, must be one of {', '.join(sorted({_stem(name) for name in offers}))}")
            return REFUSED
        found = standing(reports, offer.index.digest)
        values.append({"target": target, "stable": _value(offers.get(target)), "candidate": _value(candidate)}
                      | {"nodes": _counts(found)})  # fmt: skip
        if not options.json:
            print(_described(offer))
            _print_standing(found, reports, offer)
        if options.plot:
            plot(_described(offer), moments(reports, offer.index.digest), options.plot)
    versions: dict[str, int] = {}
    for version in serving(reports).values():
        versions[version] = versions.get(version, 0) + 1
    if options.json:
        print(json.dumps({"targets": values, "serving": versions}))
    elif versions:
        print("served: " + ", ".join(f"{version} by {count}" for version, count in sorted(versions.items())))
    return DONE


def _print_standing(found: "Standing", reports: "list[Report]", offer: "Offer") -> None:
    from .fleet_chart import chart, moments

    print(chart(moments(reports, offer.index.digest), plain=not sys.stdout.isatty()))
    for node, why in list(found.failed.items())[-MOST_PRINTED:]:
        print(f"{node} failed: {why}")


def _watch(options: argparse.Namespace) -> int:
    from torpor.knative.rollout_command import Progress

    from .course import Do, Terms, order
    from .reports import read, standing
    from .repository import change_rollout, offers_of, withdraw
    from .rollout import Rollout

    keys, target = _keys(options), _target(options)
    terms = Terms(options.steps, options.hold, options.max_failed, options.min_reports)
    progress, raised_s = Progress(), time.monotonic()
    try:
        while True:
            offer = _candidate(offers_of(options.repository), target)
            if offer is None or offer.rollout is None:
                progress.close()
                print(f"{target}: the candidate was taken back, or is in force")
                return REFUSED
            rollout = offer.rollout
            found = standing(read(options.reports), offer.index.digest)
            given = order(rollout, found, time.monotonic() - raised_s, terms)
            if given.what is Do.RAISE:
                raised = partial(Rollout.raised, share=given.share, by_labels={})
                offer = change_rollout(options.repository, target, raised, keys, _now(), options.days)
                raised_s = time.monotonic()
                progress(_described(offer), stays=True)
            elif given.what is Do.STOP:
                progress.close()
                if options.withdraw:
                    withdraw(options.repository, target, keys, _now(), options.days)
                else:
                    change_rollout(
                        options.repository, target, lambda rollout: rollout.paused(), keys, _now(), options.days
                    )
                print(f"{target}: {'withdrawn' if options.withdraw else 'paused'}: {given.why}")
                for node, why in list(found.failed.items())[-MOST_PRINTED:]:
                    print(f"{node} failed: {why}")
                return REFUSED
            elif given.what is Do.END:
                progress.close()
                print(f"{_described(offer)}: {given.why}")
                return REFUSED if rollout.is_paused else DONE
            else:
                progress(
                    f"{_described(offer)}: {len(found.healthy)} healthy, {len(found.failed)} failed, {given.why}", False
                )
                time.sleep(LOOK_S)
    except KeyboardInterrupt:
        progress.close()
        _say(f"torpor: {target} stays as it is; the same command goes on")
        return 130


def _keys(options: argparse.Namespace) -> "Mapping[str, CryptoSigner]":
    from .repository import read_key

    return {role: read_key(options.keys / f"{role}.pem") for role in ROLES[1:]}


def _target(options: argparse.Namespace) -> str:
    """The one that was asked for, or the only one that has a candidate. Raises Refused."""
    from .refused import Refused
    from .repository import offers_of

    rolled = [_stem(name) for name, offer in offers_of(options.repository).items() if offer.rollout]
    if options.target:
        return str(options.target)
    if len(rolled) != 1:
        raise Refused("state", f"{', '.join(rolled) or 'nothing'} is rolled out; --target says which is meant")
    return rolled[0]


def _stem(name: str) -> str:
    from .rollout import NEXT

    return name.removesuffix(NEXT)


def _candidate(offers: "Offered", target: str) -> "Offer | None":
    from .rollout import NEXT

    return offers.get(target + NEXT)


def _described(offer: "Offer") -> str:
    from .rollout import percent

    if offer.rollout is None:
        return f"{offer.target}: {offer.version} is in force"
    shares = [f"{percent(offer.rollout.share)} % of the nodes"]
    shares += [f"{percent(share)} % of {labels}" for labels, share in sorted(offer.rollout.by_labels.items())]
    text = f"{_stem(offer.target)}: {offer.version} is for {', '.join(shares)}"
    return text + (", and paused" if offer.rollout.is_paused else "")


def _value(offer: "Offer | None") -> dict[str, Any] | None:
    if offer is None:
        return None
    return {"index": offer.index.digest, **offer.custom()["torpor"]}


def _counts(found: "Standing") -> dict[str, Any]:
    return {"healthy": len(found.healthy), "failed": found.failed, "refused": found.refused, "waiting": found.waiting}


def _shares(given: list[tuple[str, int]]) -> tuple[int | None, dict[str, int]]:
    shares = dict(given)
    return shares.pop("", None), shares


def _share(text: str) -> tuple[str, int]:
    """Of `ring=canary:100` or `5`: the labels and the share."""
    from .refused import Refused
    from .rollout import labels_of, labels_text

    labels, _, number = text.rpartition(":")
    try:
        return labels_text(labels_of(labels)), _hundredths(number)
    except Refused as refused:
        raise argparse.ArgumentTypeError(str(refused)) from None


def _hundredths(text: str) -> int:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}, must be a percentage in [0, 100]")
    return round(value * 100)


def _steps(text: str) -> tuple[int, ...]:
    steps = tuple(map(_hundredths, text.split(",")))
    if list(steps) != sorted(set(steps)):
        raise argparse.ArgumentTypeError(f"{text!r}, must ascend")
    return steps


def _bound(text: str) -> float:
    return _hundredths(text) / 10_000


def _seconds(text: str) -> float:
    from torpor.knative.durations import seconds

    try:
        return seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _days(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, must be at least 1")
    return int(text)
