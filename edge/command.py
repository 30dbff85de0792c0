"""`torpor edge`: bundles, from their making to a node that serves them."""

import argparse
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .agent_settings import NODE_ROOT
from .fleet_command import add_commands as add_fleet
from .roles import ROLES

if TYPE_CHECKING:
    from .bundle import Input
    from .contents import Contents
    from .generations import Generation
    from .trust import Accepted

DONE, REFUSED, WRONG = 0, 1, 2

_IMAGE = "localhost/torpor:dev"
_INPUTS = {
    "model": "a model's folder",
    "image": "a container image as a tar archive",
    "manifest": "YAML, a file or a folder",
    "profile": "what the node is like",
    "sbom": "an SBOM of an input",
}


def add_command(commands: Any) -> None:
    """Add `edge` to the sub-commands of `torpor`."""
    edge: argparse.ArgumentParser = commands.add_parser(
        "edge",
        help="bundles for edge nodes: make, sign, check, install, take back",
        description="Bundles for edge nodes: one signed file or folder with models, images and manifests.",
        epilog="Exit status: 0 done; 1 refused, with the reason in brackets, and nothing has changed; 2 a wrong argument.",
    )
    kinds = edge.add_subparsers(metavar="COMMAND", required=True)

    profile = _add(kinds, "profile", _profile, "make the files of a node from its description")
    profile.add_argument("profile", type=Path, metavar="FILE", help="the node's description, TOML (docs/edge.md)")
    profile.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new or empty")
    profile.add_argument(
        "--model", type=Path, metavar="FOLDER", help="a model's folder: its workload, sized for the node"
    )
    profile.add_argument("--service", type=Path, metavar="FILE", help="its InferenceService, instead of a plain one")
    profile.add_argument("--path", default="", metavar="PATH", help="where the image has the model, if not the bundle")
    text = f"of the pods (default {_IMAGE})"
    profile.add_argument("--image", default=_IMAGE, help=text)
    profile.add_argument("--namespace", default="torpor", help="of the workload (default torpor)")

    bundle = _add(kinds, "bundle", _bundle, "make a bundle: the same inputs and build time give the same bytes")
    bundle.add_argument("out", type=Path, metavar="OUT", help="a folder, or one file by the name NAME.tar")
    bundle.add_argument("--name", required=True, help="of the bundle; a node takes those of one name")
    bundle.add_argument("--release", required=True, metavar="VERSION", help="what people call it")
    bundle.add_argument("--platform", default="any", help="linux/amd64, linux/arm64, linux/arm, or any (default)")
    text = "such as 2026-01-31T12:00:00Z (default: $SOURCE_DATE_EPOCH, else now)"
    bundle.add_argument("--built", metavar="TIME", help=text)
    for kind, what in _INPUTS.items():
        bundle.add_argument(
            f"--{kind}", action="append", default=[], metavar="[NAME=]PATH", help=f"{what}; may be repeated"
        )

    keys = _add(kinds, "keys", _keys, "make the keys and the first root, or replace a key")
    keys.add_argument(
        "keys", type=Path, metavar="KEYS", help="the folder of private keys, ROLE.pem; keep root.pem elsewhere"
    )
    keys.add_argument("--repository", type=Path, required=True, metavar="FOLDER", help="of TUF's metadata")
    text = "make a new key for this role, and a root that names it; takes root.pem"
    keys.add_argument("--replace", choices=ROLES, metavar="ROLE", help=text)

    sign = _add(kinds, "sign", _sign, "put a bundle in force")
    sign.add_argument("bundle", type=Path, metavar="BUNDLE")
    sign.add_argument(
        "--keys", type=Path, required=True, metavar="KEYS", help="with targets.pem, snapshot.pem, timestamp.pem"
    )
    sign.add_argument("--repository", type=Path, required=True, metavar="FOLDER", help="of TUF's metadata")
    text = "until it may not be installed any more (default 90); what is installed goes on"
    sign.add_argument("--days", type=int, default=90, metavar="N", help=text)

    verify = _add(kinds, "verify", _verify, "check signatures, times and every byte of a bundle")
    verify.add_argument("bundle", type=Path, metavar="BUNDLE")
    from_where = verify.add_mutually_exclusive_group(required=True)
    from_where.add_argument("--root", type=Path, metavar="FILE", help="the root to trust: N.root.json")
    from_where.add_argument("--node", type=Path, metavar="FOLDER", help="as this node would, with what it has accepted")

    diff = _add(kinds, "diff", _diff, "what an update moves")
    diff.add_argument("old", type=Path, metavar="OLD")
    diff.add_argument("new", type=Path, metavar="NEW")
    text = "write NEW without what OLD has, as one file, for nodes that have OLD"
    diff.add_argument("--out", type=Path, metavar="FILE", help=text)
    diff.add_argument("--json", action="store_true", help="print an object")

    install = _add(kinds, "install", _install, "serve a bundle on this node")
    install.add_argument("bundle", type=Path, metavar="BUNDLE")
    install.add_argument("--root", type=Path, metavar="FILE", help="the first root to trust, on a node that has none")
    text = "install although metadata has expired; TEXT is recorded, and says who decided so and why"
    install.add_argument("--accept-expired", default="", metavar="TEXT", help=text)
    rollback = _add(kinds, "rollback", _rollback, "serve what was served before")
    place = _add(
        kinds, "place", _place, "put what is served where K3s or systemd looks for it, as install and rollback do"
    )
    for parser in (install, rollback, place):
        where = parser.add_mutually_exclusive_group(required=parser is place)
        where.add_argument(
            "--k3s", type=Path, metavar="FOLDER",
            help="K3s's data folder, /var/lib/rancher/k3s: images and manifests are put there",
        )  # fmt: skip
        where.add_argument(
            "--systemd", type=Path, metavar="FOLDER",
            help="systemd's folder of units, /etc/systemd/system: a unit for each model is put there, and restarted",
        )  # fmt: skip
    report = _add(
        kinds, "report", _report, "tell the node's broker what is served, at each change and from time to time"
    )
    report.add_argument("broker", metavar="URL", help="of the broker on this node, such as http://127.0.0.1:8081/")
    report.add_argument("--name", required=True, help="of this node")
    report.add_argument("--ready", action="append", default=[], metavar="URL",
                        help="what answers 2xx if it is well: http://127.0.0.1:8080/v2/health/ready; repeatable")  # fmt: skip
    report.add_argument("--every-s", type=float, default=300.0, metavar="SECONDS", help="(default 300)")
    report.add_argument("--once", action="store_true", help="report once; exit status 1 if the broker does not take it")
    status = _add(kinds, "status", _status, "what is served, what was before, until when updates are taken")
    doctor = _add(kinds, "doctor", _doctor, "check what is served and the machine, and say what mends it")
    for parser in (install, rollback, place, report, status, doctor, profile):
        text = f"the folder of the node's bundles (default {NODE_ROOT})"
        parser.add_argument("--node", type=Path, default=Path(NODE_ROOT), metavar="FOLDER", help=text)
    for parser in (status, install, doctor):
        parser.add_argument("--json", action="store_true", help="print an object")
    add_fleet(kinds, _add)


