"""What a torpor process tells of itself at /metrics: the phases of its start, its queue, its batches; and the broker's counts.

Asked at the process's own port, beside the activator, so that looking keeps nobody awake.
"""

import asyncio
import contextlib

from ..samples import Sample, samples

_TIMEOUT_S = 0.5


async def told(port: int) -> list[Sample]:
    """Name, labels and value of each; none if nobody there tells any."""
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
            finally:
                writer.close()
        if head.split(b" ", 2)[1:2] == [b"200"]:
            return [*samples(body.decode("utf-8", "replace"))]
    return []


async def start_phases(port: int) -> dict[str, float]:
    """Seconds by phase of torpor's own start; none of another server's."""
    return {labels["phase"]: value for name, labels, value in await told(port) if name == "torpor_start_seconds"}


async def batches(port: int) -> dict[str, float]:
    """queued_rows, batches and rows so far, of all models of the process together."""
    names = {"torpor_queued_rows": "queued_rows", "torpor_batch_rows_count": "batches", "torpor_batch_rows_sum": "rows"}
    found: dict[str, float] = {}
    for name, _, value in await told(port):
        if name in names:
            found[names[name]] = found.get(names[name], 0.0) + value
    return found


async def events(port: int) -> list[dict[str, object]]:
    """The broker's counts: trigger ("" for the ingress), outcome, count."""
    return [
        {"trigger": labels.get("trigger", ""), "outcome": labels.get("outcome", ""), "count": int(value)}
        for name, labels, value in await told(port)
        if name == "torpor_broker_events_total"
    ]
