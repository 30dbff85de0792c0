"""Loading and unloading models while the server runs: the v2 repository API, by all processes or by none.

TorchServe's management API adds and removes single versions, where there is one process.

A change is prepared (a model is loaded and warmed beside what serves), and then committed: its name leads to the new
versions from one request to the next, and the old ones answer what they have taken before they go. If a process cannot
prepare, all abort. Changes are made one after the other, so that one that hangs would hold up all that follow: it fails
when its time is up, and its thread, which nobody can end, is left to itself. So does one at the start, and the process with it.
The API is Triton's extension_model_repository.md (https://github.com/triton-inference-server/server).
"""

import asyncio
import faulthandler
import gc
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Protocol

from ..errors import Forbidden, InvalidInput, ModelFailed, NotSupported
from .data_plane import DataPlane, Served
from .tasks import Tasks, in_daemon

logger = logging.getLogger("torpor")

_ENDING_S = 2.0
"""So long a process whose start has failed has to end by itself."""


class Loadable(Protocol):
    """A version of a predictor, or of a transformer and its predictor."""

    async def load(self, data_plane: DataPlane, name: str, version: str) -> Served:
        """Load it and warm it up; nobody is led to it yet. Raises what its `load` raises."""


class Source(Protocol):
    """Where one model comes from; both methods raise what is wrong with it."""

    def versions(self) -> list[str]:
        """The versions to serve, the one that requests get who name none first."""

    def load_timeout_s(self, version: str) -> float:
        """How long its import, load and warm-up may take together; 0: no limit."""

    def assemble(self, version: str) -> Loadable:
        """The version, imported and not loaded yet."""


class Catalog(Protocol):
    """All models that there are, served or not."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What it says of the server's own settings, by name."""

    def names(self) -> list[str]: ...

    def model(self, name: str) -> Source:
        """Raises NotFound."""

    async def prepare(self) -> None:
        """Begin with what takes longest, before the server has imported all of itself."""

    async def settle(self) -> None:
        """All is loaded, or nothing is to be: let go of what was prepared for nobody."""


class Everybody(Protocol):
    """All processes of the server."""

    async def change(self, name: str, is_loaded: bool) -> None:
        """Load or unload a model in all of them. Raises a TorporError, and then nothing has changed."""