def _add(kinds: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = kinds.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")

    def guarded(options: argparse.Namespace, began_s: float) -> int:
        from .refused import Refused

        try:
            return run(options)
        except Refused as refused:
            print(f"torpor: {refused}", file=sys.stderr)
            return REFUSED
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in ("tuf", "securesystemslib", "cryptography"):
                raise
            print(f"torpor: the package {error.name} is missing: pip install torpor[edge]", file=sys.stderr)
            return WRONG
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            print(f"torpor: {where}{error.strerror}", file=sys.stderr)
            return WRONG

    parser.set_defaults(run=guarded)
    return parser


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _profile(options: argparse.Namespace) -> int:
    from .profiles.files import node_files
    from .profiles.profile import read_profile

    if options.path and not options.model:
        print("torpor: --path, but no --model", file=sys.stderr)
        return WRONG
    if options.out.exists() and any(options.out.iterdir()):
        print(f"torpor: {options.out} has files, must be new or empty", file=sys.stderr)
        return WRONG
    profile = read_profile(options.profile.read_bytes(), str(options.profile))
    service = options.service.read_text() if options.service else ""
    files = node_files(
        profile, service, options.model, options.path, options.image, options.namespace, str(options.node)
    )
    for name, text in files.items():
        path = options.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in files:  # when all are there, whoever reads this
        print(options.out / name)
    return DONE


def _bundle(options: argparse.Namespace) -> int:
    from .bundle import make_bundle
    from .contents import time_of
    from .layout import Layout

    if options.built:
        built = time_of(options.built, "--built")
    else:
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        built = datetime.fromtimestamp(int(epoch), UTC) if epoch else _now()
    inputs = [given for kind in _INPUTS for given in _inputs(options, kind)]
    if options.out.exists():
        print(f"torpor: {options.out} exists", file=sys.stderr)
        return WRONG
    beside = options.out.with_name(options.out.name + ".folder")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        blob, contents = make_bundle(beside, options.name, options.release, options.platform, built, inputs)
        if options.out.suffix == ".tar":
            with Layout.at(beside) as layout:
                layout.pack(options.out, {})
        else:
            beside.rename(options.out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    parts = contents.parts().values()
    print(f"{_titled(contents)}: {len(parts)} parts, {sum(part.size for part in parts)} bytes")
    print(f"index {blob.digest}")
    return DONE


def _inputs(options: argparse.Namespace, kind: str) -> "list[Input]":
    from .bundle import Input

    inputs = []
    for given in getattr(options, kind):
        name, equals, path = given.rpartition("=")
        inputs.append(Input(kind, name if equals else Path(path).resolve().stem.lower(), Path(path)))
    return inputs


def _keys(options: argparse.Namespace) -> int:
    from .refused import Refused
    from .repository import begin, make_key, read_key, replace_key

    if options.replace is None:
        begin(options.repository, {role: make_key(options.keys / f"{role}.pem") for role in ROLES}, _now())
        print(
            f"{options.repository / '1.root.json'} is what nodes trust first; keep {options.keys / 'root.pem'} offline"
        )
        return DONE
    root_key = read_key(options.keys / "root.pem")
    beside = options.keys / f"{options.replace}.pem.new"
    new = make_key(beside)
    # The key is on the disk before a root names it.
    try:
        replace_key(options.repository, options.replace, new, root_key, _now())
    except Refused:
        beside.unlink()
        raise
    beside.replace(options.keys / f"{options.replace}.pem")
    print(f"{options.replace} has a new key; bundles that are signed from now on carry the new root")
    return DONE


def _sign(options: argparse.Namespace) -> int:
    from .contents import time_text
    from .layout import Layout, put_metadata
    from .repository import read_key, sign

    if options.days < 1:
        print(f"torpor: --days = {options.days}, must be at least 1", file=sys.stderr)
        return WRONG
    keys = {role: read_key(options.keys / f"{role}.pem") for role in ROLES[1:]}
    with Layout.at(options.bundle) as layout:
        contents = layout.contents(layout.index())
        metadata = sign(options.repository, layout.index(), keys, _now(), options.days)
    put_metadata(options.bundle, metadata)
    print(f"{_titled(contents)} is in force, and may be installed for {options.days} days")
    print(f"built {time_text(contents.built)}")
    return DONE


def _verify(options: argparse.Namespace) -> int:
    from .contents import time_text
    from .layout import Layout
    from .node import Node
    from .refused import Refused
    from .trust import accept, first_trust

    if options.node:
        state = Node(options.node).state()
        if state is None:
            raise Refused("state", f"{options.node} trusts no root yet")
        trust = state.trust
    else:
        trust = first_trust(options.root.read_bytes())
    with Layout.at(options.bundle) as layout:
        index = layout.index()
        accepted = accept(trust, layout.metadata(), index, _now())
        contents = layout.contents(index)
        parts = list(contents.parts().values())
        there = [part for part in parts if layout.has(part)]
        for part in there:
            for _ in layout.chunks(part):
                pass
    print(f"{_titled(contents)}, built {time_text(contents.built)}: {len(there)} parts are as signed")
    if len(there) < len(parts):
        print(f"thin: {len(parts) - len(there)} parts are not in it")
    for line in _ends(accepted):
        print(line)
    return REFUSED if accepted.expired else DONE


def _ends(accepted: "Accepted") -> list[str]:
    from .contents import time_text

    return [_until(role, time_text(end), role in accepted.expired) for role, end in accepted.ends.items()]


def _until(role: str, end: str, is_expired: bool) -> str:
    return f"{role}: {'EXPIRED' if is_expired else 'valid until'} {end}"


def _diff(options: argparse.Namespace) -> int:
    from .difference import difference, unneeded
    from .layout import Layout

    with Layout.at(options.old) as old, Layout.at(options.new) as new:
        found = difference(old.contents(old.index()), new.contents(new.index()))
        if options.out:
            new.pack(options.out, new.metadata(), without=unneeded(new, found))
    if options.json:
        print(
            json.dumps(
                {
                    "added": found.added,
                    "removed": found.removed,
                    "changed": found.changed,
                    "moved_parts": len(found.moved),
                    "moved_bytes": found.moved_bytes,
                }
            )
        )
        return DONE
    for path in found.added:
        print(f"+ {path}")
    for path in found.removed:
        print(f"- {path}")
    for path, moved in found.changed.items():
        print(f"~ {path}: {moved} bytes")
    print(f"{len(found.moved)} parts, {found.moved_bytes} bytes are moved; {len(found.shared)} parts are there already")
    return DONE


def _install(options: argparse.Namespace) -> int:
    from .layout import Layout
    from .node import Node

    place = _placing(options)
    with Layout.at(options.bundle) as layout:
        root = options.root.read_bytes() if options.root else None
        done = Node(options.node).install(layout, _now(), root, options.accept_expired)
    place(done.generation)
    served = done.generation.described()
    if options.json:
        value = {
            **served, "new": done.is_new, "moved_bytes": done.bytes.moved,
            "found_bytes": done.bytes.found, "kept_bytes": done.bytes.kept, "expired": done.accepted.expired,
        }  # fmt: skip
        print(json.dumps(value))
        return DONE
    if not done.is_new:
        print(f"{_named(served)} is what is served already")
        return DONE
    print(
        f"{_named(served)} is served from {options.node / 'current'}: {done.bytes.moved} bytes moved, "
        f"{done.bytes.found} were on the node, {done.bytes.kept} were left by an installation that was broken off"
    )
    return DONE


def _rollback(options: argparse.Namespace) -> int:
    from .node import Node

    place = _placing(options)
    generation = Node(options.node).roll_back()
    place(generation)
    print(f"{_named(generation.described())} is served again")
    return DONE


def _place(options: argparse.Namespace) -> int:
    from .node import Node
    from .refused import Refused

    place = _placing(options)
    current = Node(options.node).current()
    if current is None:
        raise Refused("state", f"{options.node} serves nothing")
    for name in place(current):
        print(name)
    return DONE


def _placing(options: argparse.Namespace) -> "Callable[[Generation], list[str]]":
    """Where a generation goes. Before anything is changed: a folder that is not there is a wrong one."""
    from .k3s import K3s
    from .machine import Machine
    from .systemd import Systemd

    if options.k3s:
        k3s = K3s(options.k3s)
        return lambda generation: k3s.place(options.node / "current", generation.files)
    if options.systemd:
        return Systemd(options.systemd, options.node, Machine.here(), partial(print, file=sys.stderr)).place
    return lambda generation: []


def _status(options: argparse.Namespace) -> int:
    from .contents import time_text
    from .node import Node
    from .status import status

    value = status(Node(options.node))
    if options.json:
        print(json.dumps(value))
        return DONE
    for name in ("current", "before"):
        print(f"{name}: {_named(value[name]) if value[name] else 'nothing'}")
    if "state" in value:
        print(value["state"])
    for role, end in value.get("ends", {}).items():
        print(_until(role, end, end <= time_text(_now())))
    for record in value.get("history", ()):
        word = f", although {', '.join(record['expired'])} had expired: {record['word']}" if "word" in record else ""
        print(f"{record['at']} {record['version']}{word}")
    return DONE


def _report(options: argparse.Namespace) -> int:
    from .node import Node
    from .report import Watch, report

    if not 1 <= options.every_s < float("inf"):
        print(f"torpor: --every-s = {options.every_s:g}, must be at least 1", file=sys.stderr)
        return WRONG
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    watch = Watch(Node(options.node), options.name, options.ready)

    def say(text: str) -> None:
        print(text, flush=True)

    try:
        return DONE if report(watch, options.broker, options.every_s, over.wait, say, options.once) else REFUSED
    except ValueError as error:
        print(f"torpor: {error}", file=sys.stderr)
        return REFUSED


def _doctor(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from .doctor import findings
    from .machine import Machine
    from .node import Node

    found = list(findings(Node(options.node), Machine.here(), _now()))
    if options.json:
        print(json.dumps([asdict(finding) for finding in found]))
    else:
        for finding in found:
            print(f"{finding.level}: {finding.subject}: {finding.text}\n    {finding.command}")
        if not found:
            print("all is well")
    return REFUSED if any(finding.level == "error" for finding in found) else DONE


def _titled(contents: "Contents") -> str:
    return f"{contents.name} {contents.version} for {contents.platform}"


def _named(generation: dict[str, Any]) -> str:
    return f"{generation['bundle']} {generation['version']} (generation {generation['generation']})"
