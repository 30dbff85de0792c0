"""Rules of any object's metadata and strings, and of what several files say together."""

import re
from collections.abc import Iterator
from pathlib import Path

from .fields import Field, fields_of
from .findings import Finding
from .manifests import Document, template_in

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_KINDS = {"InferenceService": 50, "Service": 63, "Configuration": 63, "Route": 63}
"""Kinds whose name is a part of host names, and its longest: KServe adds -transformer to it and Knative a revision's number."""
_TEMPLATED = ("ServingRuntime", "ClusterServingRuntime", "ClusterStorageContainer")
"""Kinds in which KServe fills in placeholders of its own."""
_SHELL = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*(:?[-=?+][^}]*)?\}")
_NO_SHELL = ("args", "command", "value", "data")
"""Where `${X}` may be meant for a shell, or for a program."""


def metadata(top: Field, kind: str) -> Iterator[Finding]:
    """The object's name, and templates that are left in its strings."""
    name = top["metadata"]["name"]
    if top["metadata"] and not name and not top["metadata"]["generateName"].text:
        yield name.finding("name", "given", "the API server refuses an object without")
    longest = _LABEL_KINDS.get(kind, 253)
    pattern = _LABEL if kind in _LABEL_KINDS else _SUBDOMAIN
    left_in = template_in(name.text) or _SHELL.search(name.text)
    if name.text and not left_in and not (pattern.fullmatch(name.text) and len(name.text) <= longest):
        first, dot = ("a letter first", "") if kind in _LABEL_KINDS else ("a letter or digit first", ", .")
        must = f"of a-z, 0-9{dot} and -, {first}, no - last, at most {longest} characters"
        yield name.finding(
            "name", must, "it becomes a part of a host name" if kind in _LABEL_KINDS else "the API server refuses it"
        )
    yield from _templates(top, kind in _TEMPLATED)


def _templates(field: Field, runtime: bool) -> Iterator[Finding]:
    if isinstance(field.value, dict):
        for name, part in field.entries.items():
            if template_in(name):
                yield part.finding("template", "rendered", f"a template is left in, {template_in(name)}")
            yield from _templates(part, runtime)
    elif isinstance(field.value, list):
        for part in field:
            yield from _templates(part, runtime)
    elif not runtime and (found := template_in(field.text)):
        why = f"a template is left in, {found}: render it first"
        if re.fullmatch(r"\{\{\s*\.(Name|Namespace|Labels\S*|Annotations\S*)\s*\}\}", found):
            why = f"KServe fills in {found} in a ServingRuntime only"
        yield field.finding("template", "rendered", why)
    elif (shell := _SHELL.search(field.text)) and not set(_NO_SHELL) & set(field.place):
        yield field.finding("template", "rendered", f"{shell[0]} is left in, and nobody fills it in: envsubst first")


def together(documents: list[Document]) -> Iterator[tuple[Document, Finding]]:
    """Of all documents: each object once, and names of one that another has."""
    objects: dict[tuple[str, str, str, str], Document] = {}
    for document in documents:
        if not isinstance(document.data, dict) or not document.name:
            continue
        key = document.api_version.rpartition("/")[0], document.kind, _namespace(document), document.name
        if key in objects:
            first = objects[key]
            same = first.file == document.file
            if same or Path(first.file).parent == Path(document.file).parent:
                where = f"line {first.line}" if same else f"{first.file}:{first.line}"
                why = f"{where} has one of that kind and name, and the last one applied counts"
                name = fields_of(document)["metadata"]["name"]
                yield document, name.finding("duplicate-object", "unique", why, "" if same else "warning")
        objects.setdefault(key, document)
    yield from _names(documents, objects)


def _names(
    documents: list[Document], objects: dict[tuple[str, str, str, str], Document]
) -> Iterator[tuple[Document, Finding]]:
    brokers = {key[2:] for key in objects if key[:2] == ("eventing.knative.dev", "Broker")}
    services = {key[2:] for key in objects if key[:2] == ("serving.kserve.io", "InferenceService")}
    plain = {key[2:] for key in objects if key[1] == "Service"}
    for document in documents:
        top, namespace = fields_of(document), _namespace(document)
        if document.kind == "Trigger":
            broker = top["spec"]["broker"]
            there = sorted(name for space, name in brokers if space == namespace)
            if broker.text and there and broker.text not in there:
                why = "the trigger waits for it, and never gets ready"
                yield document, broker.finding("broker-name", f"one of {', '.join(there)}", why)
        for ref in _references(top["spec"]):
            name = ref["name"]
            target = (ref["namespace"].text or namespace, name.text)
            if ref["kind"].text == "Service" and target in services and target not in plain:
                component = (
                    "transformer"
                    if fields_of(objects["serving.kserve.io", "InferenceService", *target])["spec"]["transformer"]
                    else "predictor"
                )
                why = "the InferenceService's own name is no Knative Service's"
                yield document, name.finding("sink-name", f"{name.text}-{component}", why)


def _references(field: Field) -> Iterator[Field]:
    if isinstance(field.value, dict):
        if field["ref"]["kind"].text:
            yield field["ref"]
        for name, part in field.entries.items():
            if name != "ref":
                yield from _references(part)
    elif isinstance(field.value, list):
        for part in field:
            yield from _references(part)


def _namespace(document: Document) -> str:
    return fields_of(document)["metadata"]["namespace"].text
