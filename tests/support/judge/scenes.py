"""A storage folder as KServe has it, and what a server is asked that serves it."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judge.archives import ARCHIVES


@dataclass(frozen=True)
class Call:
    """One HTTP request. Paths of the management API go to its own port."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    is_management: bool = False


@dataclass(frozen=True)
class GrpcCall:
    """One call of a TorchServe or Open Inference service; `streams` when the answers are several."""

    method: str
    """`service/Method`, the service by its full name."""

    message: Mapping[str, Any] = field(default_factory=dict)
    streams: bool = False
    is_management: bool = False
    sends_stream: bool = False
    """The message is the only one of several."""


@dataclass(frozen=True)
class Case:
    """Calls one after the other, or together; the answers to all are compared."""

    name: str
    calls: Sequence[Call | GrpcCall]
    statuses: Sequence[int | str]
    """TorchServe's, by call; a gRPC status by its name."""

    body: bytes | None = None
    """TorchServe's to the last call, where the facts say it."""

    headers: Sequence[str] = ()
    """Of the answer, compared beside its content type."""

    together: bool = False
    has_pieces: bool = False
    """The chunks of its answers, or their messages, are compared as well."""

    is_a_set: bool = False
    """Which of the calls gets which answer is a matter of the moment."""

    normal: Callable[[bytes], Any] = lambda body: body
    """What of a body is compared: without process ids, times and the like."""


@dataclass(frozen=True)
class Scene:
    name: str
    archives: Sequence[str]
    cases: Sequence[Case]
    properties: Mapping[str, str] = field(default_factory=dict)
    snapshot: Mapping[str, Mapping[str, Any]] | None = None
    """Models as KServe's config.properties lists them; without it all archives are loaded."""

    loaded: str = "all"
    """The value of load_models, without a snapshot."""

    models: Sequence[str] = ()
    """What must be ready before the first call: by default every archive's model."""

    grpc_protocol: str = ""

    def ready(self) -> list[str]:
        return list(dict.fromkeys(self.models or [ARCHIVES[file].name for file in self.archives]))

    def write(self, folder: Path, store: Path, addresses: Mapping[str, str]) -> None:
        """config/config.properties and model-store/."""
        (folder / "config").mkdir(parents=True)
        (folder / "model-store").mkdir()
        for file in self.archives:
            (made,) = [path for path in store.iterdir() if path.name.split(".")[0] == file]
            (shutil.copytree if made.is_dir() else shutil.copy)(made, folder / "model-store" / made.name)
        lines = dict(addresses) | {
            "model_store": str(folder / "model-store"),
            "disable_token_authorization": "true",
            "enable_model_api": "true",
            "install_py_dep_per_model": "false",
            "default_workers_per_model": "1",
        }
        if self.snapshot is None:
            lines["load_models"] = self.loaded
        else:
            models = {
                name: {
                    version: {
                        "defaultVersion": True, "marName": f"{name}.mar", "minWorkers": 1, "maxWorkers": 1,
                        "batchSize": 1, "maxBatchDelay": 50, "responseTimeout": 20,
                    } | settings
                    for version, settings in [("1.0", given)]
                }
                for name, given in self.snapshot.items()
            }  # fmt: skip
            snapshot = {"name": "startup.cfg", "modelCount": len(models), "models": models}
            lines["model_snapshot"] = json.dumps(snapshot, separators=(",", ":"))
        lines |= self.properties
        text = "".join(f"{key}={value}\n" for key, value in lines.items())
        (folder / "config" / "config.properties").write_text(text)
