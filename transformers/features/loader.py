"""Where rows come from: the user's function, called with all keys that are missing."""

import asyncio
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torpor.predictors.errors import ModelFailed, TorporError, Unavailable
from torpor.predictors.protocol.datatypes import Array
from torpor.predictors.settings import SettingError

from .codec import RowCodec

logger = logging.getLogger("torpor.features")


class Loader:
    """A function `load(keys: list[bytes])`, plain (then on a thread) or a coroutine.

    It returns the rows by key, and nothing for keys that have none; or rows in the order of the keys, and None for such.
    """

    def __init__(self, function: Callable[[list[bytes]], Any], codec: RowCodec, timeout_s: float) -> None:
        self._function = function
        self._codec = codec
        self._timeout_s = timeout_s
        self._is_coroutine = inspect.iscoroutinefunction(function)

    async def load(self, keys: Sequence[bytes]) -> list[Array | None]:
        """A row for each key, or None. Raises Unavailable if the function fails or is late, ModelFailed for a wrong result."""
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                if self._is_coroutine:
                    result = await self._function(list(keys))
                else:
                    result = await asyncio.to_thread(self._function, list(keys))
        except TorporError:
            raise
        except Exception as error:
            if limit.expired():
                raise Unavailable(f"the loader of features took more than {self._timeout_s:g} s") from None
            logger.error("the loader of features raised %s", type(error).__name__, exc_info=error)
            name = type(error).__name__
            raise Unavailable(f"the loader of features raised {name}; the server's log has the details") from None
        return self._rows(keys, result)

    def _rows(self, keys: Sequence[bytes], result: Any) -> list[Array | None]:
        if isinstance(result, Mapping):
            result = [result.get(key) for key in keys]
        elif not hasattr(result, "__len__") or len(result) != len(keys):
            got = f"{len(result)} rows" if hasattr(result, "__len__") else f"a {type(result).__name__}"
            raise ModelFailed(f"the loader of features returned {got}, must return {len(keys)}, or rows by key")
        rows: list[Array | None] = []
        for key, value in zip(keys, result, strict=True):
            try:
                rows.append(None if value is None else self._codec.row(value))
            except (TypeError, ValueError) as error:
                raise ModelFailed(f"the loader of features returned for key {key!r}: {error}") from None
        return rows


def import_loader(path: str, folder: Path) -> Callable[[list[bytes]], Any]:
    """The function `module:function`; the folder is where modules are looked for last. Raises SettingError."""
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise SettingError(f"loader = {path!r}, must be of the form module:function")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        function = getattr(importlib.import_module(module_name), name, None)
    except ModuleNotFoundError as error:
        raise SettingError(f"loader = {path!r}: {error}") from None
    if not callable(function):
        raise SettingError(f"loader = {path!r}: {module_name} has no function {name}")
    loader: Callable[[list[bytes]], Any] = function
    return loader
