"""CustomResourceDefinitions as a table of schemas: what `schema.py` checks by, and how `schemas/*.json` were made.

A CRD repeats a pod's whole schema for each of its components, a megabyte for InferenceService. In the table each distinct
schema is there once, and schemas name their parts by number. Texts, defaults and status are left out, and CEL rules, of which
the kinds here have none that a file could break.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_KEPT = (
    "type", "format", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "required", "nullable",
)  # fmt: skip
_OPEN = "x-kubernetes-preserve-unknown-fields"

_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
OBJECT_META: dict[str, Any] = {
    "type": "object",
    "properties": {
        **{
            name: {"type": "string"}
            for name in ("name", "generateName", "namespace", "uid", "resourceVersion", "selfLink")
        },
        **{name: {"type": "string", "nullable": True} for name in ("creationTimestamp", "deletionTimestamp")},
        **{name: {"type": "integer"} for name in ("generation", "deletionGracePeriodSeconds")},
        "labels": _STRINGS | {"nullable": True},
        "annotations": _STRINGS | {"nullable": True},
        "finalizers": {"type": "array", "items": {"type": "string"}},
        "ownerReferences": {"type": "array", "items": {"type": "object", _OPEN: True}},
        "managedFields": {"type": "array", "items": {"type": "object", _OPEN: True}},
    },
}
"""metav1.ObjectMeta, which CRDs leave to the API server."""


class Table:
    """schemas: each distinct one, its parts as indices. kinds: GROUP/VERSION/KIND to the index of its schema."""

    def __init__(self) -> None:
        self.schemas: list[dict[str, Any]] = []
        self.kinds: dict[str, int] = {}
        self._known: dict[str, int] = {}

    def add(self, crd: dict[str, Any]) -> None:
        """Every served version of a CustomResourceDefinition. Raises KeyError for one without schema."""
        spec = crd["spec"]
        for version in spec["versions"]:
            schema = dict(version["schema"]["openAPIV3Schema"])
            properties = dict(schema["properties"])
            properties.pop("status", None)
            properties |= {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": OBJECT_META,
                "status": {"type": "object", _OPEN: True},
            }
            schema["properties"] = properties
            schema["required"] = sorted({*schema.get("required", ()), "apiVersion", "kind", "metadata"})
            if version["served"]:
                self.kinds[f"{spec['group']}/{version['name']}/{spec['names']['kind']}"] = self._index(schema)

    def _index(self, schema: dict[str, Any]) -> int:
        short = {name: schema[name] for name in _KEPT if name in schema}
        if schema.get("x-kubernetes-int-or-string"):
            short["type"] = "int-or-string"
        if schema.get(_OPEN) or (
            schema.get("type") == "object" and not schema.keys() & {"properties", "additionalProperties"}
        ):
            short["open"] = True
        if schema.get("x-kubernetes-list-type") == "map":
            short["keys"] = schema["x-kubernetes-list-map-keys"]
        if "properties" in schema:
            short["properties"] = {name: self._index(part) for name, part in sorted(schema["properties"].items())}
        for name in ("items", "additionalProperties"):
            if isinstance(schema.get(name), dict):
                short[name] = self._index(schema[name])
        text = json.dumps(short, sort_keys=True)
        if text not in self._known:
            self._known[text] = len(self.schemas)
            self.schemas.append(short)
        return self._known[text]


def table_of(files: Iterable[Path]) -> Table:
    """Of every CustomResourceDefinition in the files, or in Lists there. Raises OSError, ValueError."""
    table = Table()
    for file in files:
        for document in _documents(file):
            for item in document.get("items") or [document]:
                if item.get("kind") == "CustomResourceDefinition" and "versions" in item.get("spec", ()):
                    table.add(item)
    if not table.kinds:
        raise ValueError(f"no CustomResourceDefinition in {', '.join(map(str, files))}")
    return table


def _documents(file: Path) -> Iterator[dict[str, Any]]:
    """Without lines, for which a megabyte would take a minute."""
    text = file.read_text()
    if file.suffix == ".json":
        documents = [json.loads(text)]
    else:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        try:
            documents = list(YAML(typ="safe", pure=True).load_all(text))
        except YAMLError as error:
            raise ValueError(f"{file}: {error}") from None
    yield from (document for document in documents if isinstance(document, dict))


def main() -> int:
    """Write a table of `schemas/`: `python -m torpor.knative.crds 'KServe 0.20.0' CRD.yaml... >kserve.json`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("source", help="project and version, which messages name")
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args()
    table = table_of(options.files)
    lines = ",\n".join(json.dumps(schema, sort_keys=True, separators=(",", ":")) for schema in table.schemas)
    kinds = json.dumps(table.kinds, sort_keys=True, indent=1)
    sys.stdout.write(f'{{"source": {json.dumps(options.source)},\n"kinds": {kinds},\n"schemas": [\n{lines}\n]}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
