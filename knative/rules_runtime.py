"""Rules of ServingRuntime and ClusterServingRuntime."""

import re
from collections.abc import Iterator

from .fields import Field
from .findings import Finding
from .manifests import template_in
from .rules_pod import pod
from .schema import Schemas

PROTOCOLS = ("v1", "v2", "grpc-v1", "grpc-v2")
_PLACEHOLDER = re.compile(r"\{\{-?\s*\.(Name|Namespace|UID|GenerateName|(Labels|Annotations)\.\w+)\s*-?\}\}")
"""KServe fills them in from the InferenceService's metadata, by Go's text/template."""


def serving_runtime(top: Field, schemas: Schemas) -> Iterator[Finding]:
    spec = top["spec"]
    yield from pod(spec)
    yield from placeholders(spec)
    names = [container["name"].text for container in spec["containers"]]
    if spec["multiModel"].value is not True and names and "kserve-container" not in names:
        why = "KServe looks for that name, and an InferenceService with this runtime never gets ready"
        yield spec["containers"][0]["name"].finding("runtime-container", "kserve-container", why)
    priorities: dict[str, float] = {}
    for form in spec["supportedModelFormats"]:
        name, priority = form["name"].text, form["priority"]
        if priority.number is None or form["autoSelect"].value is not True:
            continue
        if priorities.setdefault(name, priority.number) != priority.number:
            why = f"{name} has another priority above; KServe refuses two in one runtime"
            yield priority.finding("runtime-priority", f"{priorities[name]:g}", why)
    for version in spec["protocolVersions"]:
        if version.text and version.text not in PROTOCOLS:
            why = "no InferenceService asks for it, and the runtime is not found"
            yield version.finding("runtime-protocol", f"one of {', '.join(PROTOCOLS)}", why)


def placeholders(field: Field) -> Iterator[Finding]:
    """Every template in a runtime's strings must be one that KServe fills in."""
    if isinstance(field.value, dict):
        for part in field.entries.values():
            yield from placeholders(part)
    elif isinstance(field.value, list):
        for part in field:
            yield from placeholders(part)
    elif template_in(_PLACEHOLDER.sub("", field.text)):
        must = "one of {{.Name}}, {{.Namespace}}, {{.Labels.KEY}}, {{.Annotations.KEY}}"
        yield field.finding("runtime-template", must, "KServe fills in no other")
