"""Features of what a request names, from Redis, and from where they come where Redis has none: see docs/features.md."""

from .cache import FeatureCache
from .table import FeatureTable
from .transformer import Features

__all__ = ["FeatureCache", "FeatureTable", "Features"]
