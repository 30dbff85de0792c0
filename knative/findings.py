"""What `torpor validate` has to say of a place in a document."""

from dataclasses import dataclass
from typing import Any

from .manifests import Place, text_of


@dataclass(frozen=True)
class Finding:
    """rule: its id. must: what may stand there. why: what happens otherwise. severity: error or warning, '' for the rule's own.

    An error is refused by the cluster, or cannot work; a warning is accepted and does other than it says, or less. line: where
    there is no place, since the document could not be read.
    """

    rule: str
    place: Place
    value: Any
    must: str
    why: str
    severity: str = ""
    line: int = 0

    @property
    def message(self) -> str:
        """Path, value, what it must be, why."""
        if self.line:
            return self.why
        shown = "" if self.value is None else f" = {_short(self.value)}"
        return f"{text_of(self.place) or 'document'}{shown}, must be {self.must}: {self.why}"


def _short(value: Any) -> str:
    """Objects and lists by their size only; a string's beginning."""
    if isinstance(value, dict):
        return "{…}" if value else "{}"
    if isinstance(value, list):
        return f"[{len(value)} items]" if value else "[]"
    if isinstance(value, bool):
        return str(value).lower()
    text = " ".join(str(value).split())
    text = text if len(text) <= 80 else text[:77] + "..."
    return f'"{text}"' if isinstance(value, str) else text
