"""What is known of a table of features before there is any: where it is, what a row looks like, how long it is good."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from torpor.predictors.settings import SettingError
from torpor.predictors.signature import TensorSpec

from ..parameters import Parameters
from .codec import DATATYPES, RowCodec

URL_VARIABLE = "TORPOR_FEATURES_URL"
"""A URL has a password in it, and so its place is a secret's variable rather than a file."""

Key = bytes | str | int
MAX_KEY_BYTES = 1024


@dataclass(frozen=True)
class FeatureTable:
    """A table of features in Redis.

    features: a row's declaration, `float32[rows, 32]`, every axis a size.
    url: redis://, rediss:// or unix://; "" for $TORPOR_FEATURES_URL, else redis://localhost:6379.
    prefix: of the keys in Redis; another one for every other meaning of the same features.
    ttl_s: seconds after which no row is used any more; each expires up to a tenth earlier, so that not all do at once.
    missing_ttl_s: the same for keys that the loader has no row for.
    timeout_s: of a read from Redis, after which the loader is asked.
    load_timeout_s: of the loader.
    max_loads: calls of the loader at once; what is missing meanwhile goes with the next.
    """

    features: str
    url: str = ""
    prefix: str = "features"
    ttl_s: float = 3600.0
    missing_ttl_s: float = 60.0
    timeout_s: float = 0.1
    load_timeout_s: float = 5.0
    max_loads: int = 16

    @classmethod
    def read(cls, given: Parameters) -> "FeatureTable":
        """The table of a model's parameters, as far as they speak of it. Raises SettingError."""
        table = cls(
            features=given.one("features", ""),
            url=given.one("url", cls.url),
            prefix=given.one("prefix", cls.prefix),
            ttl_s=given.one("ttl_s", cls.ttl_s, 0.01, 1e9),
            missing_ttl_s=given.one("missing_ttl_s", cls.missing_ttl_s, 0.01, 1e9),
            timeout_s=given.one("timeout_s", cls.timeout_s, 0.001, 60),
            load_timeout_s=given.one("load_timeout_s", cls.load_timeout_s, 0.001, 3600),
            max_loads=given.one("max_loads", cls.max_loads, 1, 1024),
        )
        table.codec()
        return table

    def codec(self) -> RowCodec:
        """Raises SettingError for a declaration that is none, or not of a fixed size."""
        try:
            spec = TensorSpec.parse("features", self.features)
        except ValueError as error:
            raise SettingError(f"features = {self.features!r}: {error}") from None
        sizes = [axis for axis in spec.axes if isinstance(axis, int) and axis > 0]
        if spec.datatype not in DATATYPES or len(sizes) != len(spec.axes):
            raise SettingError(
                f"features = {self.features!r}, must be of bool, an integer, float16, float32 or float64, "
                "and every axis after rows a size"
            )
        return RowCodec(spec.datatype, tuple(sizes))

    def where(self, environ: Mapping[str, str] = os.environ) -> str:
        return self.url or environ.get(URL_VARIABLE) or "redis://localhost:6379"


def key_bytes(key: Key) -> bytes:
    """A key as Redis and the loader get it: a text in UTF-8, a number in decimals. Raises ValueError for one too long."""
    data = key if isinstance(key, bytes) else str(key).encode()
    if len(data) > MAX_KEY_BYTES:
        raise ValueError(f"a key has {len(data)} bytes, must have at most {MAX_KEY_BYTES}")
    return data
