"""One archive as a model folder.

TorchServe's own handlers become classes that need none of its code (`classes/predictor.py`, `classes/transformer.py`). The
text classifier, and a handler of the archive's own, run whole, inside of a class (`classes/handler.py`): nobody but they know
which of their steps treat rows one by one. Eager weights become safetensors where TorchServe's base handler is who reads them.
"""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from ..torchserve import model_config
from ..torchserve.archive import Archive
from ..torchserve.assembly import SERVER_VERSION, AssembledArchive
from ..torchserve.manifest import PLACE
from ..torchserve.model_settings import ModelSettings
from .code import Code

_NETWORKS = {
    "base_handler": "Tensors", "image_classifier": "Classifier", "image_segmenter": "Segmenter", "object_detector": "Detector",
}  # fmt: skip
"""Of TorchServe's handlers, the class in `classes/predictor.py`."""

_IMAGES = {"image_classifier": "Classifier", "image_segmenter": "Images", "object_detector": "Detector"}
"""The class before it, in `classes/transformer.py`."""

_PLAIN_IMAGES = {"resize": 0, "crop": 0, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
"""The object detector's: as they are."""

_TEXTS = "text_classifier"
_LABELS = "index_to_name.json"
_CONTEXT = "archive.json"
_MOST_ALONE_ROWS = 1024
_CONVERSION_S = 600.0

_OF_A_CHAIN = ("request_timeout_s", "load_timeout_s")
"""Settings of a transformer and its predictor together, which are the transformer's."""

_OTHER_PROTOCOL = {
    "v1": "v2 with the handler's own inputs: the folder takes `row`, BYTES of JSON; `--protocol v2` carries these over instead",
    "v2": "v1: `--protocol v1` carries that over instead; by gRPC a text in BYTES is the text, not its base64",
}

_DEFAULTS = ModelSettings()


class NotCarriedError(Exception):
    """The archive can only be served as it is; the message says why."""


@dataclass
class Migrated:
    """What became of one archive. form: "tensors", "images" or "handler"; carried, left: sentences for the report.

    words: some that a text classifier knows. network: the parameters of `Network`, None where the handler makes it.
    """

    name: str
    archive: Path
    handler: str
    form: str
    folder: Path
    envelope: str = ""
    carried: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    network: Mapping[str, str] | None = None
    words: list[str] = field(default_factory=list)
    needs_torchserve: bool = False

    @property
    def network_folder(self) -> Path:
        """Where the network's code and weights are."""
        return self.folder / "network" if self.form == "images" else self.folder


def migrate(name: str, assembled: AssembledArchive, folder: Path, protocol: str, unpickle: bool) -> Migrated:
    """Write the model `name` to a folder that is not there yet. Raises NotCarriedError, ArchiveError.

    protocol: "v1" or "v2", what a handler of the archive's own gets its rows by.
    """
    archive = assembled.archive
    manifest = archive.manifest
    with archive.unpacked() as unpacked:
        stock = _stock(manifest.handler, unpacked)
        form = "images" if stock in _IMAGES else "tensors" if stock == "base_handler" else "handler"
        done = Migrated(name, archive.path, manifest.handler, form, folder, assembled.config.service_envelope)
        code = done.network_folder
        code.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(unpacked, code, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", Path(PLACE).parts[0]))
    if (code / "model.toml").exists():
        raise NotCarriedError("it has a file model.toml of its own")
    yaml = _yaml(archive, code)
    used = Code(code)
    if form == "handler":
        _write_handler(done, assembled, yaml, used, stock, protocol, unpickle)
    else:
        _write_stock(done, assembled, yaml, stock, unpickle)
    if manifest.requirements_file:
        done.left.append(f"`{manifest.requirements_file}`: what it names goes into the image that serves the folder")
    _say_settings(done, assembled.model)
    done.left.append(
        "`/predictions`, `/explanations`, TorchServe's gRPC service and its management: callers use v1, v2 or gRPC"
    )
    return done


def _stock(handler: str, unpacked: Path) -> str:
    """The name of TorchServe's own handler, "" for one of the archive's. Raises NotCarriedError."""
    named, _, function = handler.partition(":")
    name = named.removesuffix(".py").rpartition("/")[2]
    if (unpacked / f"{name}.py").is_file() or (unpacked / name).is_dir():
        return ""
    if (name in _NETWORKS or name == _TEXTS) and not function:
        return name
    raise NotCarriedError(f"handler {handler!r} is no file of the archive, and none that a folder can have")


def _yaml(archive: Archive, code: Path) -> dict[str, Any]:
    file = archive.manifest.config_file
    return model_config.read((code / file).read_bytes(), f"{archive.path.name}: {file}") if file else {}


def _write_stock(
    done: Migrated, assembled: AssembledArchive, yaml: Mapping[str, Any], stock: str, unpickle: bool
) -> None:
    code = done.network_folder
    network = _network(done, assembled.archive, unpickle)
    done.network = network
    predictor = _free("predictor", code)
    (code / f"{predictor}.py").write_text(_source("predictor.py", ("Network", _NETWORKS[stock])))
    model = assembled.model
    device = [*compiled(done, yaml), *_device(model)]
    settings = _batching(model, model.batch_size if model.batch_size > 1 else None)
    whole = {key: settings.pop(key) for key in _OF_A_CHAIN if key in settings and done.form == "images"}
    name = "" if done.form == "images" else done.name
    _write_toml(code, f"{predictor}:{_NETWORKS[stock]}", name, settings, device, network)
    if done.form == "tensors":
        done.carried.append("the base handler: `predict` of a class that needs no `ts`, its rows in batches")
        done.left.append(
            "v2 with rows that are objects: the folder takes a tensor `input`, rows on axis 0, and gives `output`"
        )
        return
    parameters: dict[str, Any] = {"orientation": False}
    if stock == "object_detector":
        parameters |= _PLAIN_IMAGES
    if (code / _LABELS).is_file():
        (code / _LABELS).rename(done.folder / _LABELS)
        if stock != "image_segmenter":
            parameters["labels"] = _LABELS
    kept = ("Images", _IMAGES[stock])
    (done.folder / "transformer.py").write_text(_source("transformer.py", kept))
    more = 'predictor = "network"'
    _write_toml(done.folder, f"transformer:{_IMAGES[stock]}", done.name, whole, [], parameters, transformer=more)
    done.carried.append(
        f"{stock}: a transformer (Pillow, no torchvision) before a predictor of tensors in batches; neither needs `ts`"
    )
    done.left += [
        "images other than JPEG, PNG and WebP, and those of more than 33 megapixels: 400; RGB is made of all others",
        "v2: the input is `data`, and what is an object there is the text of one, in BYTES",
    ]
    if stock != "image_segmenter":
        done.left.append("explanations")


def _write_handler(
    done: Migrated,
    assembled: AssembledArchive,
    yaml: Mapping[str, Any],
    used: Code,
    stock: str,
    protocol: str,
    unpickle: bool,
) -> None:
    archive, model, code = assembled.archive, assembled.model, done.folder
    manifest = archive.manifest
    done.needs_torchserve = used.imports_torchserve or bool(stock)
    parameters: dict[str, Any] = {}
    reads_itself = used.reads_weights_itself and not stock
    if manifest.model_file and manifest.serialized_file and not reads_itself:
        parameters = dict(_network(done, archive, unpickle))
        if not parameters.get("weights", "").endswith(".safetensors"):
            parameters = {}
    elif manifest.serialized_file.endswith((".pt", ".pth", ".bin")) and manifest.model_file:
        done.left.append(f"`{manifest.serialized_file}` stays as it is: the handler's own code reads it")
    if (code / _CONTEXT).exists():
        raise NotCarriedError(f"it has a file {_CONTEXT} of its own")
    system = {"batch_size": model.batch_size, "server_version": SERVER_VERSION,
              "limit_max_image_pixels": assembled.config.limit_max_image_pixels}  # fmt: skip
    said = {"name": done.name, "handler": manifest.handler, "manifest": manifest.raw, "yaml": yaml, "system": system}
    (code / _CONTEXT).write_text(json.dumps(said, indent=2, default=str) + "\n")
    served = _free("served", code)
    shared = model.batch_size > 1 and not stock and protocol == "v1"
    cls = "Inputs" if protocol == "v2" else "Handler" if shared else "Alone"
    (code / f"{served}.py").write_text(_source("handler.py", ("Handler", cls)))
    most = 1 if stock and protocol == "v1" else model.batch_size if shared else _MOST_ALONE_ROWS
    _write_toml(code, f"{served}:{cls}", done.name, _batching(model, most), _device(model), parameters)
    how = (
        "the rows of several requests at once"
        if shared
        else "one row at a time"
        if most == 1
        else "one request at a time"
    )
    done.carried.append(f"`{manifest.handler}`: it runs whole, in the class `{cls}` of {served}.py, {how}")
    done.left += [
        "pre- and postprocessing beside the device: both run on the model's thread",
        _OTHER_PROTOCOL[protocol],
        *used.uncarried(),
    ]
    if stock:
        done.left.append("explanations")
        if (code / "source_vocab.pt").is_file() and protocol == "v1":
            done.words = _converted({"folder": str(code), "vocabulary": "source_vocab.pt"})["words"]
    if done.needs_torchserve:
        done.left.append(
            "independence of the package `torchserve`: its code is imported (`pip install 'torpor[torchserve]'`)"
        )


def _network(done: Migrated, archive: Archive, unpickle: bool) -> dict[str, str]:
    """The parameters of `Network`. Raises NotCarriedError."""
    manifest, code = archive.manifest, done.network_folder
    file = manifest.serialized_file
    if not manifest.model_file:
        if not file.endswith(".pt"):
            raise NotCarriedError(
                f"serializedFile = {file!r} without a model file, must be TorchScript (.pt) for this handler"
            )
        done.carried.append(f"`{file}`: TorchScript, as it is")
        return {"torchscript": file}
    asked = {"folder": str(code), "model_file": manifest.model_file, "weights": file, "unpickle": unpickle}
    made = _converted(asked)
    if not file:
        done.left.append("weights: the archive has none, so that its class begins with whatever it begins with")
        return {"network": made["class"]}
    if made["tensors"]:
        done.carried.append(f"`{file}`: {made['tensors']} tensors, in {made['weights']}")
    else:
        done.left.append(f"`{file}` stays as it is, read with weights_only: it holds no tensors, or more than these")
    return {"network": made["class"], "weights": made["weights"]}


def _converted(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What `conversion.py` says. Raises NotCarriedError."""
    command = [sys.executable, "-P", "-m", "torpor.predictors.migration.conversion"]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, check=False, timeout=_CONVERSION_S
        )
    except subprocess.TimeoutExpired:
        raise NotCarriedError(f"its network took more than {_CONVERSION_S:g} s to load") from None
    if done.returncode or not done.stdout:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise NotCarriedError(f"its network cannot be loaded: {last[:300]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    if "refused" in answer:
        raise NotCarriedError(answer["refused"])
    return answer


def generated_row(done: Migrated) -> list[Any] | None:
    """A row that its network takes, if one of a few guesses is."""
    if done.network is None:
        return None
    asked = {"folder": str(done.network_folder), "network": dict(done.network)}
    row: list[Any] | None = _converted(asked)["row"]
    return row


def compiled(done: Migrated, yaml: Mapping[str, Any]) -> list[str]:
    """What `pt2` says, as a setting."""
    said = yaml.get("pt2")
    if not said:
        return []
    options = said.get("compile", said) if isinstance(said, dict) else {"backend": said}
    if isinstance(options, dict) and options.get("enable") is False:
        return []
    if isinstance(options, dict) and options.get("backend", "inductor") == "inductor" and "export" not in options:
        mode = options.get("mode", "default")
        done.carried.append(f"`pt2`: compile = {mode}")
        return [f'compile = "{mode}"']
    done.left.append(f"`pt2: {said}`: torpor compiles with inductor alone")
    return []


def _device(model: ModelSettings) -> list[str]:
    return ['device = "cpu"  # deviceType'] if model.device_type == "cpu" else []


def _batching(model: ModelSettings, most: int | None) -> dict[str, tuple[object, str]]:
    """Values of `[batching]`, and where each comes from. most: rows at once, None for torpor's own default."""
    settings: dict[str, tuple[object, str]] = {}
    if most is not None:
        settings["max_batch_size"] = most, "batchSize" if most == model.batch_size else "rows of one request"
    if model.batch_size > 1:
        settings["batch_timeout_micros"] = model.max_batch_delay_ms * 1000, "maxBatchDelay"
    if model.job_queue_size != _DEFAULTS.job_queue_size:
        settings["max_queue_rows"] = model.job_queue_size, "jobQueueSize, of requests"
    if model.client_timeout_ms:
        settings["request_timeout_s"] = model.client_timeout_ms / 1e3, "clientTimeoutInMills"
    settings["model_timeout_s"] = float(model.response_timeout_s), "responseTimeout"
    settings["load_timeout_s"] = float(model.startup_timeout_s), "startupTimeout"
    return settings


def _say_settings(done: Migrated, model: ModelSettings) -> None:
    batch = f"batchSize {model.batch_size}, maxBatchDelay {model.max_batch_delay_ms} ms" if model.batch_size > 1 else ""
    times = f"responseTimeout {model.response_timeout_s} s, startupTimeout {model.startup_timeout_s} s"
    done.carried.append("settings: " + ", ".join(filter(None, (batch, times))))
    if model.workers is not None and model.workers > 1:
        done.left.append(
            f"minWorkers {model.workers}: one process has one instance; `--processes {model.workers}` has as many"
        )


def _write_toml(
    folder: Path,
    cls: str,
    name: str,
    batching: Mapping[str, tuple[object, str]],
    device: list[str],
    parameters: Mapping[str, Any],
    transformer: str = "",
) -> None:
    """name: "" for none."""
    lines = [f'class = "{cls}"']
    if name:
        lines.append(f"name = {json.dumps(name)}")
    if transformer:
        lines += ["", "[transformer]", transformer]
    if batching:
        lines += ["", "[batching]", *(f"{key} = {value}  # {why}" for key, (value, why) in batching.items())]
    if device:
        lines += ["", "[device]", *device]
    if parameters:
        lines += ["", "[parameters]", *(f"{key} = {json.dumps(value)}" for key, value in parameters.items())]
    (folder / "model.toml").write_text("\n".join(lines) + "\n")


def _free(name: str, folder: Path) -> str:
    """A module's name that no file or folder of the archive has."""
    while (folder / f"{name}.py").exists() or (folder / name).exists():
        name = f"torpor_{name}"
    return name


def _source(file: str, kept: tuple[str, ...]) -> str:
    """One of `classes/`, with no other classes than these."""
    text = resources.files(__package__).joinpath("classes", file).read_text()
    lines = text.splitlines(keepends=True)
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.ClassDef) and node.name not in kept:
            del lines[node.lineno - 1 : node.end_lineno]
            while node.lineno - 1 < len(lines) and not lines[node.lineno - 1].strip():
                del lines[node.lineno - 1]
    return "".join(lines).rstrip() + "\n"
