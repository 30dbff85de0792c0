"""Requests to any number of destinations: what deliveries, sinks and the command line send with."""

import asyncio
from collections.abc import Mapping

from ..client.address import Address
from ..client.message import Reply, head
from ..client.pool import Pool
from .destination import Destination

_MOST_CONNECTIONS = 10_000
"""To one address: as many as the largest trigger has deliveries in flight."""

_MOST_WAITING = 1_000_000
_IDLE_S = 60.0
_CONNECT_TIMEOUT_S = 10.0
_MOST_BODY_BYTES = 64 << 20


class HttpCaller:
    """A pool of connections for each address. Belongs to one event loop. Redirects are answers like any other."""

    def __init__(self) -> None:
        self._pools: dict[Address, Pool] = {}

    async def post(
        self, destination: Destination, headers: Mapping[bytes, bytes], body: bytes, timeout_s: float
    ) -> Reply:
        """Send a request and give its answer. Raises Unavailable, PredictorFailed, and TimeoutError after timeout_s."""
        address, target = destination
        pool = self._pools.get(address)
        if pool is None:
            pool = self._pools[address] = Pool(
                address, _MOST_CONNECTIONS, _MOST_WAITING, _IDLE_S, _CONNECT_TIMEOUT_S, _MOST_BODY_BYTES, ca_file=""
            )
        fields = b"".join(b"%b: %b\r\n" % field for field in headers.items())
        async with asyncio.timeout(timeout_s):
            return await pool.ask([head(target, address.authority, len(body), fields), b"\r\n", body])

    async def close(self) -> None:
        for pool in self._pools.values():
            await pool.close()
