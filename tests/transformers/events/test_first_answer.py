"""The answer that is stored first is the answer, whoever comes second; a store stands for the race to provoke it."""

import asyncio
from typing import Any

import numpy as np
from torpor.predictors.protocol.datatypes import DTYPES
from torpor.predictors.serving.data_plane import DataPlane, Served
from torpor.predictors.serving.exchange import Exchange, Head
from torpor.predictors.signature import Signature, TensorSpec
from torpor.transformers.events import Event, Mode, encode
from torpor.transformers.events.json_format import encode as encode_stored
from torpor.transformers.events.receiver import Receiver

ATTRIBUTES = {"specversion": "1.0", "id": "1", "source": "/me", "type": "ask", "datacontenttype": "application/json"}
FIRST = Event({**ATTRIBUTES, "id": "answer", "type": "answered"}, b'{"predictions":[1.0]}')


class Model(Served):
    """Answers 2 at once, and counts how often."""

    name, version = "m", "1"
    signature = Signature(("x",), {"x": TensorSpec.parse("x", "float32[rows]")})

    def __init__(self) -> None:
        self.runs = 0

    def start(self, request: Any, headers: Any, timeout_s: Any, answer: Any) -> None:
        self.runs += 1
        asyncio.get_running_loop().call_soon(answer, {"y": np.full(1, 2.0, DTYPES["FP32"])})

    def cancel(self, started: None) -> None:
        pass


class Store:
    """Has nothing when it is asked, and something when an answer is to be kept."""

    def __init__(self, kept: bytes | None) -> None:
        self.kept = kept

    async def get(self, key: str) -> bytes | None:
        await asyncio.sleep(0)
        return None

    async def keep(self, key: str, answer: bytes) -> bytes:
        self.kept = self.kept or answer
        return self.kept

    async def close(self) -> None:
        pass


class Asked(Exchange):
    def __init__(self) -> None:
        headers, body = encode(Event(ATTRIBUTES, b'{"instances": [1]}'), Mode.BINARY)
        super().__init__(Head("POST", "/", headers, len(body)))
        self.body = body
        self.answered: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    def respond(self, status: int, body: bytes, fields: Any = ()) -> None:
        self.answered.set_result((status, body))


def ask(store: Store, times: int) -> tuple[list[tuple[int, bytes]], int]:
    """The answers to the same event, sent so many times at once, and how often the model ran."""

    async def story() -> tuple[list[tuple[int, bytes]], int]:
        model = Model()
        receiver = Receiver(
            DataPlane("1"), lambda exchange, error: exchange.answered.set_exception(error), "", "t", store
        )
        exchanges = [Asked() for _ in range(times)]
        for exchange in exchanges:
            receiver.handler(model)(exchange)
        return [await exchange.answered for exchange in exchanges], model.runs

    return asyncio.run(story())


def test_who_comes_second_gives_the_first_answer() -> None:
    """Another process stored its own between our look and our answer."""
    assert ask(Store(encode_stored(FIRST)), 1) == ([(200, b'{"predictions":[1.0]}')], 1)


def test_repeats_at_the_same_time_run_once() -> None:
    """All who wait get the one answer."""
    assert ask(Store(None), 3) == ([(200, b'{"predictions":[2.0]}')] * 3, 1)
