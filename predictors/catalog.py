"""What there is to serve: a class, a model's folder, or a folder of such folders, and which versions of each.

FOLDER/model.toml                 one model: its class, its settings
FOLDER/3/                         its versions, numbered folders; each may have a model.toml of its own
REPOSITORY/minilm/model.toml      several models, named like their folders
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .errors import NotFound
from .settings import ModelFile, SettingError, resolve

if TYPE_CHECKING:
    from .batching.policy import BatchingSettings
    from .serving.data_plane import DataPlane, Served
    from .serving.device_thread import Executor
    from .serving.repository import Loadable


@dataclass(frozen=True)
class Outside:
    """Where settings come from beside a model's own file: the command's flags, and the environment."""

    flags: Mapping[str, Any]
    environment: Mapping[str, str]

    def settings(self, file: Mapping[str, Any]) -> dict[str, Any]:
        return resolve(self.flags, self.environment, file)


@dataclass(frozen=True)
class Assembled:
    """A version of a predictor, imported and not loaded yet.

    executors: what runs it, one for each device. batching: of its rows. request_timeout_s: the deadline of requests without
    one; model_timeout_s: the time limit of a batch; 0: none.
    """

    executors: Sequence["Executor"]
    batching: "BatchingSettings"
    request_timeout_s: float
    model_timeout_s: float

    async def load(self, data_plane: "DataPlane", name: str, version: str) -> "Served":
        """Load it and warm it up. Raises what its class raises."""
        return await data_plane.load(
            name, version, self.executors, self.batching, self.request_timeout_s, self.model_timeout_s
        )


@dataclass(frozen=True)
class ModelClass:
    """`MODULE:CLASS`, looked for in the current folder. folder: what its `load` gets."""

    name: str
    class_path: str
    folder: Path | None
    outside: Outside

    def versions(self) -> list[str]:
        version = self.outside.settings({})["model_version"]
        return [version if version.isdecimal() else "1"]

    def load_timeout_s(self, version: str) -> float:
        return _load_timeout_s({}, self.outside)

    def code(self, version: str) -> "Code":
        """Raises UserClassError, and what the user's module raises."""
        return Code.of(ModelFile(self.class_path, None, {}, {}), self.folder, Path.cwd())

    def assemble(self, version: str) -> "Loadable":
        return _assemble(self.code(version), self.outside)


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder."""

    name: str
    root: Path
    outside: Outside

    def versions(self) -> list[str]:
        """The versions to serve, as the settings say. Raises SettingError."""
        file = self.root / "model.toml"
        settings = self.outside.settings(ModelFile.read(file).settings if file.is_file() else {})
        return wanted_versions(self.root, settings["model_version"])

    def load_timeout_s(self, version: str) -> float:
        """Raises SettingError."""
        path = find_model_file(self.root, version_folder(self.root, version))
        return _load_timeout_s(ModelFile.read(path).settings, self.outside)

    def code(self, version: str) -> "Code":
        """Raises SettingError, UserClassError, and what the user's module raises."""
        folder = version_folder(self.root, version)
        path = find_model_file(self.root, folder)
        file = ModelFile.read(path)
        if path.parent != self.root and "model_version" in file.settings:
            raise SettingError(f"{path}: model_version belongs into {self.root / 'model.toml'}")
        return Code.of(file, folder, path.parent)

    def assemble(self, version: str) -> "Loadable":
        """Raises the same, and SettingError for what does not fit together."""
        return _assemble(self.code(version), self.outside)


@dataclass(frozen=True)
class Code:
    """A version's class, imported. folder: what its `load` gets; place: where its module is looked for."""

    cls: type
    file: ModelFile
    folder: Path | None
    place: Path

    @classmethod
    def of(cls, file: ModelFile, folder: Path | None, place: Path) -> "Code":
        # Here begins what is heavy: the user's module imports torch.
        from .runtime.user_class import import_class

        return cls(import_class(file.class_path, place), file, folder, place)

    @property
    def is_transformer(self) -> bool:
        return not hasattr(self.cls, "predict") and (
            hasattr(self.cls, "preprocess") or hasattr(self.cls, "postprocess")
        )


