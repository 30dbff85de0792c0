"""The connection behind a caller's: to the component's instance, when there is one that takes connections."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from .component import Component

_AGAIN_S = 0.05

P = TypeVar("P", bound=asyncio.Protocol)


async def connected(component: Component, make: Callable[[], P], is_wanted: Callable[[], bool]) -> P | None:
    """A connection's protocol; None when it is not wanted any more.

    What waits here has not begun, and the next instance gets it: one that is dying may take connections, or refuse them, before
    its end is known.
    """
    loop = asyncio.get_running_loop()
    while is_wanted():
        if component.takes_connections:
            try:
                _, protocol = await loop.create_connection(make, "127.0.0.1", component.port)
            except OSError:
                pass
            else:
                return protocol
        await asyncio.sleep(_AGAIN_S)
    return None
