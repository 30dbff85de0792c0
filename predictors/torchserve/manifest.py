"""An archive's MAR-INF/MANIFEST.json, as `torch-model-archiver` writes it. Every field may be missing, as for TorchServe."""

from dataclasses import dataclass, field
from typing import Any

import orjson

from ..settings import SettingError

PLACE = "MAR-INF/MANIFEST.json"

LARGEST_BYTES = 1 << 20
"""A manifest has a dozen short texts."""


class ArchiveError(SettingError):
    """An archive that cannot be served; the message names archive, member and reason."""


@dataclass(frozen=True)
class Manifest:
    """What the manifest says of the model, "" where it says nothing. raw: all of it, for the handler."""

    name: str = ""
    version: str = "1.0"
    handler: str = "default_service_handler"
    serialized_file: str = ""
    model_file: str = ""
    config_file: str = ""
    requirements_file: str = ""
    raw: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, text: bytes, archive: str) -> "Manifest":
        """Raises ArchiveError."""
        where = f"{archive}: {PLACE}"
        try:
            content = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise ArchiveError(f"{where} is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise ArchiveError(f"{where} is a {type(content).__name__}, must be an object")
        model = content.get("model", {})
        if not isinstance(model, dict):
            raise ArchiveError(f"{where}: model is a {type(model).__name__}, must be an object")
        said: dict[str, str] = {}
        for name, key in _FIELDS.items():
            value = model.get(key)
            if value is None or value == "":
                continue
            if not isinstance(value, str):
                raise ArchiveError(f"{where}: model.{key} is a {type(value).__name__}, must be a text")
            said[name] = value
        for name in ("name", "version"):
            if "/" in said.get(name, "") or not said.get(name, "x").isprintable():
                raise ArchiveError(f"{where}: model.{_FIELDS[name]} = {said[name]!r}, must be printable and without /")
        for name in ("serialized_file", "model_file", "config_file", "requirements_file"):
            place = said.get(name, "x")
            if place.startswith("/") or "\0" in place or ".." in place.split("/"):
                raise ArchiveError(f"{where}: model.{_FIELDS[name]} = {place!r} is not a path inside of the archive")
        return cls(**said, raw=content)


_FIELDS = {
    "name": "modelName", "version": "modelVersion", "handler": "handler", "serialized_file": "serializedFile",
    "model_file": "modelFile", "config_file": "configFile", "requirements_file": "requirementsFile",
}  # fmt: skip