class Catalog:
    """The models by name. A repository's folders are looked at anew each time, so that one can be added while it serves."""

    settings: Mapping[str, Any] = MappingProxyType({})
    """Of the server's own: a model's file has no say in them."""

    def __init__(self, models: Mapping[str, ModelClass | ModelFolder], repository: Path | None = None) -> None:
        self._models = models
        self._repository = repository
        self._outside = next(iter(models.values())).outside if models else Outside({}, {})

    @classmethod
    def of_repository(cls, root: Path, outside: Outside) -> "Catalog":
        """Raises SettingError for a folder without models."""
        models = {
            folder.name: ModelFolder(folder.name, folder, outside)
            for folder in sorted(root.iterdir())
            if is_model_folder(folder)
        }
        if not models:
            raise SettingError(f"{root}: neither a model.toml in it nor in a folder of it")
        return cls(models, root)

    def names(self) -> list[str]:
        if self._repository is None:
            return [*self._models]
        return [folder.name for folder in sorted(self._repository.iterdir()) if is_model_folder(folder)]

    def model(self, name: str) -> ModelClass | ModelFolder:
        """Raises NotFound."""
        if name not in self.names():
            raise NotFound(f"model '{name}' is unknown, must be one of {', '.join(self.names())}")
        if self._repository is None:
            return self._models[name]
        return ModelFolder(name, self._repository / name, self._outside)

    async def prepare(self) -> None:
        """Models load in this process, after its own imports."""

    async def settle(self) -> None: ...


def is_model_folder(folder: Path) -> bool:
    """Whether a model.toml is in it or in one of its versions."""
    return folder.is_dir() and ((folder / "model.toml").is_file() or any(
        (folder / number / "model.toml").is_file() for number in _numbers(folder)
    ))  # fmt: skip


def wanted_versions(root: Path, wanted: str) -> list[str]:
    """The versions of a model's folder that `model_version` names, the highest first. Raises SettingError."""
    numbers = _numbers(root) or ["1"]
    if wanted == "latest":
        return numbers[:1]
    if wanted == "all":
        return numbers
    chosen = {number.strip() for number in wanted.split(",")}
    for number in chosen:
        if number not in numbers:
            raise SettingError(
                f"{root}: model_version = {wanted!r}, must be latest, all, or of {', '.join(reversed(numbers))}"
            )
    return sorted(chosen, key=int, reverse=True)


def version_folder(root: Path, version: str) -> Path:
    """Where a version's weights are: its numbered folder, or the model's own if that has none."""
    return root / version if _numbers(root) else root


def find_model_file(root: Path, folder: Path) -> Path:
    """The model.toml of a version: its own, or the one beside the numbered folders. Raises SettingError."""
    for place in (folder, root):
        if (place / "model.toml").is_file():
            return place / "model.toml"
    raise SettingError(f"{root}: no model.toml in it{'' if folder == root else f' or in {folder}'}")


def _numbers(root: Path) -> list[str]:
    names = [folder.name for folder in root.iterdir() if folder.name.isdecimal() and folder.is_dir()]
    return sorted(names, key=int, reverse=True)


def _load_timeout_s(file: Mapping[str, Any], outside: Outside) -> float:
    load_timeout_s: float = outside.settings(file)["load_timeout_s"]
    return load_timeout_s


def _assemble(code: Code, outside: Outside) -> "Loadable":
    return _assemble_chain(code, outside) if code.is_transformer else _assemble_predictor(code, outside)


def _assemble_predictor(code: Code, outside: Outside) -> Assembled:
    from .runtime.assembly import assemble, device_names
    from .runtime.cores import usable_cores

    settings = outside.settings(code.file.settings)
    sharers = settings["processes"] * max(1, device_names(settings["device"]).count("cpu"))
    settings["threads"] = settings["threads"] or max(1, usable_cores() // sharers)
    executors, batching = assemble(code.cls, code.folder, code.file.parameters, settings)
    return Assembled(executors, batching, settings["request_timeout_s"], settings["model_timeout_s"])


def _assemble_chain(code: Code, outside: Outside) -> "Loadable":
    from torpor.transformers import assembly

    cls, file, folder = code.cls, code.file, code.folder
    settings = outside.settings({**assembly.SETTINGS, **file.settings})
    predictor = settings["predictor"]
    if not predictor:
        raise SettingError(f"{file.class_path} is a transformer: predictor = '', must say where its predictor is")
    place = code.place / predictor if "predictor" in file.settings else Path(predictor)
    if place.is_dir():
        source: ModelFolder | ModelClass = ModelFolder("", place, outside)
    elif _CLASS.fullmatch(predictor):
        source = ModelClass("", predictor, folder, outside)
    else:
        return assembly.assemble(cls, folder, file.parameters, settings, assembly.elsewhere(settings))
    behind = source.code(source.versions()[0])
    if behind.is_transformer:
        raise SettingError(f"predictor = {predictor!r} is a transformer too, must be a predictor")
    return assembly.assemble(cls, folder, file.parameters, settings, _assemble_predictor(behind, outside))


_CLASS = re.compile(r"(?!unix:)[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""MODULE:CLASS; what follows a host's colon is a number."""
