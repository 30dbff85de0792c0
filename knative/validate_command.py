"""`torpor validate`: what is wrong with YAML files of KServe and Knative, by line, before a cluster sees them."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .findings import Finding
    from .manifests import Document

_COLOURS = {"error": "\x1b[31m", "warning": "\x1b[33m"}
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


def add_command(commands: Any) -> None:
    """Add `validate` to the sub-commands of `torpor`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "validate",
        help="check YAML files of KServe and Knative",
        description="Checks InferenceService, ServingRuntime, Knative Service, Broker, Trigger and their like by the schemas "
        "of KServe and Knative and by rules that no schema has. Objects of other groups are read, and not checked.",
        epilog="Exit status: 0 no error, 1 errors (with --strict warnings too), 2 no such file, or a wrong argument.",
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="a file, a folder, or - for standard input")
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="json: one object a line (default text)"
    )
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    parser.add_argument("--strict", action="store_true", help="a warning counts as an error")
    parser.add_argument("--quiet", action="store_true", help="errors only")
    parser.add_argument("--crds", type=Path, metavar="FILE", action="append", default=[],
                        help="schemas of a cluster's own CustomResourceDefinitions: kubectl get crd -o json")  # fmt: skip
    parser.add_argument("--rules", action="store_true", help="list the rules, and end")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace, began_s: float) -> int:
    from .rules import ERRORS, RULES, findings
    from .schema import Schemas, bundled

    if options.rules:
        for name, about in RULES.items():
            print(f"{name:<24} {'error' if name in ERRORS else 'warning':<8} {about}")
        return 0
    if not options.files:
        print("torpor: validate: no FILE is given", file=sys.stderr)
        return 2
    try:
        schemas = Schemas(bundled())
        if options.crds:
            from .crds import table_of

            schemas.add_table("the cluster", table_of(options.crds))
        documents = list(_documents(options.files))
    except OSError as error:
        print(f"torpor: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"torpor: {error}", file=sys.stderr)
        return 2
    found = [pair for pair in findings(documents, schemas) if not options.quiet or pair[1].severity == "error"]
    found.sort(key=lambda pair: (documents.index(pair[0]), _line(*pair), pair[1].severity))
    colour = options.format == "text" and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for document, finding in found:
        print(_json(document, finding) if options.format == "json" else _text(document, finding, colour))
    errors = sum(finding.severity == "error" for _, finding in found)
    if options.format == "text":
        unchecked = sorted(
            {document.kind for document in documents if not schemas.source(document.api_version, document.kind)}
        )
        print(
            _summary(len(documents), errors, len(found) - errors, [kind for kind in unchecked if kind]), file=sys.stderr
        )
    return 1 if errors or (options.strict and found) else 0


def _documents(files: list[Path]) -> "Iterator[Document]":
    """Raises OSError."""
    from .manifests import files_of, read, read_file

    for given in files:
        if str(given) == "-":
            yield from read(sys.stdin.read())
            continue
        for file in files_of(given):
            yield from read_file(file)


def _line(document: "Document", finding: "Finding") -> int:
    return finding.line or document.line_of(finding.place)


def _text(document: "Document", finding: "Finding", colour: bool) -> str:
    where = f"{document.file}:{_line(document, finding)}:"
    severity = f"{finding.severity}:"
    if colour:
        where = f"{_BOLD}{where}{_PLAIN}"
        severity = f"{_COLOURS[finding.severity]}{severity}{_PLAIN}"
    return f"{where} {severity} {finding.message} [{finding.rule}]"


def _json(document: "Document", finding: "Finding") -> str:
    from .manifests import text_of

    return json.dumps(
        {
            "file": document.file,
            "line": _line(document, finding),
            "severity": finding.severity,
            "rule": finding.rule,
            "kind": document.kind,
            "name": document.name,
            "path": text_of(finding.place),
            "value": finding.value,
            "must": finding.must,
            "why": finding.why,
            "message": finding.message,
        },
        default=str,
    )


def _summary(objects: int, errors: int, warnings: int, unchecked: list[str]) -> str:
    def count(number: int, what: str) -> str:
        return f"{number} {what}{'' if number == 1 else 's'}"

    rest = f"; not checked: {', '.join(unchecked)}" if unchecked else ""
    return f"{count(objects, 'object')}, {count(errors, 'error')}, {count(warnings, 'warning')}{rest}"