class Repository:
    """What of a catalog is served."""

    def __init__(self, catalog: Catalog, data_plane: DataPlane, may_change: bool) -> None:
        """may_change: whether callers may load and unload."""
        self._catalog = catalog
        self._data_plane = data_plane
        self.may_change = may_change
        self.everybody: Everybody = self
        self.changes: dict[str, bool] = {}
        """Models that have been loaded (True) or unloaded since the start."""
        self._prepared: dict[str, list[Served]] = {}
        self._reasons: dict[str, str] = {}
        self._changing = asyncio.Lock()
        self._retiring = Tasks()

    async def load_all(self, changes: Mapping[str, bool]) -> None:
        """Load the catalog's models as it is and as `changes` says. Raises anything; then the process is to end."""
        self.changes |= changes
        for name in self._catalog.names():
            if changes.get(name, True):
                source = self._catalog.model(name)
                for version in source.versions():
                    logger.info("loading %s version %s", name, version)
                    with _or_end(source.load_timeout_s(version)):
                        async with _in_time(source, name, version):
                            with self._data_plane.metrics.phase("import"), _for_good():
                                assembled = await in_daemon(partial(source.assemble, version))
                            model = await assembled.load(self._data_plane, name, version)
                    self._data_plane.publish(name, [*self._data_plane.versions(name), model])

    async def load(self, name: str, parameters: object = None) -> None:
        """Load a model, or load it anew. parameters: Triton's, which would change the model's settings.

        Raises InvalidInput for any of these, NotFound, NotSupported, ModelFailed.
        """
        if parameters:
            raise InvalidInput("parameters must be empty: a model's settings come from its model.toml")
        await self._ask(name, True)

    async def unload(self, name: str) -> None:
        """Serve a model no more. Raises NotFound if it is not served, NotSupported."""
        self._data_plane.model(name)
        await self._ask(name, False)

    def index(self, only_ready: bool) -> list[dict[str, str]]:
        """The versions served, and the models that could be, with the reason why they are not."""
        entries: list[dict[str, str]] = []
        names = dict.fromkeys([*self._catalog.names(), *self._data_plane.names()])
        for name in names:
            versions = self._data_plane.versions(name)
            entries += [{"name": name, "version": m.version, "state": "READY", "reason": ""} for m in versions]
            if not versions and not only_ready:
                state = "LOADING" if name in self._prepared else "UNAVAILABLE"
                entries.append({"name": name, "version": "", "state": state, "reason": self._reasons.get(name, "")})
        return entries

    async def change(self, name: str, is_loaded: bool) -> None:
        """The change in this process, if it is the only one."""
        async with self._changing:
            try:
                await self.prepare(name, is_loaded)
            except BaseException:
                self.abort(name)
                raise
            self.commit(name, is_loaded)

    async def add(self, name: str, version: str) -> None:
        """Serve one version more of what is in the catalog, the default if it is the first. Raises ModelFailed."""
        async with self._changing:
            source = self._catalog.model(name)
            try:
                model = await self._load(source, name, version)
            except (Exception, SystemExit) as error:
                logger.error("model %s version %s failed to load: %s", name, version, error)
                raise ModelFailed(f"model '{name}' version {version} failed to load: {error}") from error
            self._data_plane.publish(name, [*self._data_plane.versions(name), model])
            logger.info("model %s version %s: loaded", name, version)

    async def remove(self, name: str, version: str) -> str:
        """Serve a version, or the default, no more; what it has taken is answered. Gives the version's name.

        Raises NotFound; Forbidden for a default beside others.
        """
        async with self._changing:
            model = self._data_plane.model(name, version)
            versions = self._data_plane.versions(name)
            if model is versions[0] and len(versions) > 1:
                raise Forbidden(f"version {model.version} is the default of model '{name}', which has others")
            self._data_plane.publish(name, [one for one in versions if one is not model])
            logger.info("model %s version %s: unloaded", name, model.version)
            self._retire([model])
            return model.version

    async def prefer(self, name: str, version: str) -> None:
        """Make a version the default. Raises NotFound."""
        async with self._changing:
            model = self._data_plane.model(name, version)
            others = [one for one in self._data_plane.versions(name) if one is not model]
            self._data_plane.publish(name, [model, *others])

    async def prepare(self, name: str, is_loaded: bool) -> None:
        """Do everything that can fail. Raises NotFound for a model that is not in the catalog, ModelFailed."""
        if not is_loaded:
            return
        source = self._catalog.model(name)
        prepared = self._prepared[name] = []
        try:
            for version in source.versions():
                model = await self._load(source, name, version)
                prepared.append(model)
        except (Exception, SystemExit) as error:
            logger.exception("model %s failed to load", name)
            self._reasons[name] = f"{type(error).__name__}: {error}"
            raise ModelFailed(f"model '{name}' failed to load: {self._reasons[name]}") from error

    def commit(self, name: str, is_loaded: bool) -> None:
        """Serve what was prepared, from now on."""
        self.changes[name] = is_loaded
        self._reasons[name] = "" if is_loaded else "unloaded"
        old = self._data_plane.versions(name)
        self._data_plane.publish(name, self._prepared.pop(name, []))
        logger.info("model %s: %s", name, "loaded" if is_loaded else "unloaded")
        self._retire(old)

    def abort(self, name: str) -> None:
        """Forget what was prepared."""
        self._retire(self._prepared.pop(name, []))

    async def _load(self, source: Source, name: str, version: str) -> Served:
        """Import and load it beside what serves. Raises TimeoutError, and what the model raises."""
        async with _in_time(source, name, version):
            assembled = await in_daemon(partial(source.assemble, version))
            return await assembled.load(self._data_plane, name, version)

    async def _ask(self, name: str, is_loaded: bool) -> None:
        if not self.may_change:
            raise NotSupported("loading and unloading is not supported without --model-control-mode explicit")
        await self.everybody.change(name, is_loaded)

    def _retire(self, models: Sequence[Served]) -> None:
        for model in models:
            model.is_retired = True
            self._retiring.start(model.close(), f"retire {model.name}")


@asynccontextmanager
async def _in_time(source: Source, name: str, version: str) -> AsyncIterator[None]:
    """Give up what takes longer than a version may take to load. Raises TimeoutError."""
    limit_s = source.load_timeout_s(version)
    try:
        async with asyncio.timeout(limit_s or None) as limit:
            yield
    except TimeoutError:
        if not limit.expired():  # it is the model's own
            raise
        raise TimeoutError(
            f"{name} version {version} has not been imported, loaded and warmed up in load_timeout_s = {limit_s:g}"
        ) from None


@contextmanager
def _or_end(limit_s: float) -> Iterator[None]:
    """What is not done in this time, and a little more, ends the process, with the traceback of each thread.

    For native code that keeps the interpreter's lock, so that nothing of Python's can end it; and after a failure, for a thread
    that the model has started and that would keep the process.
    """
    if limit_s:
        faulthandler.dump_traceback_later(limit_s + _ENDING_S, exit=True, file=2)
    yield
    faulthandler.cancel_dump_traceback_later()


@contextmanager
def _for_good() -> Iterator[None]:
    """What is made here stays, as imports do: the garbage collector need not look at it, neither now nor later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
