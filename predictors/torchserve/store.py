"""What archives there are to serve, by the models' names and versions.

FILE.mar                            one archive; FILE.tar.gz and a folder with MAR-INF in it too
FOLDER/*.mar                        several; two with one name are its versions, if these differ
FOLDER/config/config.properties     KServe's storage folder: what its model_snapshot, or load_models, says
FOLDER/model-store/*.mar
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..catalog import Outside
from ..errors import NotFound
from ..settings import SettingError
from . import model_config
from .archive import Archive, read_member
from .assembly import AssembledArchive
from .manifest import ArchiveError
from .model_settings import ModelSettings, check_snapshot
from .place import CONFIG, is_archive
from .properties import Config


@dataclass(frozen=True)
class ArchiveVersion:
    """One archive under the name it is served by. snapshot: what the configuration's snapshot says of it."""

    path: Path
    version: str
    config: Config
    snapshot: Mapping[str, Any] | None
    models_entry: Mapping[str, Any]


@dataclass(frozen=True)
class ArchiveModel:
    """A model's archives, the default version first."""

    name: str
    archives: Sequence[ArchiveVersion]
    outside: Outside
    cores: int

    def versions(self) -> list[str]:
        return [archive.version for archive in self.archives]

    def load_timeout_s(self, version: str) -> float:
        """None: each of its workers has a limit of its own (`ModelSettings.startup_timeout_s`), and is killed then."""
        return 0.0

    def assemble(self, version: str) -> AssembledArchive:
        """Read it anew, and its settings. Raises SettingError."""
        (found,) = [archive for archive in self.archives if archive.version == version]
        archive = Archive.read(found.path)
        own = {**found.models_entry, **_own_settings(archive)}
        model = ModelSettings.of(
            found.config, own, f"{found.path.name}: {archive.manifest.config_file}", found.snapshot
        )
        settings = self.outside.settings(model.for_batching())
        return AssembledArchive(archive, found.config, model, settings, max(1, self.cores // settings["processes"]))


class ArchiveStore:
    """The models by name."""

    def __init__(self, models: Mapping[str, ArchiveModel]) -> None:
        self._models = models

    @classmethod
    def of(cls, root: Path, outside: Outside, cores: int, name: str | None) -> "ArchiveStore":
        """name: of the only model, if it is to have another. Raises SettingError for what cannot be served."""
        found: dict[str, list[ArchiveVersion]] = {}
        for model_name, archive in _archives(root):
            versions = found.setdefault(model_name, [])
            for other in versions:
                if other.version == archive.version:
                    raise SettingError(
                        f"{root}: {other.path.name} and {archive.path.name} are both version {archive.version} "
                        f"of model '{model_name}'"
                    )
            versions.append(archive)
        if not found:
            raise SettingError(f"{root}: no archive to serve in it")
        if name is not None:
            if len(found) > 1:
                raise SettingError(f"--model-name: {name!r}, but {root} has several models: {', '.join(found)}")
            (versions,) = found.values()
            found = {name: versions}
        return cls({name: ArchiveModel(name, versions, outside, cores) for name, versions in found.items()})

    def names(self) -> list[str]:
        return [*self._models]

    def model(self, name: str) -> ArchiveModel:
        """Raises NotFound."""
        if name not in self._models:
            raise NotFound(f"model '{name}' is unknown, must be one of {', '.join(self._models)}")
        return self._models[name]


def _archives(root: Path) -> Iterator[tuple[str, ArchiveVersion]]:
    """The names and archives, of a name's versions the default first. Raises SettingError."""
    if is_archive(root):
        yield _named(root, Config())
        return
    if not (root / CONFIG).is_file():
        for path in sorted(filter(is_archive, root.iterdir())):
            yield _named(path, Config())
        return
    config = Config.read(root / CONFIG)
    store = root / "model-store"
    if not store.is_dir():
        store = Path(config.model_store)
        if not config.model_store or not store.is_dir():
            raise SettingError(f"{root / CONFIG}: model_store = {config.model_store!r}, must be a folder")
    if config.snapshot is not None:
        yield from _of_snapshot(config, config.snapshot, store, root / CONFIG)
    elif config.load_models.strip() in ("", "all"):
        for path in sorted(filter(is_archive, store.iterdir())):
            yield _named(path, config)
    else:
        for entry in config.load_models.split(","):
            name, _, file = entry.strip().rpartition("=")
            path = store / file
            if "/" in file or not is_archive(path):
                raise SettingError(f"{root / CONFIG}: load_models: {file!r} is no archive in {store}")
            named, archive = _named(path, config)
            yield name or named, archive


def _of_snapshot(
    config: Config, snapshot: Mapping[str, Any], store: Path, where: Path
) -> Iterator[tuple[str, ArchiveVersion]]:
    for name, versions in snapshot.items():
        place = f"{where}: model_snapshot: {name}"
        if not isinstance(versions, dict):
            raise SettingError(f"{place} must be an object of versions")
        entries = [check_snapshot(entry, f"{place} {version}") for version, entry in versions.items()]
        for entry in sorted(entries, key=lambda entry: not entry["defaultVersion"]):
            path = store / entry["marName"]
            if not is_archive(path):
                raise SettingError(f"{place}: marName = {entry['marName']!r}, must be an archive in {store}")
            # The version is the archive's own: TorchServe does not read the snapshot's either.
            yield name, ArchiveVersion(path, Archive.read(path).manifest.version, config, entry, {})


def _named(path: Path, config: Config) -> tuple[str, ArchiveVersion]:
    archive = Archive.read(path)
    version = archive.manifest.version
    entry = (config.models or {}).get(archive.name)
    entry = entry.get(version) if isinstance(entry, dict) else None
    return archive.name, ArchiveVersion(path, version, config, None, entry if isinstance(entry, dict) else {})


def _own_settings(archive: Archive) -> Mapping[str, Any]:
    """The archive's YAML. Raises ArchiveError."""
    name = archive.manifest.config_file
    if not name:
        return {}
    where = f"{archive.path.name}: {name}"
    content = read_member(archive.path, name, model_config.LARGEST_BYTES)
    if content is None:
        raise ArchiveError(f"{where}, the manifest's configFile, is not in it")
    return model_config.read(content, where)
