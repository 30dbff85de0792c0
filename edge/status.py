"""What a node says of itself, to whoever asks on it (`torpor edge status`) and to its site (`torpor edge report`)."""

from typing import Any

from .contents import time_text
from .generations import Generation
from .node import Node
from .refused import Refused
from .trust import ends


def status(node: Node) -> dict[str, Any]:
    """current, before: what it serves, and would go back to. ends: by role, until when updates are taken. time: the last
    accepted one. state: why it takes none, which stops nothing that is served. Raises Refused where current is damaged.
    """
    current = node.current()
    before = _before(node, current)
    value: dict[str, Any] = {
        "current": current.described() if current else None,
        "before": before.described() if before else None,
    }
    try:
        state = node.state()
    except Refused as refused:
        return value | {"state": str(refused)}
    if state is None:
        return value
    roles = {role: time_text(end) for role, end in ends(state.trust).items()}
    return value | {"time": time_text(state.trust.time), "ends": roles, "history": list(state.history)}


def _before(node: Node, current: Generation | None) -> Generation | None:
    if current is None or current.before is None:
        return None
    try:
        return node.generations.read(current.before)
    except Refused:
        return None
