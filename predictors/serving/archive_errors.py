"""Errors in the form of TorchServe's own paths: a code, the name of a Java class, and the text."""

import json

from ..errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    MethodNotAllowed,
    NotFound,
    PathNotFound,
    TorporError,
    Unavailable,
    VersionNotFound,
)

INFERENCES = ("/predictions/", "/explanations/")
"""Paths whose requests are inferences by whatever method."""

_PATHS = (*INFERENCES, "/ping", "/invocations", "/models", "/wfpredict/")

_TYPES: tuple[tuple[type[TorporError], str], ...] = (
    (VersionNotFound, "ModelVersionNotFoundException"),
    (PathNotFound, "ResourceNotFoundException"),
    (NotFound, "ModelNotFoundException"),
    (MethodNotAllowed, "MethodNotAllowedException"),
    (InvalidInput, "BadRequestException"),
    (Unavailable, "ServiceUnavailableException"),
    (Conflict, "ConflictStatusException"),
    (Forbidden, "InvalidModelVersionException"),
)


def is_archive_path(path: str) -> bool:
    """Whether it is one of TorchServe's own."""
    return path.startswith(_PATHS) or path.endswith("/predict")


def archive_error_body(status: int, text: str, error: Exception) -> bytes:
    """For `error`, as an object of which callers may read each field."""
    kind = next((name for cls, name in _TYPES if isinstance(error, cls)), "InternalServerException")
    return json.dumps({"code": status, "type": kind, "message": text}, indent=2).encode() + b"\n"
