"""A place in a document, with what stands there: rules walk by it, and what is missing or of the wrong type ends no walk."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .findings import Finding
from .manifests import Document, Place, Step


@dataclass(frozen=True)
class Field:
    """value: None for what is not there. A Field is true if it is."""

    value: Any
    place: Place = ()

    def __getitem__(self, step: Step) -> "Field":
        if isinstance(step, int):
            there = isinstance(self.value, list) and -len(self.value) <= step < len(self.value)
        else:
            there = isinstance(self.value, dict) and step in self.value
        return Field(self.value[step] if there else None, (*self.place, step))

    def __iter__(self) -> Iterator["Field"]:
        """The items of a list; none of anything else."""
        for number in range(len(self.value) if isinstance(self.value, list) else 0):
            yield self[number]

    def __bool__(self) -> bool:
        return self.value is not None

    @property
    def entries(self) -> dict[str, "Field"]:
        """Of an object; none of anything else."""
        return {name: self[name] for name in self.value} if isinstance(self.value, dict) else {}

    @property
    def text(self) -> str:
        """'' for what is no string."""
        return self.value if isinstance(self.value, str) else ""

    @property
    def texts(self) -> list[str]:
        """The strings of a list."""
        return [item.text for item in self if item.text]

    @property
    def number(self) -> int | float | None:
        """None for what is no number."""
        there = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        return self.value if there else None

    def finding(self, rule: str, must: str, why: str, severity: str = "") -> Finding:
        """severity: the rule's own unless given."""
        return Finding(rule, self.place, self.value, must, why, severity)


def fields_of(document: Document) -> Field:
    """The document's top."""
    return Field(document.data)
