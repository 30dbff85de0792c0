"""The connection behind a caller's: to the component's instance, when there is one that takes connections."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from .component import Component
from .scale import State

_AGAIN_S = 0.05

P = TypeVar("P", bound=asyncio.Protocol)


async def connected(component: Component, make: Callable[[], P], is_wanted: Callable[[], bool]) -> P | None:
    """A connection's protocol; None when it is not wanted any more.

    An instance that has just crashed refuses before its end is known: what waits here has not begun, and the next one gets it.
    """
    loop = asyncio.get_running_loop()
    while is_wanted():
        if component.state in (State.AWAKE, State.STOPPING):
            try:
                _, protocol = await loop.create_connection(make, "127.0.0.1", component.port)
            except OSError:
                pass
            else:
                return protocol
        await asyncio.sleep(_AGAIN_S)
    return None
