"""What the API server checks by a kind's schema, and what it does not: fields that no schema has are refused here.

The API server drops unknown fields; kubectl warns of them unless told otherwise, and what KServe's controller writes for a user
vanishes without a word. Own code instead of jsonschema: the messages name what a field may be and which name was meant, and
Kubernetes' dialect (int-or-string, lists with keys, open objects) would need as much code around a library.
"""

import difflib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from typing import Any

from .crds import Table
from .findings import Finding
from .manifests import Place

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "int-or-string": (int, str),
}
_WORDS = {
    "object": "an object", "array": "a list", "string": "a string", "boolean": "true or false",
    "integer": "a whole number", "number": "a number", "int-or-string": "a whole number or a string",
}  # fmt: skip
FORMER = {"serving.kubeflow.org": "serving.kserve.io"}
"""Groups that kinds here were in once."""
CLOSED = {
    "serving.kserve.io": ("LLMInferenceService", "LLMInferenceServiceConfig"),
    "serving.knative.dev": (),
}
"""Groups in which nobody else has kinds, and those of theirs that are not checked here. Eventing's have Kafka's and others'."""

_RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}


class Schemas:
    """Kinds by `apiVersion/kind`, each with the table that it is in and the project and version that it is of."""

    def __init__(self, base: "Schemas | None" = None) -> None:
        self._kinds: dict[str, tuple[str, list[dict[str, Any]], int]] = dict(base._kinds) if base else {}

    def add(self, source: str, schemas: list[dict[str, Any]], kinds: dict[str, int]) -> None:
        """Those of another project; a kind that is there already is taken from here."""
        for name, index in kinds.items():
            self._kinds[name] = source, schemas, index

    def add_table(self, source: str, table: Table) -> None:
        self.add(source, table.schemas, table.kinds)

    def source(self, api_version: str, kind: str) -> str:
        """Project and version; '' for a kind that nobody here knows."""
        return self._kinds.get(f"{api_version}/{kind}", ("",))[0]

    def check(self, data: dict[str, Any]) -> Iterator[Finding]:
        """Of a document whose kind is known. Yields nothing for others."""
        found = self._kinds.get(f"{data.get('apiVersion')}/{data.get('kind')}")
        if found:
            source, schemas, index = found
            yield from _Check(source, schemas).value(data, schemas[index], ())

    def check_part(self, api_version: str, kind: str, steps: Place, value: Any) -> Iterator[Finding]:
        """Of a value as it would stand there in such a document; places begin at the value."""
        source, schemas, index = self._kinds[f"{api_version}/{kind}"]
        for step in steps:
            index = schemas[index]["properties"][step]
        yield from _Check(source, schemas).value(value, schemas[index], ())

    def kind(self, api_version: str, kind: str) -> Iterator[Finding]:
        """What is wrong with these two, if the kind is not known but was meant to be one of those here."""
        name = f"{api_version}/{kind}"
        if name in self._kinds:
            return
        group = api_version.rpartition("/")[0]
        kinds = {known.rpartition("/")[2] for known in self._kinds}
        groups = {known.split("/")[0] for known in self._kinds}
        there = sorted({known.rpartition("/")[2] for known in self._kinds if known.split("/")[0] == group})
        if kind in there:
            versions = sorted(
                known.rpartition("/")[0]
                for known in self._kinds
                if known.startswith(group) and known.endswith("/" + kind)
            )
            yield Finding(
                "api-version", ("apiVersion",), api_version, _one_of(versions), f"{kind} has no other version"
            )
        elif kind in CLOSED.get(group, ()):
            return
        elif there and (group in CLOSED or _meant(kind, there, 0.8)):
            why = f"{group} has no such kind{_meant(kind, there, 0.6)}"
            yield Finding("kind", ("kind",), kind, _one_of(there), why)
        elif kind in kinds and group in FORMER:
            yield Finding(
                "api-version", ("apiVersion",), api_version, f"{FORMER[group]}/…", f"{group} is its former group"
            )
        elif kind in kinds and difflib.get_close_matches(group, groups, 1, 0.8) and not there:
            versions = sorted(known.rpartition("/")[0] for known in self._kinds if known.endswith("/" + kind))
            yield Finding("api-version", ("apiVersion",), api_version, _one_of(versions), "there is no such group")


