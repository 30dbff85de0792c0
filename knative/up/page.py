"""The live page: one HTML file that asks for `/state.json` once a second. It needs nothing from outside this machine."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import orjson
from torpor.predictors.errors import MethodNotAllowed, NotFound, TorporError
from torpor.predictors.serving.exchange import Exchange, Fields
from torpor.predictors.serving.rest import JSON, error_body
from torpor.predictors.serving.server import HttpServer, Port
from torpor.predictors.serving.tasks import Tasks

from . import own_metrics
from .component import Component
from .documents import UpError, reason_of
from .scale import State
from .terminal import Terminal

_LOOK_S = 0.5
_HTML = ((b"content-type", b"text/html; charset=utf-8"),)
_STATE = (*JSON, (b"cache-control", b"no-store"))


class Page:
    """addresses: of the components' activators by name."""

    def __init__(self, components: Sequence[Component], addresses: Mapping[str, str], terminal: Terminal) -> None:
        self._components = components
        self._addresses = addresses
        self._terminal = terminal
        self._batches: dict[str, dict[str, float]] = {}
        self._events: list[dict[str, object]] = []
        self._looked_s = -_LOOK_S
        self._tasks = Tasks()
        self._server: HttpServer | None = None
        self.broker_port = 0

    async def start(self, host: str, port: int) -> str:
        """HOST:PORT. Raises UpError."""
        self._server = HttpServer(self, Port(host, port, None), 1 << 10, 1 << 20)
        try:
            return await self._server.start()
        except OSError as error:
            raise UpError(
                f"port {port} on {host}, for the page: {reason_of(error)}; choose others by --port"
            ) from error

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.shutdown(0.0)
        await self._tasks.cancel()

    def open(self, exchange: Exchange) -> bool:
        head = exchange.head
        if head.method not in ("GET", "HEAD"):
            self.refuse(exchange, MethodNotAllowed(f"{head.method} is not here, must be GET"))
        elif head.path == "/":
            exchange.respond(200, files(__package__).joinpath("page.html").read_bytes(), _HTML)
        elif head.path == "/state.json":
            self._tasks.start(self._tell(exchange), "page")
        else:
            self.refuse(exchange, NotFound(f"{head.path[:80]} is not here, must be / or /state.json"))
        return False

    def answer(self, exchange: Exchange) -> None:
        raise AssertionError("no body is wanted")

    def refuse(self, exchange: Exchange, error: TorporError) -> None:
        exchange.respond(error.http_status, error_body(str(error)), JSON)

    def malformed(self, error: TorporError) -> tuple[bytes, Fields]:
        return error_body(str(error)), JSON

    def _state(self) -> dict[str, Any]:
        now_s = time.monotonic()
        return {
            "components": [self._component(component, now_s) for component in self._components],
            "events": self._events,
            "has_broker": bool(self.broker_port),
            "said": [*self._terminal.said],
        }

    def _component(self, component: Component, now_s: float) -> dict[str, Any]:
        latencies = sorted(component.latencies_s)
        scaling = component.service.autoscaling
        batches = self._batches.get(component.name, {}) if component.state is State.AWAKE else {}
        count = batches.get("batches", 0.0)
        return {
            "name": component.name,
            "role": component.service.role,
            "address": self._addresses.get(component.name, ""),
            "process": f"127.0.0.1:{component.port}" if component.state is State.AWAKE else "",
            "pid": component.pid,
            "state": component.state.value,
            "since_s": now_s - component.since_s,
            "sleeps_after_s": None if scaling.min_scale else component.scale.idle_s,
            "in_flight": component.gate.inside,
            "waiting": component.gate.waiting,
            "concurrency": scaling.container_concurrency,
            "answered": component.answered,
            "failed": component.failed,
            "refused": component.refused,
            "crashes": component.crashes,
            "p50_ms": _percentile_ms(latencies, 0.50),
            "p99_ms": _percentile_ms(latencies, 0.99),
            "queued_rows": batches.get("queued_rows"),
            "rows_a_batch": batches["rows"] / count if count else None,
            "wakes": [
                {"ago_s": now_s - wake.began_s, "phases": wake.phases, "outcome": wake.outcome}
                for wake in reversed(component.wakes)
            ],
        }

    async def _tell(self, exchange: Exchange) -> None:
        """Ask the processes, at most once in a while, and not while nobody looks; then answer."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            awake = [component for component in self._components if component.state is State.AWAKE]
            told = await asyncio.gather(*(own_metrics.batches(component.port) for component in awake))
            self._batches = {component.name: batches for component, batches in zip(awake, told, strict=True)}
            if self.broker_port:
                self._events = await own_metrics.events(self.broker_port)
        exchange.respond(200, orjson.dumps(self._state()), _STATE)


def _percentile_ms(ordered: Sequence[float], part: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] * 1e3 if ordered else None
