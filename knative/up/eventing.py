"""Broker and Triggers on one machine: a NATS server, and `torpor events broker` over it, both children of `torpor up`.

The NATS server is apart from the broker so that it is the last to stop: components may keep their answers in it.
"""

import asyncio
import json
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .container import Process
from .documents import Document, UpError
from .instance import Instance
from .terminal import Terminal

_DURATION = re.compile(r"P(?:([0-9]+)D)?(?:T(?:([0-9]+)H)?(?:([0-9]+)M)?(?:([0-9]+(?:\.[0-9]+)?)S)?)?")
_DRAIN_S = 60.0


def trigger_tables(triggers: Sequence[Document], addresses: Mapping[str, str], say: Callable[[str], None]) -> str:
    """The TOML of `torpor events broker --triggers`. Raises UpError for what it cannot mean."""
    tables = []
    for trigger in triggers:
        where = f"{trigger.where}: Trigger {trigger.name}"
        url = _subscriber(trigger.spec.get("subscriber") or {}, addresses, where)
        if url is None:
            say(f"{where} is left out: its subscriber does not run here")
            continue
        fields: dict[str, Any] = {"name": trigger.name, "subscriber": url}
        delivery = trigger.spec.get("delivery") or {}
        if "retry" in delivery:
            fields["retry"] = int(delivery["retry"])
        if "backoffPolicy" in delivery:
            fields["backoff_policy"] = str(delivery["backoffPolicy"])
        for name, field in (("backoffDelay", "backoff_delay_s"), ("timeout", "timeout_s")):
            if name in delivery:
                fields[field] = duration_s(str(delivery[name]), f"{where}: delivery.{name}")
        sink = delivery.get("deadLetterSink")
        if sink and (letters := _subscriber(sink, addresses, where)):
            fields["dead_letter"] = letters
        lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
        wanted = ", ".join(f"{name} = {json.dumps(value)}" for name, value in _filter(trigger, where).items())
        tables.append("\n".join(["[[trigger]]", *lines, f"filter = {{{wanted}}}"]))
    return "\n\n".join(tables) + "\n"


def bound_variables(
    bindings: Sequence[Document], addresses: Mapping[str, str], brokers: Mapping[str, str], say: Callable[[str], None]
) -> dict[str, dict[str, str]]:
    """What SinkBindings put into the environment of their subjects, by these names, as Eventing does. brokers: URLs by name.

    Raises UpError for what they cannot mean.
    """
    bound: dict[str, dict[str, str]] = {}
    for binding in bindings:
        where = f"{binding.where}: SinkBinding {binding.name}"
        subject = binding.spec.get("subject") or {}
        name = str(subject.get("name") or "")
        if not name:
            raise UpError(f"{where}: subject.name is missing; a selector is not read here")
        group = str(subject.get("apiVersion", "")).partition("/")[0]
        if (group, subject.get("kind")) != ("serving.knative.dev", "Service") or name not in addresses:
            say(f"{where} is left out: its subject does not run here")
            continue
        sink = binding.spec.get("sink") or {}
        ref = sink.get("ref") or {}
        if str(ref.get("apiVersion", "")).partition("/")[0] == "eventing.knative.dev" and ref.get("kind") == "Broker":
            if ref.get("name") not in brokers:
                raise UpError(f"{where}: sink: the Broker {ref.get('name')} is not in the files")
            url: str | None = brokers[ref["name"]]
        else:
            url = _subscriber(sink, addresses, f"{where}: sink")
        if url is None:
            say(f"{where} is left out: its sink does not run here")
            continue
        overrides = binding.spec.get("ceOverrides")
        bound[name] = {"K_SINK": url, "K_CE_OVERRIDES": json.dumps(overrides) if overrides else ""}
    return bound


def duration_s(text: str, where: str) -> float:
    """Of an ISO 8601 duration without years and months, as Eventing has it. Raises UpError."""
    match = _DURATION.fullmatch(text)
    if match is None or not any(match.groups()):
        raise UpError(f"{where} = {text!r}, must be like PT0.5S or PT2M")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _filter(trigger: Document, where: str) -> dict[str, str]:
    wanted = {
        str(name): str(value) for name, value in ((trigger.spec.get("filter") or {}).get("attributes") or {}).items()
    }
    for one in trigger.spec.get("filters") or ():
        if set(one) != {"exact"}:
            raise UpError(f"{where}: filters has {', '.join(one)}, must be exact here")
        wanted |= {str(name): str(value) for name, value in one["exact"].items()}
    return wanted