@lru_cache(maxsize=1)
def bundled() -> Schemas:
    """Those that came with torpor; `schemas/README.md` says which versions."""
    schemas = Schemas()
    for file in sorted(resources.files(__package__).joinpath("schemas").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            table = json.loads(file.read_text())
            schemas.add(table["source"], table["schemas"], table["kinds"])
    return schemas


class _Check:
    def __init__(self, source: str, schemas: list[dict[str, Any]]) -> None:
        self._source = source
        self._schemas = schemas

    def value(self, value: Any, schema: dict[str, Any], place: Place) -> Iterator[Finding]:
        kind = schema.get("type")
        if kind is None or (value is None and schema.get("nullable")):
            return
        is_number = isinstance(value, float) and (
            (kind == "integer" and value.is_integer())
            or (kind == "int-or-string" and _is_quantity(schema))  # cpu: 0.5, which the API server takes
        )
        if not (isinstance(value, _TYPES[kind]) or is_number) or (isinstance(value, bool) and kind != "boolean"):
            yield Finding("type", place, value, _WORDS[kind], _why_type(value, kind))
            return
        if isinstance(value, dict):
            yield from self._object(value, schema, place)
        elif isinstance(value, list):
            yield from self._list(value, schema, place)
        else:
            yield from self._scalar(value, schema, place)

    def _object(self, value: dict[str, Any], schema: dict[str, Any], place: Place) -> Iterator[Finding]:
        known = schema.get("properties", {})
        rest = schema.get("additionalProperties")
        for name, part in value.items():
            if name in known:
                yield from self.value(part, self._schemas[known[name]], (*place, name))
            elif rest is not None:
                yield from self.value(part, self._schemas[rest], (*place, name))
            elif not schema.get("open"):
                why = f"{self._source} has no such field here and drops it{_meant(name, known)}"
                yield Finding("unknown-field", (*place, name), part, "left out", why)
        for name in schema.get("required", ()):
            if name not in value:
                yield Finding(
                    "missing", (*place, name), None, "given", f"{self._source} refuses {_what(place)} without it"
                )

    def _list(self, value: list[Any], schema: dict[str, Any], place: Place) -> Iterator[Finding]:
        if len(value) < schema.get("minItems", 0):
            yield Finding("value", place, value, f"at least {schema['minItems']} long", f"{self._source} refuses it")
        if "items" in schema:
            for number, item in enumerate(value):
                yield from self.value(item, self._schemas[schema["items"]], (*place, number))
        if keys := schema.get("keys"):
            seen: dict[tuple[str, ...], int] = {}
            for number, item in enumerate(value):
                if isinstance(item, dict) and keys[0] in item:
                    identity = tuple(str(item.get(key, "")) for key in keys)
                    if identity in seen:
                        why = f"item {seen[identity]} has it too, and the API server takes no list with both"
                        yield Finding("duplicate-item", (*place, number, keys[0]), item[keys[0]], "unique", why)
                    seen.setdefault(identity, number)

    def _scalar(self, value: Any, schema: dict[str, Any], place: Place) -> Iterator[Finding]:
        why = f"{self._source} refuses anything else"
        if "enum" in schema and value not in schema["enum"]:
            meant = _meant(value, schema["enum"]) if isinstance(value, str) else ""
            yield Finding("value", place, value, _one_of(schema["enum"]), why + meant)
        low, high = _RANGES.get(schema.get("format", ""), (None, None))
        low, high = schema.get("minimum", low), schema.get("maximum", high)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and ((low is not None and value < low) or (high is not None and value > high)):
            bounds = f"at least {low}" if high is None else f"in [{low}, {high}]"
            yield Finding("value", place, value, bounds, why)
        if isinstance(value, str):
            if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
                shortest, longest = schema.get("minLength", 0), schema.get("maxLength")
                size = f"{shortest} to {longest}" if longest else f"at least {shortest}"
                yield Finding("value", place, value, f"{size} characters", why)
            if "pattern" in schema and not re.search(schema["pattern"], value):
                must = "a quantity, like 500m, 2 or 1.5Gi" if _is_quantity(schema) else f"like {schema['pattern']}"
                yield Finding("value", place, value, must, why)


def _is_quantity(schema: dict[str, Any]) -> bool:
    return "KMGTPE" in schema.get("pattern", "")


def _why_type(value: Any, kind: str) -> str:
    if kind in ("string", "int-or-string") and isinstance(value, bool | int | float):
        return "without quotes YAML reads it as " + ("a boolean" if isinstance(value, bool) else "a number")
    if value is None:
        return "nothing stands there"
    if kind in ("integer", "boolean", "number") and isinstance(value, str):
        return "in quotes it is a string"
    return "the API server refuses anything else"


def _what(place: Place) -> str:
    """`an item of containers`, `template`."""
    if not place:
        return "the object"
    return f"an item of {place[-2]}" if isinstance(place[-1], int) else str(place[-1])


def _one_of(words: list[Any]) -> str:
    shown = [word if isinstance(word, str) else json.dumps(word) for word in words]
    return shown[0] if len(shown) == 1 else f"one of {', '.join(shown)}"


def _meant(name: str, known: Any, nearness: float = 0.7) -> str:
    """`; was X meant?`, of names that are nearly the same, whatever their case."""
    folded = {str(word).lower(): str(word) for word in known}
    near = difflib.get_close_matches(name.lower(), folded, 1, nearness)
    return f"; was {folded[near[0]]} meant?" if near else ""
