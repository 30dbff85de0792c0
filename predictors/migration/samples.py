"""Requests to compare an archive with its folder by: files of the user's, or made where it is known what a row is."""

import base64
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..settings import SettingError
from .folder import Migrated, generated_row

_TYPES = {".json": "application/json", ".txt": "text/plain"}
_LARGEST_BYTES = 64 << 20


@dataclass(frozen=True)
class Call:
    """One request. path: behind the server's address."""

    path: str
    body: bytes
    content_type: str = "application/json"


@dataclass(frozen=True)
class Sample:
    """A request to the archive, and the one to the folder that asks the same. protocol: "v1", "v2" or "predictions"."""

    name: str
    protocol: str
    theirs: Call
    ours: Call


def of_file(path: Path, migrated: Migrated) -> Sample:
    """A JSON file with `instances` is a v1 request, one with `inputs` a v2 request; any other the body of a prediction.

    Raises SettingError.
    """
    try:
        with path.open("rb") as file:
            body = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise SettingError(f"--sample {path}: {error.strerror}") from None
    if len(body) > _LARGEST_BYTES:
        raise SettingError(f"--sample {path}: size must be at most {_LARGEST_BYTES} bytes")
    content_type = _TYPES.get(path.suffix.lower(), "application/octet-stream")
    value: Any = None
    if content_type == "application/json":
        try:
            value = json.loads(body)
        except ValueError as error:
            raise SettingError(f"--sample {path}: is not JSON: {error}") from None
        if isinstance(value, dict) and ("instances" in value or "inputs" in value):
            return _alike(path.name, migrated, "v1" if "instances" in value else "v2", body)
    theirs = Call(f"/predictions/{migrated.name}", body, content_type)
    row = _row(migrated, body, content_type, value)
    return Sample(path.name, "predictions", theirs, _predict(migrated, [row]))


def generated(migrated: Migrated) -> list[Sample]:
    """Of one row and of two; none where nobody knows what the handler takes."""
    if migrated.form == "images":
        images = [base64.b64encode(_png(300, 260)).decode(), base64.b64encode(_png(240, 320)).decode()]
        if migrated.handler.startswith("object_detector"):
            images[1] = images[0]  # it batches those of one size
        rows: list[Any] = [{"data": image} for image in images]
    elif migrated.form == "tensors":
        row = generated_row(migrated)
        rows = [] if row is None else [row, row[::-1]]
    else:
        rows = [{"data": word} for word in migrated.words[:1]]
    bodies = [rows[:count] for count in (1, 2) if len(rows) >= count]
    return [
        _alike(
            f"made, {len(body)} row{'s' * (len(body) > 1)}", migrated, "v1", json.dumps({"instances": body}).encode()
        )
        for body in bodies
    ]


def _alike(name: str, migrated: Migrated, protocol: str, body: bytes) -> Sample:
    path = f"/v1/models/{migrated.name}:predict" if protocol == "v1" else f"/v2/models/{migrated.name}/infer"
    return Sample(name, protocol, Call(path, body), Call(path, body))


def _predict(migrated: Migrated, instances: list[Any]) -> Call:
    return Call(f"/v1/models/{migrated.name}:predict", json.dumps({"instances": instances}).encode())


def _row(migrated: Migrated, body: bytes, content_type: str, value: Any) -> Any:
    """A prediction's body as a row of v1."""
    encoded = base64.b64encode(body).decode()
    if migrated.form == "images":
        return {"data": encoded} if value is None else value
    if value is None:
        value = body.decode("utf-8", "replace") if content_type.startswith("text/") else {"b64": encoded}
    if migrated.form == "tensors" or migrated.envelope == "body":
        return value
    return {"body": value}


def _png(width: int, height: int) -> bytes:
    """An image of plain patterns."""
    lines = b"".join(
        b"\0" + bytes(value for x in range(width) for value in (x % 256, y % 256, x * y % 256)) for y in range(height)
    )
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks: Mapping[bytes, bytes] = {b"IHDR": head, b"IDAT": zlib.compress(lines), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
