"""Tensors of the lists that JSON gives, all numbers at once: one by one, as torch makes them, takes five times as long.

torch asks of each number whether it is a symbolic one (`recursive_store`, torch/csrc/utils/tensor_new.cpp). Handlers make
their tensors in `preprocess`, so only there `torch.tensor` and `torch.as_tensor` are looked at, by a mode of torch's own
(`torch.overrides.TorchFunctionMode`): a model, which may be compiled, sees none.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import chain
from struct import pack_into
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .handler import Handle

_CODES = {torch.float32: "f", torch.float64: "d", torch.int64: "q"}
"""Of `struct`, which converts numbers as torch does: by `PyFloat_AsDouble` and a cast, or by `PyNumber_Index`."""

_MOST_DIMENSIONS = 64
"""Torch's own bound; a list may hold itself."""


def quicken(handle: Handle) -> None:
    """Let the `preprocess` of a handler's instance make its tensors so; what has none stays as it is."""
    handler = getattr(handle, "__self__", None)
    preprocess = getattr(handler, "preprocess", None)
    if not callable(preprocess) or not hasattr(handler, "__dict__"):
        return

    @wraps(preprocess)
    def quick(*arguments: Any, **named: Any) -> Any:
        with _Mode():
            return preprocess(*arguments, **named)

    handler.preprocess = quick  # type: ignore[union-attr]


class _Mode(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and named.keys() <= {"dtype", "device"}:
            made = tensor(args[0], named.get("dtype"))
            if made is not None:
                return made.to(named.get("device") or torch.get_default_device())
        return func(*args, **named)


def tensor(data: Any, dtype: torch.dtype | None = None) -> torch.Tensor | None:
    """What `torch.tensor` makes of lists of numbers, in the CPU's memory. None for what torch has to be asked about itself."""
    sizes: list[int] = []
    first = data
    while type(first) is list and first and len(sizes) < _MOST_DIMENSIONS:
        sizes.append(len(first))
        first = first[0]
    if not sizes or type(first) not in (float, int):
        return None
    rows = [[data]]
    for size in sizes:
        rows = [row for outer in rows for row in outer]
        if any(type(row) is not list or len(row) != size for row in rows):
            return None
    dtype = dtype or _inferred(rows)
    if dtype not in _CODES:
        return None
    made = torch.empty(sizes, dtype=dtype, device="cpu")
    try:
        pack_into(f"{made.numel()}{_CODES[dtype]}", made.numpy().data, 0, *chain.from_iterable(rows))
    except Exception:  # whatever a number that is none raises, torch says it to the handler
        return None
    return made


def _inferred(rows: Sequence[list[Any]]) -> torch.dtype | None:
    """The dtype by the numbers' types. None where torch has to say it."""
    kinds = set(map(type, chain.from_iterable(rows)))
    if kinds == {int}:
        return torch.int64
    return torch.get_default_dtype() if kinds <= {float, int} else None
