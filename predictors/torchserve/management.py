"""What TorchServe's management does: archives are registered, scaled, preferred and unregistered while others serve.

Archives come from the model store by name, or from URLs that the configuration allows. A change is made by this process, so
there is one.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..errors import Conflict, InvalidInput, ModelFailed, NotFound
from ..serving.data_plane import DataPlane
from ..serving.repository import Repository
from ..serving.tasks import Tasks, in_daemon
from ..settings import SettingError
from .download import download
from .manifest import ArchiveError
from .model_settings import ModelSettings
from .place import is_archive
from .served import ServedArchive
from .store import ArchiveStore, ArchiveVersion, named_archive

logger = logging.getLogger("torpor.torchserve")

_LONGEST_NAME_BYTES = 255
"""Of files, in any file system of Linux's: it fails to look for a longer one."""


@dataclass(frozen=True)
class Registration:
    """An archive that is to be served. name, handler: "" for those that the archive says. settings: by keys of a model's YAML.

    workers: unless the archive says how many; None for the configuration's default.
    """

    file: str
    name: str
    handler: str
    workers: int | None
    settings: Mapping[str, Any]


class Management:
    """The archives that are served. Belongs to one event loop."""

    def __init__(self, store: ArchiveStore, data_plane: DataPlane, repository: Repository) -> None:
        self._store = store
        self._data_plane = data_plane
        self._repository = repository
        self._registering = asyncio.Lock()
        self._tasks = Tasks()

    @property
    def may_register(self) -> bool:
        """Whether the configuration leaves it to callers what is served."""
        return self._store.config.enable_model_api

    def names(self) -> list[str]:
        return sorted(self._data_plane.names())

    def served(self, name: str, version: str = "") -> ServedArchive:
        """The version, or the default. Raises NotFound."""
        return _archive(self._data_plane.model(name, version))

    def versions(self, name: str) -> Sequence[ServedArchive]:
        """All of a model, the default first. Raises NotFound."""
        self._data_plane.model(name)
        return [_archive(model) for model in self._data_plane.versions(name)]

    async def register(self, asked: Registration, waits: bool) -> ServedArchive | None:
        """Serve one archive more, its first version as the default. Gives it once it is loaded, None if nobody `waits`.

        Raises NotFound for an archive that is not in the store, InvalidInput for one that is none, Conflict, and for one that
        does not load ModelFailed: then it is as before.
        """
        if "/" in asked.name or not asked.name.isprintable():
            raise InvalidInput(f"model_name = {asked.name[:100]!r}, must be printable and without /")
        try:
            ModelSettings().changed(asked.settings, "registration")
        except SettingError as error:
            raise InvalidInput(str(error)) from None
        name, archive = await in_daemon(partial(self._read, asked))
        self._check_new(name, archive.version)
        if not waits:
            self._tasks.start(self._add(name, archive), f"registration of {name} {archive.version}")
            return None
        await self._add(name, archive)
        return self.served(name, archive.version)

    async def scale(self, name: str, version: str, least: int, most: int, waits: bool) -> None:
        """Have at least and at most so many workers. Raises NotFound; ModelFailed if one cannot load: then it is as before."""
        if most < least:
            raise InvalidInput(f"max_worker = {most}, must be at least min_worker = {least}")
        served = self.served(name, version)

        async def scale() -> None:
            try:
                await served.scale(least, most)
            except ArchiveError as error:
                raise ModelFailed(f"failed to start workers of model '{name}': {error}") from None

        if waits:
            await scale()
        else:
            self._tasks.start(scale(), f"scaling of {name}")

    async def prefer(self, name: str, version: str) -> None:
        """Make a version the default. Raises NotFound."""
        await self._repository.prefer(name, version)
        self._store.prefer(name, version)

    async def unregister(self, name: str, version: str) -> None:
        """Serve a version, or the default, no more. Raises NotFound, and Forbidden for a default beside others."""
        self._store.remove(name, await self._repository.remove(name, version))

    async def _add(self, name: str, archive: ArchiveVersion) -> None:
        async with self._registering:
            self._check_new(name, archive.version)
            self._store.add(name, archive)
            try:
                await self._repository.add(name, archive.version)
            except BaseException:
                self._store.remove(name, archive.version)
                raise

    def _read(self, asked: Registration) -> tuple[str, ArchiveVersion]:
        folder, config = self._store.folder, self._store.config
        file, is_new = asked.file, False
        if folder is not None and "://" in file:
            file, is_new = download(file, config.allowed_urls, folder), True
        if "/" in file or "\\" in file or file in (".", "..") or len(file.encode()) > _LONGEST_NAME_BYTES:
            raise NotFound(f"url = {file[:200]!r}, must be the name of an archive in the model store")
        if folder is None or not is_archive(folder / file):
            raise NotFound(f"model not found at: {file[:200]}")
        try:
            name, found = named_archive(folder / file, config)
        except SettingError as error:
            if is_new:
                (folder / file).unlink()
            raise InvalidInput(str(error)) from None
        workers = config.default_workers_per_model if asked.workers is None else asked.workers
        entry = {**found.models_entry, "minWorkers": workers}  # the archive's own YAML is before it
        return asked.name or name, replace(found, models_entry=entry, asked=asked.settings, handler=asked.handler)

    def _check_new(self, name: str, version: str) -> None:
        if any(model.version == version for model in self._data_plane.versions(name)):
            raise Conflict(f"version {version} of model '{name}' is registered already")


def _archive(model: object) -> ServedArchive:
    assert isinstance(model, ServedArchive)
    return model
