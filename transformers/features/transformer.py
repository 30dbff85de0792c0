"""`Features`: a ready-made transformer that replaces keys by what is known of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torpor.predictors.errors import InvalidInput
from torpor.predictors.protocol.datatypes import Array
from torpor.predictors.settings import SettingError

from ..parameters import Parameters
from .cache import FeatureCache
from .loader import import_loader
from .metrics import FeatureMetrics
from .table import FeatureTable


class Features:
    """Takes any inputs; that with the keys, `bytes[rows]` or integers, becomes one with their features. The others stay.

    Keys may have more axes, `bytes[rows, candidates]`: the features' own come behind them.

    Parameters, beside those of a `FeatureTable`:
    loader: module:function (`loader.py`), beside the model's file or installed.
    key: the input with the keys ("key").
    output: the name of the predictor's input ("features").
    default: the number that fills the row of a key without features; without it such a key is refused.
    present: the name of one more input of the predictor, bool, whether a key has features; "" for none.
    keep_key: whether the predictor gets the keys too (false).
    """

    _cache: FeatureCache

    def load(self, folder: Path | None, parameters: Mapping[str, Any]) -> None:
        """Raises SettingError for a parameter that cannot be used."""
        given = Parameters(type(self).__name__, parameters)
        table = FeatureTable.read(given)
        loader = import_loader(given.one("loader", ""), folder or Path.cwd())
        self._key = given.one("key", "key")
        self._output = given.one("output", "features")
        self._default = given.one("default", 0.0, -1e38, 1e38) if "default" in parameters else None
        self._present = given.one("present", "")
        self._keep_key = given.one("keep_key", False)
        given.end()
        if self._default is not None and table.codec().dtype.type(self._default) != self._default:
            raise SettingError(f"default = {self._default:g} is no value of features = {table.features!r}")
        if self._present and self._default is None:
            raise SettingError(f"present = {self._present!r} has no meaning without default: all keys are present")
        self._cache = FeatureCache(loader, table)
        self._cache.prepare()

    def unload(self) -> None:
        self._cache.close_soon()

    @property
    def metrics(self) -> FeatureMetrics:
        """What the server's `/metrics` shows of it."""
        return self._cache.metrics

    async def preprocess(self, **inputs: Array) -> dict[str, Array]:
        """Raises InvalidInput for a request without keys, or with one that has no features; and what `get` raises."""
        keys = inputs.get(self._key)
        if keys is None:
            raise InvalidInput(f"input '{self._key}' is missing, it has the keys of the features")
        if keys.dtype.kind not in "Oiu":
            raise InvalidInput(f"input '{self._key}': dtype = {keys.dtype}, must be bytes or an integer")
        flat = keys.ravel().tolist()
        found = await self._cache.look_up(flat)
        try:
            table = self._cache.table_of(flat, found, self._default)
        except InvalidInput as error:
            raise InvalidInput(f"input '{self._key}': {error}") from None
        if not self._keep_key:
            del inputs[self._key]
        if self._present:
            inputs[self._present] = np.array([row is not None for row in found]).reshape(keys.shape)
        inputs[self._output] = table.reshape(keys.shape + table.shape[1:])
        return inputs
