"""What archives there are to serve, by the models' names and versions.

FILE.mar                            one archive; FILE.tar.gz and a folder with MAR-INF in it too
FOLDER/*.mar                        several; two with one name are its versions, if these differ
FOLDER/config/config.properties     KServe's storage folder: what its model_snapshot, or load_models, says
FOLDER/model-store/*.mar
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalog import Outside
from ..errors import NotFound
from ..settings import SettingError
from . import model_config
from .archive import Archive, read_member
from .beginning import Begun, begin, environment_of
from .manifest import ArchiveError
from .model_settings import ModelSettings, check_snapshot
from .place import CONFIG, is_archive
from .properties import Config

if TYPE_CHECKING:
    from .assembly import AssembledArchive


logger = logging.getLogger("torpor.torchserve")

_LARGEST_SOURCE_BYTES = 1 << 20


@dataclass(frozen=True)
class ArchiveVersion:
    """One archive under the name it is served by. snapshot: what the configuration's snapshot says of it.

    asked: what its registration says, None for one that was there at the start. handler: the registration's, "" for its own.
    """

    path: Path
    version: str
    config: Config
    snapshot: Mapping[str, Any] | None
    models_entry: Mapping[str, Any]
    asked: Mapping[str, Any] | None = None
    handler: str = ""


@dataclass(frozen=True)
class ArchiveModel:
    """A model's archives, the default version first. begun: workers that wait for what they are to load."""

    name: str
    archives: Sequence[ArchiveVersion]
    outside: Outside
    cores: int
    begun: list[Begun] = field(default_factory=list)

    def versions(self) -> list[str]:
        return [archive.version for archive in self.archives]

    def load_timeout_s(self, version: str) -> float:
        """None: each of its workers has a limit of its own (`ModelSettings.startup_timeout_s`), and is killed then."""
        return 0.0

    def assemble(self, version: str) -> "AssembledArchive":
        """Read it anew, and its settings. Raises SettingError."""
        from .assembly import AssembledArchive

        found, archive, model, settings, cores = self._read(version)
        return AssembledArchive(archive, found.config, model, settings, cores, found.asked is None, self.begun)

    async def prepare(self) -> None:
        """Let a worker of the default version begin, if it is to have any."""
        try:
            _, archive, model, settings, cores = self._read(self.versions()[0])
            workers = model.workers_on(cores)
            if workers:
                needs_torch = _needs_torch(archive)
                self.begun.append(await begin(environment_of(workers, cores, settings)))
                if needs_torch:
                    self.begun[-1].expect("torch")
        except (SettingError, OSError) as error:
            logger.debug("%s: no worker begins early: %s", self.name, error)  # its load says it

    def _read(self, version: str) -> tuple[ArchiveVersion, Archive, ModelSettings, Mapping[str, Any], int]:
        """With torpor's own settings, and the cores for its workers. Raises SettingError."""
        (found,) = [archive for archive in self.archives if archive.version == version]
        archive = Archive.read(found.path)
        if found.handler:
            archive = replace(archive, manifest=replace(archive.manifest, handler=found.handler))
        own = {**found.models_entry, **_own_settings(archive)}
        where = f"{found.path.name}: {archive.manifest.config_file}"
        model = ModelSettings.of(found.config, own, where, found.snapshot, found.asked or {})
        settings = self.outside.settings(model.for_batching())
        return found, archive, model, settings, max(1, self.cores // settings["processes"])


class ArchiveStore:
    """The models by name. config: that of the folder. folder: where archives to register are, None for a single archive."""

    def __init__(
        self, models: dict[str, list[ArchiveVersion]], config: Config, folder: Path | None, outside: Outside, cores: int
    ) -> None:
        self._models = models
        self.config = config
        self.folder = folder
        self._outside = outside
        self._cores = cores
        self._begun: list[Begun] = []

    @classmethod
    def of(
        cls, root: Path, outside: Outside, cores: int, name: str | None, may_be_empty: bool = False
    ) -> "ArchiveStore":
        """name: of the only model, if it is to have another. may_be_empty: archives may be registered later.

        Raises SettingError for what cannot be served.
        """
        config = Config.read(root / CONFIG) if (root / CONFIG).is_file() else Config()
        folder = _folder(root, config)
        found: dict[str, list[ArchiveVersion]] = {}
        for model_name, archive in _archives(root, config, folder):
            versions = found.setdefault(model_name, [])
            for other in versions:
                if other.version == archive.version:
                    raise SettingError(
                        f"{root}: {other.path.name} and {archive.path.name} are both version {archive.version} "
                        f"of model '{model_name}'"
                    )
            versions.append(archive)
        if not found and not may_be_empty:
            raise SettingError(f"{root}: no archive to serve in it")
        if name is not None and found:
            if len(found) > 1:
                raise SettingError(f"--model-name: {name!r}, but {root} has several models: {', '.join(found)}")
            (versions,) = found.values()
            found = {name: versions}
        return cls(found, config, folder, outside, cores)

    @property
    def settings(self) -> dict[str, Any]:
        """What the configuration says of torpor's own settings, by their names."""
        size = self.config.max_request_size
        return {} if size is None else {"max_body_bytes": size}

    def names(self) -> list[str]:
        return [*self._models]

    def model(self, name: str) -> ArchiveModel:
        """Raises NotFound."""
        if name not in self._models:
            raise NotFound(f"model '{name}' is unknown, must be one of {', '.join(self._models)}")
        return ArchiveModel(name, [*self._models[name]], self._outside, self._cores, self._begun)

    async def prepare(self) -> None:
        """Let the first worker begin: it has more to import than the server."""
        for name in self.names()[:1]:
            await self.model(name).prepare()

    async def settle(self) -> None:
        """All that is to be there from the start is loaded, or nothing is to be: end what nobody took."""
        while self._begun:
            await self._begun.pop().end()

    def add(self, name: str, archive: ArchiveVersion) -> None:
        """A version more, the default if it is the first; for the one that had its version before."""
        others = [one for one in self._models.get(name, ()) if one.version != archive.version]
        self._models[name] = [*others, archive]

    def remove(self, name: str, version: str) -> None:
        """Without one that there is, and without the model if it was the last."""
        versions = self._models[name]
        versions[:] = [archive for archive in versions if archive.version != version]
        if not versions:
            del self._models[name]

    def prefer(self, name: str, version: str) -> None:
        """Make one that there is the default."""
        self._models[name].sort(key=lambda archive: archive.version != version)


def _folder(root: Path, config: Config) -> Path | None:
    """Where the archives are; None if the place is one itself. Raises SettingError."""
    if is_archive(root):
        return None
    if not (root / CONFIG).is_file():
        return root
    store = root / "model-store"
    if not store.is_dir():
        store = Path(config.model_store)
        if not config.model_store or not store.is_dir():
            raise SettingError(f"{root / CONFIG}: model_store = {config.model_store!r}, must be a folder")
    return store


def _archives(root: Path, config: Config, store: Path | None) -> Iterator[tuple[str, ArchiveVersion]]:
    """The names and archives, of a name's versions the default first. Raises SettingError."""
    if store is None:
        yield named_archive(root, config)
    elif config.snapshot is not None:
        yield from _of_snapshot(config, config.snapshot, store, root / CONFIG)
    elif config.load_models == "none":
        return
    elif config.load_models in ("", "all"):
        for path in sorted(filter(is_archive, store.iterdir())):
            yield named_archive(path, config)
    else:
        for entry in config.load_models.split(","):
            name, _, file = entry.strip().rpartition("=")
            path = store / file
            if "/" in file or not is_archive(path):
                raise SettingError(f"{root / CONFIG}: load_models: {file!r} is no archive in {store}")
            named, archive = named_archive(path, config)
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


def named_archive(path: Path, config: Config) -> tuple[str, ArchiveVersion]:
    """An archive, and the name that it says. Raises ArchiveError."""
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


def _needs_torch(archive: Archive) -> bool:
    """Whether its handler will probably import it: it is TorchServe's own, or speaks of it or of TorchServe."""
    file = archive.manifest.handler.partition(":")[0].removesuffix(".py") + ".py"
    source = read_member(archive.path, file, _LARGEST_SOURCE_BYTES)
    return source is None or b"torch" in source or b"from ts" in source