def _subscriber(destination: Mapping[str, Any], addresses: Mapping[str, str], where: str) -> str | None:
    """Its URL on this machine; None if it is something that does not run here."""
    uri = str(destination.get("uri") or "")
    ref = destination.get("ref")
    if not ref:
        if not uri:
            raise UpError(f"{where}: the destination has neither ref nor uri")
        return uri
    group = str(ref.get("apiVersion", "")).partition("/")[0]
    address = addresses.get(str(ref.get("name")))
    if group != "serving.knative.dev" or ref.get("kind") != "Service" or address is None:
        return None
    return f"http://{address}/{uri.lstrip('/')}"


class Eventing:
    """NATS and the broker. folder: of the state."""

    def __init__(
        self, brokers: Sequence[Document], triggers: Sequence[Document], folder: Path, terminal: Terminal
    ) -> None:
        if len(brokers) > 1:
            raise UpError(f"{brokers[1].where}: a second Broker, must be one here")
        for trigger in triggers:
            if not brokers or trigger.spec.get("broker", "default") != brokers[0].name:
                name = trigger.spec.get("broker", "default")
                raise UpError(f"{trigger.where}: Trigger {trigger.name}: broker {name!r} is not in the files")
        self._triggers = triggers
        self._folder = folder
        self._terminal = terminal
        self._broker: Instance | None = None
        self._ending: asyncio.Task[int] | None = None
        self._nats: Any = None

    @property
    def nats_url(self) -> str:
        return str(self._nats.url)

    async def start_nats(self) -> None:
        """Raises UpError."""
        from torpor.predictors.errors import TorporError

        try:
            from torpor.transformers.events.nats_server import NatsServer

            self._nats = NatsServer(self._folder / "nats", 0, False)
            await self._nats.start()
        except (TorporError, OSError, ImportError) as error:
            raise UpError(f"NATS cannot start: {error}") from error
        self._terminal.say(f"nats is up on {self.nats_url}, its data in {self._folder / 'nats'}")

    async def start_broker(self, addresses: Mapping[str, str], environment: Mapping[str, str], port: int) -> None:
        """Return when it takes events. Raises UpError."""
        file = self._folder / "triggers.toml"
        file.write_text(trigger_tables(self._triggers, addresses, self._terminal.say))
        torpor = str(Path(sys.executable).with_name("torpor"))
        options = ["--triggers", str(file), "--port", str(port), "--nats", self.nats_url]
        command = [torpor, "events", "broker", *options]
        self._broker = Instance(
            Process(command, environment, 0), port, "/readyz", lambda text: self._terminal.line("broker", text)
        )
        await self._broker.start()
        ending = self._ending = asyncio.get_running_loop().create_task(self._broker.ended(), name="broker")
        readying = asyncio.ensure_future(self._broker.ready())
        await asyncio.wait((ending, readying), return_when=asyncio.FIRST_COMPLETED)
        if not readying.done():
            readying.cancel()
            raise UpError(f"the broker ended with status {ending.result()}")
        self._terminal.say(f"broker takes events at http://127.0.0.1:{port}/")

    async def stop_broker(self) -> None:
        """It takes no more, and finishes what it delivers."""
        if self._broker is not None and self._ending is not None:
            self._broker.signal(signal.SIGTERM)
            done, _ = await asyncio.wait((self._ending,), timeout=_DRAIN_S)
            if not done:
                self._broker.signal(signal.SIGKILL)
                await self._ending

    async def stop_nats(self) -> None:
        nats, self._nats = self._nats, None
        if nats is not None:
            await nats.close()
            self._terminal.say("nats has stopped")

    async def kill(self) -> None:
        """What has not stopped; NATS, which writes to disk, in order."""
        if self._broker is not None and self._ending is not None:
            self._broker.signal(signal.SIGKILL)
            await asyncio.wait((self._ending,))
        await self.stop_nats()
