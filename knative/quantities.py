"""Kubernetes quantities, `500m`, `2`, `1.5Gi`: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/."""

import re
from decimal import Decimal

_FACTORS = {
    "n": Decimal(10) ** -9, "u": Decimal(10) ** -6, "m": Decimal(10) ** -3, "": Decimal(1),
    **{unit: Decimal(1000) ** (power + 1) for power, unit in enumerate("kMGTPE")},
    **{f"{unit}i": Decimal(1024) ** (power + 1) for power, unit in enumerate("KMGTPE")},
}  # fmt: skip
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))([eE][+-]?\d+)?([numkKMGTPE]i?|)")


def amount(quantity: str | int | float) -> Decimal:
    """Cores, bytes or whatever it counts. Raises ValueError."""
    found = _QUANTITY.fullmatch(str(quantity))
    if found is None or found[3] not in _FACTORS or (found[2] and found[3]):
        raise ValueError(f"{quantity!r} is no quantity, must be like 500m, 2 or 1.5Gi")
    return Decimal(found[1] + (found[2] or "")) * _FACTORS[found[3]]


def memory(size_bytes: float) -> str:
    """The shortest of Ki, Mi and Gi that is at least as much: 1.5Gi is 1536Mi."""
    size = -int(-size_bytes // 1024)
    for unit in ("Ki", "Mi"):
        if size % 1024:
            return f"{size}{unit}"
        size //= 1024
    return f"{size}Gi"
