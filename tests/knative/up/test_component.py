"""Who is let into a component whose process dies: its death is asked for before it is heard of."""

import asyncio
import io

import pytest
from torpor.knative.manifests import read
from torpor.knative.up import component as component_module
from torpor.knative.up.component import Component
from torpor.knative.up.container import Process
from torpor.knative.up.documents import Document
from torpor.knative.up.gate import Ticket
from torpor.knative.up.services import plan
from torpor.knative.up.terminal import Terminal
from up_process import service


class Subject:
    """An instance that is ready at once, and ends when the test says."""

    pid = 1
    is_dying = False

    def __init__(self, *_: object) -> None:
        self.end = asyncio.Event()
        subjects.append(self)

    async def start(self) -> None: ...

    async def ready(self) -> None: ...

    async def ended(self) -> int:
        await self.end.wait()
        return -9

    def signal(self, number: int) -> None: ...


subjects: list[Subject] = []


async def prepared(port: int) -> Process:
    return Process(["subject"], {}, 0)


async def no_phases(port: int) -> dict[str, float]:
    return {}


@pytest.mark.parametrize("is_dying", [True, False])
def test_who_waits_for_a_place_in_a_dying_process_gets_none(monkeypatch: pytest.MonkeyPatch, is_dying: bool) -> None:
    """The connection of the request inside breaks: its place goes to the next one only if the process lives."""
    monkeypatch.setattr(component_module, "Instance", Subject)
    subjects.clear()

    async def scenario() -> list[str]:
        (content,) = read(service(spec="containerConcurrency: 1"))
        (only,) = plan([Document(content.data, "test")]).services
        component = Component(only, prepared, no_phases, Terminal(["subject"], io.StringIO()))
        component.start()
        is_awake = asyncio.Event()
        granted: list[str] = []

        def awake() -> None:
            granted.append("first")
            is_awake.set()

        first = Ticket(awake, 0.0)
        component.enter(first)
        component.enter(Ticket(lambda: granted.append("second"), 0.0))
        await is_awake.wait()
        (subject,) = subjects
        subject.is_dying = is_dying
        assert component.takes_connections is not is_dying
        component.lost_connection()
        component.leave(first, is_answered=False)
        await component.kill()
        return granted

    assert asyncio.run(scenario()) == (["first"] if is_dying else ["first", "second"])
