"""TorchServe's config.properties: Java's format, and the keys that mean something here.

Format: https://docs.oracle.com/en/java/javase/17/docs/api/java.base/java/util/Properties.html#load(java.io.Reader). A value's
`$$NAME$$` is the environment's NAME. A key that has no meaning here, TorchServe's own or nobody's, is said in the log once;
one that has, and a value that it cannot have, ends the start.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ..settings import SettingError

logger = logging.getLogger("torpor.torchserve")

_LARGEST_BYTES = 16 << 20
"""The file holds the snapshot of every model."""

_VARIABLE = re.compile(r"\$\$(\w+)\$\$")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_LETTERS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}

_ENVELOPES = ("body", "json", "kserve", "kservev2")


@dataclass(frozen=True)
class Config:
    """What config.properties says; `Config()` is what holds without one.

    model_store: where the archives are. load_models: "all", or names with commas. snapshot: of models by name and version,
    None without. models: the same, for models that are loaded by `load_models`. timeouts in seconds.

    enable_model_api: whether callers of the management API may register and unregister, if there is one. allowed_urls: patterns
    of those that archives may be registered from; none by default, where TorchServe has any.
    """

    model_store: str = ""
    load_models: str = ""
    snapshot: Mapping[str, Any] | None = None
    models: Mapping[str, Any] | None = None
    default_workers_per_model: int = 0
    default_response_timeout: int = 120
    default_startup_timeout: int = 120
    job_queue_size: int = 100
    number_of_gpu: int | None = None
    service_envelope: str = ""
    decode_input_request: bool = True
    limit_max_image_pixels: bool = True
    enable_model_api: bool = True
    inference_address: str = ""
    metrics_address: str = ""
    grpc_inference_address: str = "127.0.0.1"
    grpc_inference_port: int = 0
    management_address: str = "http://127.0.0.1:8081"
    grpc_management_port: int = 0
    max_request_size: int | None = None
    allowed_urls: Sequence[str] = ()

    def addresses(self) -> list[tuple[str, int]]:
        """Hosts and ports that it says predictions, metrics and gRPC are at, each once. Raises SettingError."""
        found = [
            read_address(key, value)
            for key, value in (("inference_address", self.inference_address), ("metrics_address", self.metrics_address))
            if value
        ]
        if self.grpc_inference_port:
            found.append((self.grpc_inference_address, self.grpc_inference_port))
        return list(dict.fromkeys(found))

    @classmethod
    def read(cls, path: Path, environment: Mapping[str, str] = os.environ) -> "Config":
        """Raises SettingError, which names file, key, value and what it must be."""
        try:
            with path.open("rb") as file:
                content = file.read(_LARGEST_BYTES + 1)
        except OSError as error:
            raise SettingError(f"{path}: {error.strerror}") from None
        if len(content) > _LARGEST_BYTES:
            raise SettingError(f"{path}: size must be at most {_LARGEST_BYTES} bytes")
        said = parse(content.decode("utf-8", "replace"))
        values = {key: _VARIABLE.sub(lambda match: environment.get(match[1], ""), value) for key, value in said.items()}
        if values.get("enable_envvars_config", "").lower() == "true":
            for key in _KINDS:
                if value := environment.get(f"TS_{key.upper()}"):
                    values[key] = value
            values[_TOKENS] = environment.get(f"TS_{_TOKENS.upper()}") or values.get(_TOKENS, "")
        if values.pop(_TOKENS, "").strip().lower() == "false":
            raise SettingError(
                f"{path}: {_TOKENS} = false, must be true: tokens are not checked here, but by what stands before the server"
            )
        read: dict[str, Any] = {}
        for key, value in values.items():
            kind = _KINDS.get(key)
            if kind is not None:
                read[_FIELDS.get(key, key)] = _read(kind, key, value.strip(), path)
        without_meaning = sorted(values.keys() - _KINDS.keys() - {"enable_envvars_config"})
        if without_meaning:
            logger.info("%s: without effect here: %s", path, ", ".join(without_meaning))
        return cls(**read)


def read_address(key: str, address: str) -> tuple[str, int]:
    """Host and port of a value such as `http://127.0.0.1:8081`. Raises SettingError."""
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[3]) > 65535:
        raise SettingError(f"{key} = {address[:100]!r}, must be http://HOST:PORT")
    return match[1] or match[2], int(match[3])


_ADDRESS = re.compile(r"http://(?:\[([0-9a-fA-F:.]+)\]|([^/:\[\]]+)):([0-9]{1,5})/?")


def parse(text: str) -> dict[str, str]:
    """The keys and values of a file in Java's format; of a key that is there twice the last."""
    found: dict[str, str] = {}
    lines = iter(re.split(r"\r\n|\r|\n", text))
    for line in lines:
        line = line.lstrip(" \t\f")
        if not line or line[0] in "#!":
            continue
        while (len(line) - len(line.rstrip("\\"))) % 2:  # an odd number of them at the end: it goes on
            line = line[:-1] + next(lines, "").lstrip(" \t\f")
        match = _KEY.match(line)
        assert match is not None
        found[_unescaped(match[1])] = _unescaped(line[match.end() :])
    return found


_KEY = re.compile(r"((?:\\.|[^\\=: \t\f])*)[ \t\f]*[=:]?[ \t\f]*", re.DOTALL)


def _unescaped(text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        escape = match[1]
        return chr(int(escape[1:], 16)) if len(escape) > 1 else _LETTERS.get(escape, escape)

    return _ESCAPE.sub(plain, text)


_KINDS = {
    "model_store": "text", "load_models": "text", "model_snapshot": "snapshot", "models": "object",
    "default_workers_per_model": "count", "default_response_timeout": "seconds", "default_startup_timeout": "seconds",
    "job_queue_size": "positive", "number_of_gpu": "count", "service_envelope": "envelope",
    "decode_input_request": "flag", "limit_max_image_pixels": "flag", "enable_model_api": "flag",
    "inference_address": "text", "metrics_address": "text", "grpc_inference_address": "text",
    "grpc_inference_port": "count", "grpc_management_port": "count", "management_address": "text",
    "max_request_size": "positive", "allowed_urls": "patterns",
}  # fmt: skip
_FIELDS = {"model_snapshot": "snapshot"}
_TOKENS = "disable_token_authorization"

_LOWEST = {"count": 0, "seconds": 1, "positive": 1}


def _read(kind: str, key: str, value: str, path: Path) -> Any:
    def refused(must: str) -> SettingError:
        return SettingError(f"{path}: {key} = {value[:100]!r}, must be {must}")

    if kind in _LOWEST:
        if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < _LOWEST[kind]:
            raise refused(f"an integer of at least {_LOWEST[kind]}")
        return int(value)
    if kind == "flag":
        if value.lower() not in ("true", "false"):
            raise refused("true or false")
        return value.lower() == "true"
    if kind == "envelope":
        if value and value not in _ENVELOPES:
            raise refused(f"one of {', '.join(_ENVELOPES)}")
        return value
    if kind == "patterns":
        try:
            return [re.compile(pattern.strip()).pattern for pattern in value.split(",") if pattern.strip()]
        except re.error as error:
            raise refused(f"regular expressions with commas ({error})") from None
    if kind in ("object", "snapshot"):
        try:
            content = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise SettingError(f"{path}: {key} is not JSON: {error}") from None
        models = content.get("models", {}) if kind == "snapshot" and isinstance(content, dict) else content
        if not isinstance(models, dict):
            raise refused("an object of models by name")
        if kind == "snapshot" and content.get("modelCount") == 0:
            return {}
        return models
    return value
