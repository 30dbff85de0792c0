"""The documents of YAML files, with the file and line of each, for messages."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class UpError(Exception):
    """What `torpor up` cannot run as it stands: the text names where, what, and what to do."""


def reason_of(error: OSError) -> str:
    """Without what Python and uvloop write around it."""
    return os.strerror(error.errno).lower() if error.errno else str(error)


@dataclass(frozen=True)
class Document:
    """content: a mapping. where: FILE:LINE."""

    content: dict[str, Any]
    where: str

    @property
    def kind(self) -> tuple[str, str]:
        """The API group, "" for the core's, and the kind."""
        group, slash, _ = str(self.content.get("apiVersion", "")).partition("/")
        return (group if slash else ""), str(self.content.get("kind", ""))

    @property
    def metadata(self) -> dict[str, Any]:
        found = self.content.get("metadata")
        return found if isinstance(found, dict) else {}

    @property
    def name(self) -> str:
        return str(self.metadata.get("name", ""))

    @property
    def annotations(self) -> dict[str, Any]:
        return self.metadata.get("annotations") or {}

    @property
    def spec(self) -> dict[str, Any]:
        found = self.content.get("spec")
        return found if isinstance(found, dict) else {}


def read_documents(files: Iterable[Path]) -> list[Document]:
    """Raises UpError."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    documents: list[Document] = []
    for file in files:
        try:
            # The round-trip loader knows lines; without aliases kept apart, what it gives are plain dicts and lists.
            for content in YAML(typ="rt").load_all(file.read_text()):
                if content is None:
                    continue
                if not isinstance(content, dict):
                    raise UpError(f"{file}: a document is {type(content).__name__}, must be a mapping")
                line = content.lc.line + 1  # type: ignore[attr-defined]
                documents.append(Document(content, f"{file}:{line}"))
        except (OSError, UnicodeDecodeError) as error:
            raise UpError(f"{file}: {error}") from error
        except YAMLError as error:
            raise UpError(f"{file}: no YAML: {' '.join(str(error).split())}") from error
    return documents
