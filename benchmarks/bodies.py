"""Request bodies of the peers that lack KServe's protocols, as rows of the models.

`raw` is the tensor's bytes and nothing else: float32 for the MLP; the token ids and then the mask, int64, for the
sentence model. The answer is the output's float32 bytes. `json` is the v1 body, `{"instances": [row]}`, at the peer's
own path; a row of the MLP is a list of numbers, one of the sentence model an object of two lists. The answer is
`{"predictions": [[…]]}` unless a peer can only return the bare list.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Row = Mapping[str, np.ndarray]


def from_raw(model: str, body: bytes | bytearray | memoryview) -> Row:
    if model == "mlp":
        return {"input": np.frombuffer(body, dtype=np.float32).reshape(1, -1)}
    ids, mask = np.frombuffer(body, dtype=np.int64).reshape(2, 1, -1)
    return {"input_ids": ids, "attention_mask": mask}


def to_raw(row: Row) -> bytes:
    return b"".join(np.ascontiguousarray(values).tobytes() for values in row.values())


def from_json(body: Mapping[str, Any]) -> Row:
    (row,) = body["instances"]
    if isinstance(row, dict):
        return {name: np.array([values], dtype=np.int64) for name, values in row.items()}
    return {"input": np.array([row], dtype=np.float32)}


def to_json(row: Row) -> dict[str, Any]:
    lists = {name: plain(values[0]) for name, values in row.items()}
    return {"instances": [lists if len(lists) > 1 else lists.popitem()[1]]}


def plain(value: np.ndarray | np.generic | str) -> Any:
    """As a client's JSON would have it: of a float32 the few digits that it was made of."""
    if isinstance(value, np.ndarray):
        return [plain(one) for one in value]
    if isinstance(value, str):
        return value
    return float(str(value)) if isinstance(value, np.floating) else int(value)
