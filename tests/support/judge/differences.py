"""Where torpor answers otherwise than TorchServe 0.12, and why. `docs/torchserve.md` repeats the reasons."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    reason: str
    """A key of REASONS."""

    aspects: tuple[str, ...]


REASONS: dict[str, str] = {}
"""A sentence each, as the docs have it."""

DIFFERENCES: dict[str, Difference] = {}
"""By `scene/case`."""
