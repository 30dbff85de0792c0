"""Requests that come together."""

import json
from typing import Any

from judge.calls import case, post
from judge.scenes import Scene


def rows(body: bytes) -> Any:
    """Whose answer it is; how many came together is a matter of the moment."""
    return json.loads(body)["row"]


def piece(body: bytes) -> Any:
    """What came before the answer's end."""
    return body.rpartition(b": ")[0]


BATCHED = Scene(
    "batched",
    ["batched"],
    [
        case("alone", post("batched", b"a")),
        case("four at once", *(post("batched", row) for row in "abcd"), together=True, normal=rows),
        case("nine at once", *(post("batched", row) for row in "abcdefghi"), together=True, normal=rows),
        case("queue full", *(post("batched", b"slow 0.2") for _ in range(20)), together=True, status=[], is_a_set=True,
             normal=rows),
        case("a poisoned row among good ones", *(post("batched", row) for row in ("a", "b", "poison", "c")),
             together=True, status=[503] * 4),
        case("after it", post("batched", b"a")),
        case("four in pieces", *(post("batched", f"pieces {row}") for row in "abcd"), together=True, status=[],
             normal=piece),
    ],
)  # fmt: skip
