"""Everything of the files at work on this machine, from the first port to the last process.

callers ─► activators ─► components        start: ports, NATS, components, page, broker
               ▲             │             stop:  broker, transformers and plain services, predictors, NATS
 broker ───────┴─────────────┘
"""

import asyncio
import fcntl
import functools
import itertools
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from . import own_metrics
from .activator import Activator
from .component import Component
from .container import Process, Surroundings, process_of
from .documents import UpError, reason_of
from .eventing import Eventing, bound_variables
from .instance import free_port
from .page import Page
from .services import Plan, Service
from .storage import model_folder
from .terminal import Terminal


@dataclass(frozen=True)
class Settings:
    """port: of the first component; the other components, the page and the broker take those behind it. 0: free ones.

    folder: of models that were fetched, and of NATS' data. maps: FROM and TO of `--map`.
    images: patterns of those whose entrypoint is `torpor serve`.
    """

    host: str
    port: int
    folder: Path
    maps: Sequence[tuple[str, str]]
    images: Sequence[str]


def locked(folder: Path) -> TextIO:
    """Make the folder of the state; it is this process's until the file is closed. Raises UpError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+")
    except OSError as error:
        raise UpError(f"--state {folder}: {reason_of(error)}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        owner = lock.read()
        lock.close()
        raise UpError(f"--state {folder}: process {owner} works with it; end that, or name another folder") from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


class Machine:
    """Runs a plan until a signal."""

    def __init__(self, plan: Plan, settings: Settings, terminal: Terminal) -> None:
        """Raises UpError."""
        self._plan = plan
        self._settings = settings
        self._terminal = terminal
        self._addresses: dict[str, str] = {}
        self._bound: dict[str, dict[str, str]] = {}
        self._maps = [*settings.maps]
        self._components = [
            Component(service, functools.partial(self._process, service), own_metrics.start_phases, terminal)
            for service in plan.services
        ]
        self._activators = {component.name: Activator(component) for component in self._components}
        self._eventing = Eventing(plan.brokers, plan.triggers, settings.folder, terminal) if plan.brokers else None
        self._page = Page(self._components, self._addresses, terminal)
        self._lock: TextIO | None = None
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    async def run(self) -> int:
        """The exit status. Raises UpError for what cannot start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)
        work = loop.create_task(self._work(), name="up")
        cut = loop.create_task(self._stop_now.wait(), name="second signal")
        await asyncio.wait((work, cut), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            cut.cancel()
            return work.result()
        self._terminal.say("ended at once; what was under way is lost")
        work.cancel()
        await asyncio.wait((work,))
        return 130

    def _signalled(self) -> None:
        (self._stop_now if self._stop.is_set() else self._stop).set()

    async def _work(self) -> int:
        try:
            await self._start()
            await self._stop.wait()
            self._terminal.say("draining: what is under way finishes; Ctrl-C again ends at once")
            await self._finish()
            self._terminal.say("ended, nothing was cut")
            return 0
        finally:
            for component in self._components:
                await component.kill()
            for activator in self._activators.values():
                activator.abort()
            if self._eventing is not None:
                await self._eventing.kill()
            await self._page.stop()
            if self._lock is not None:
                self._lock.close()

    async def _start(self) -> None:
        settings, say = self._settings, self._terminal.say
        self._lock = locked(settings.folder)
        for left in self._plan.left_out:
            say(f"{left} is not run here")
        ports = itertools.count(settings.port) if settings.port else itertools.repeat(0)
        for name, activator in self._activators.items():
            self._addresses[name] = f"127.0.0.1:{await activator.start(settings.host, next(ports))}"
        page = await self._page.start(settings.host, next(ports))
        broker_port, brokers = 0, dict[str, str]()
        if self._eventing is not None:
            await self._eventing.start_nats()
            self._maps.append(("{nats}", self._eventing.nats_url))
            broker_port = next(ports) or free_port()
            brokers = {broker.name: f"http://127.0.0.1:{broker_port}/" for broker in self._plan.brokers}
        self._bound = bound_variables(self._plan.bindings, self._addresses, brokers, say)
        for service in self._plan.services:  # what cannot be run is said before anything runs
            process_of(service, 0, None, self._surroundings())
        for component in self._components:
            self._describe(component.service)
            component.start()
        say(f"the page is at http://{page}/")
        if self._eventing is not None:
            await self._eventing.start_broker(self._addresses, os.environ, broker_port)
            self._page.broker_port = broker_port

    async def _finish(self) -> None:
        """Who asks goes before who is asked."""
        if self._eventing is not None:
            await self._eventing.stop_broker()
        for is_asked in (False, True):
            group = [one for one in self._components if (one.service.role == "predictor") is is_asked]
            for component in group:
                self._activators[component.name].finish()
            await asyncio.gather(*(component.finish() for component in group))
        if self._eventing is not None:
            await self._eventing.stop_nats()

    def _surroundings(self) -> Surroundings:
        return Surroundings(os.environ, self._maps, self._settings.images, self._addresses, self._bound)

    async def _process(self, service: Service, port: int) -> Process:
        """After its model has been fetched, if that must be. Raises UpError."""
        models = None
        if service.storage_uri:
            models = await model_folder(
                service.storage_uri, service.where, self._settings.folder, self._maps, self._terminal.say
            )
        return process_of(service, port, models, self._surroundings())

    def _describe(self, service: Service) -> None:
        scaling = service.autoscaling
        terms = [f"asks at most {scaling.container_concurrency} at once"] if scaling.container_concurrency else []
        terms.append(f"timeout {service.timeout_s:g} s")
        idle_s = scaling.window_s + scaling.scale_down_delay_s + scaling.retention_s
        terms.append("stays awake" if scaling.min_scale else f"sleeps after {idle_s:g} s without a request")
        self._terminal.say(f"{service.name} is at http://{self._addresses[service.name]}/: {', '.join(terms)}")
        for note in service.notes:
            self._terminal.say(f"{service.name}: {note}")
