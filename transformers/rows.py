"""What a transformer's method returns, as arrays: rows of one shape are one tensor, rows that differ are *ragged*.

A ragged array has one axis and an array in each element. It never leaves the process: the predictor gets its rows by shape
(`by_shape`), and whoever asked for them gets tensors or an error.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torpor.predictors.errors import ModelFailed
from torpor.predictors.protocol.datatypes import NAMES, Array, object_array

Rows = dict[str, Array]


def cut(named: Mapping[str, Any], counts: Sequence[int]) -> list[Rows]:
    """Each request's rows of what a method returned for all of them. Raises ModelFailed.

    named: an array, a list with an element a row, or what numpy makes an array of. counts: each request's rows.
    """
    total = sum(counts)
    whole: dict[str, Any] = {}
    for name, value in named.items():
        if not isinstance(value, list | tuple):
            value = np.asarray(value)
            if not value.ndim:
                raise ModelFailed(f"'{name}' has no rows, must be an array or a list of {total} rows")
        if len(value) != total:
            raise ModelFailed(f"'{name}' has {len(value)} rows, must have {total}, one for each row of the input")
        whole[name] = value
    pieces: list[Rows] = []
    start = 0
    for count in counts:
        pieces.append({name: _array(name, value[start : start + count]) for name, value in whole.items()})
        start += count
    return pieces


def is_ragged(array: Array) -> bool:
    return array.dtype == object and array.ndim == 1 and len(array) > 0 and isinstance(array[0], np.ndarray)


def by_shape(rows: Rows) -> list[tuple[Rows, list[int]]]:
    """The rows in groups that are tensors, each with the places of its rows. One group if nothing is ragged."""
    ragged = {name: array for name, array in rows.items() if is_ragged(array)}
    if not ragged:
        return [(rows, list(range(len(next(iter(rows.values()), ())))))]
    places: dict[tuple[object, ...], list[int]] = {}
    for place, of_row in enumerate(zip(*ragged.values(), strict=True)):
        places.setdefault(tuple((one.shape, one.dtype) for one in of_row), []).append(place)
    groups: list[tuple[Rows, list[int]]] = []
    for chosen in places.values():
        group = {name: np.stack(list(a[chosen])) if name in ragged else a[chosen] for name, a in rows.items()}
        groups.append((group, chosen))
    return groups


def in_order(groups: Iterable[tuple[Rows, list[int]]]) -> Rows:
    """The rows of all groups at their places, ragged where the groups' shapes or dtypes differ. Raises ModelFailed."""
    pieces = list(groups)
    if len(pieces) == 1:
        return pieces[0][0]
    names = set(pieces[0][0])
    if any(set(rows) != names for rows, _ in pieces):
        raise ModelFailed("the predictor's outputs have other names for some rows than for others")
    order = np.argsort(np.concatenate([places for _, places in pieces]))
    whole: Rows = {}
    for name in pieces[0][0]:
        arrays = [rows[name] for rows, _ in pieces]
        if len({(array.shape[1:], array.dtype) for array in arrays}) == 1:
            whole[name] = np.concatenate(arrays)[order]
        else:
            whole[name] = object_array([row for array in arrays for row in array], [len(order)])[order]
    return whole


def check_even(rows: Rows) -> Rows:
    """The rows, if all are tensors. Raises ModelFailed."""
    for name, array in rows.items():
        if is_ragged(array):
            shapes = sorted({one.shape for one in array})
            raise ModelFailed(f"output '{name}': rows differ in shape ({shapes[0]}, {shapes[-1]}), must be one tensor")
    return rows


def _array(name: str, value: Any) -> Array:
    """Rows as an array of a dtype that the protocols know, or ragged."""
    array: Array = value if isinstance(value, np.ndarray) else _from_list(name, value)
    if array.dtype.kind in "US":
        array = object_array(array.ravel().tolist(), array.shape)
    for tensor in array if is_ragged(array) else (array,):
        if tensor.dtype not in NAMES:
            raise ModelFailed(f"'{name}': dtype {tensor.dtype} has no Open Inference datatype")
    return array


def _from_list(name: str, values: Sequence[Any]) -> Array:
    if isinstance(values[0], str | bytes):
        return object_array(values, [len(values)])
    whole: Array
    arrays: list[Array] = [np.asarray(value) for value in values]
    if len({array.shape for array in arrays}) == 1:
        whole = np.stack(arrays)
        return whole
    if not all(array.ndim for array in arrays):
        raise ModelFailed(f"'{name}' has rows that are numbers and rows that are not")
    return object_array(arrays, [len(arrays)])
