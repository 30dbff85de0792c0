"""The documents of YAML files, with the file and line of each, for messages."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..manifests import files_of, read_file


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
    """Of files, and of the YAML files of folders. Raises UpError."""
    documents: list[Document] = []
    for path in [path for file in files for path in files_of(file)]:
        try:
            found = read_file(path)
        except OSError as error:
            raise UpError(f"{path}: {reason_of(error)}") from error
        for document in found:
            where = f"{document.file}:{document.line}"
            if document.faults:
                fault = document.faults[0]
                raise UpError(f"{document.file}:{fault.line}: {fault.message}")
            if not isinstance(document.data, dict):
                raise UpError(f"{where}: a document is {type(document.data).__name__}, must be a mapping")
            documents.append(Document(document.data, where))
    return documents
