"""A container as a process of this machine: its command, environment and limits."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .documents import UpError
from .services import Service

IMAGES = ("torpor", "torpor:*", "torpor@*", "*/torpor", "*/torpor:*", "*/torpor@*")
"""Whose entrypoint is `torpor serve`: by default every image whose repository ends in torpor."""

MODELS = "/mnt/models"
"""Where KServe puts a model."""

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)([a-zA-Z]*)")
_FACTORS = {
    "": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30,
    "Ti": 2.0**40,
}  # fmt: skip
_PORT_FLAGS = ("--port", "--http_port", "--http-port")
_OWN = ("TORPOR_", "K_", "PORT", "INFERENCE_SERVICE_NAME")
"""Variables of the shell's that a container would not see."""


@dataclass(frozen=True)
class Process:
    """memory_bytes: the limit, 0 for none. models: the local folder of /mnt/models, None for none."""

    command: Sequence[str]
    environment: Mapping[str, str]
    memory_bytes: int


@dataclass(frozen=True)
class Surroundings:
    """What the machine has in place of the cluster.

    environment: of `torpor up` itself. maps: texts that are replaced in command, arguments and environment. images: patterns
    of those that are torpor's own. addresses: HOST:PORT of each service by its name. bound: what SinkBindings set, by the
    service's name.
    """

    environment: Mapping[str, str]
    maps: Sequence[tuple[str, str]]
    images: Sequence[str]
    addresses: Mapping[str, str]
    bound: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def process_of(service: Service, port: int, models: Path | None, around: Surroundings) -> Process:
    """What starts the service's container listening on `port`. models: the folder in place of /mnt/models. Raises UpError."""
    container, where = service.container, service.where
    maps = [*around.maps, *([(MODELS, str(models))] if models else [])]
    given = _environment(container, where, around, maps)
    own = _own_variables(service, port, models, container)
    variables = {**own, **given, **around.bound.get(service.name, {}), "PORT": str(port)}
    command = [_replaced(str(word), maps, variables) for word in container.get("command") or ()]
    arguments = [_replaced(str(word), maps, variables) for word in container.get("args") or ()]
    command = [*(command or _entrypoint(container, where, around.images)), *arguments]
    _take_port(command, _container_port(container), port)
    if service.role == "transformer":
        command += _transformer_arguments(service, command, port, around.addresses)
    if command[0] == "torpor":  # the one that runs, whatever PATH has
        command[0] = str(Path(sys.executable).with_name("torpor"))
    kept = {name: value for name, value in around.environment.items() if not name.startswith(_OWN)}
    limits = (container.get("resources") or {}).get("limits") or {}
    return Process(command, {**kept, **variables}, int(quantity(limits.get("memory", "0"), where)))


def quantity(text: Any, where: str) -> float:
    """A Kubernetes quantity's value. Raises UpError."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None or match[2] not in _FACTORS:
        raise UpError(f"{where}: {text!r} is no quantity, must be like 500m, 2 or 1Gi")
    return float(match[1]) * _FACTORS[match[2]]


def is_torpor(image: str, images: Sequence[str]) -> bool:
    return any(fnmatchcase(image, pattern) for pattern in images)


def _entrypoint(container: Mapping[str, Any], where: str, images: Sequence[str]) -> list[str]:
    image = str(container.get("image", ""))
    if not is_torpor(image, images):
        raise UpError(
            f"{where}: image {image!r} cannot be run here: give the container a command that this machine has, or say "
            f"--image {image or 'IMAGE'} if its entrypoint is `torpor serve`"
        )
    return ["torpor", "serve"]


def _environment(
    container: Mapping[str, Any], where: str, around: Surroundings, maps: Sequence[tuple[str, str]]
) -> dict[str, str]:
    """As given; what comes from a secret, a config map or the pod must be in the environment of `torpor up`."""
    variables: dict[str, str] = {}
    for entry in container.get("env") or ():
        name = str(entry.get("name"))
        if name == "STORAGE_URI":
            variables[name] = _replaced(MODELS, maps, {})  # what KServe's webhook makes of it
        elif "valueFrom" not in entry:
            variables[name] = _replaced(str(entry.get("value") or ""), maps, variables)
        elif name in around.environment:
            variables[name] = around.environment[name]
        else:
            raise UpError(f"{where}: env {name} is valueFrom, which is not here: set {name} for torpor up")
    if container.get("envFrom"):
        raise UpError(f"{where}: envFrom is not read here: write the variables as env")
    return variables


def _own_variables(service: Service, port: int, models: Path | None, container: Mapping[str, Any]) -> dict[str, str]:
    """What Knative and KServe set, and what keeps a process of this machine to itself."""
    variables = {
        "K_SERVICE": service.name,
        "K_CONFIGURATION": service.name,
        "K_REVISION": f"{service.name}-00001",
        "TORPOR_HOST": "127.0.0.1",
        "PYTHONUNBUFFERED": "1",
    }
    if service.owner:
        variables["INFERENCE_SERVICE_NAME"] = service.owner
    if models is not None:
        variables["TORPOR_MODEL"] = str(models)
    limits = (container.get("resources") or {}).get("limits") or {}
    if "cpu" in limits:
        variables["OMP_NUM_THREADS"] = str(max(1, math.ceil(quantity(limits["cpu"], service.where))))
    return variables


def _replaced(text: str, maps: Sequence[tuple[str, str]], variables: Mapping[str, str]) -> str:
    """With the local names, and $(NAME) as the kubelet expands it."""
    for known, local in maps:
        text = text.replace(known, local)
    return _REFERENCE.sub(lambda m: "$" if m[1] is None else variables.get(m[1], m[0]), text)


def _container_port(container: Mapping[str, Any]) -> int:
    ports = container.get("ports") or ()
    return int(ports[0].get("containerPort", 8080)) if ports else 8080


def _take_port(command: list[str], container_port: int, port: int) -> None:
    """A port that the arguments fix is every container's own, but not here."""
    for at, word in enumerate(command):
        flag, equals, value = word.partition("=")
        if flag in _PORT_FLAGS:
            if equals and value == str(container_port):
                command[at] = f"{flag}={port}"
            elif not equals and command[at + 1 : at + 2] == [str(container_port)]:
                command[at + 1] = str(port)


def _transformer_arguments(
    service: Service, command: Sequence[str], port: int, addresses: Mapping[str, str]
) -> list[str]:
    """What KServe's webhook adds when it is not there."""
    added = {
        "--model_name": service.owner,
        "--predictor_host": addresses[service.predictor],
        "--http_port": str(port),
    }
    there = {word.partition("=")[0].replace("-", "_") for word in command}
    return [word for flag, value in added.items() if flag.replace("-", "_") not in there for word in (flag, value)]
