"""Batches in flight on an asynchronous device: every order of steps that the device may choose gives the right answers."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torpor.predictors.errors import ModelBroken, ModelFailed, TorporError
from torpor.predictors.protocol.datatypes import bfloat16_from_float32, float32_from_bfloat16
from torpor.predictors.runtime.executor import Begun, Executor
from torpor.predictors.runtime.tuning import Tuning
from torpor.predictors.runtime.user_class import UserClassError, inspect_class
from torpor.predictors.serving.device_pool import DevicePool
from torpor.predictors.signature import Bound

LATEST = (0,)


@dataclass
class Order:
    """Steps in their order; `done` of them have run. A step is a call, or the wait for an event."""

    steps: list["Callable[[], None] | Event"] = field(default_factory=list)
    done: int = 0


@dataclass(frozen=True)
class Event:
    """The end of the first `steps` steps of an order."""

    order: Order
    steps: int


class LateDevice:
    """A device whose steps run as late as they may: when somebody waits for what depends on them.

    schedule: how many steps of the copies, of computing, of the copies … run by themselves at each call of the device, over
    and over; (0,): none ever. Memory is full of -1 (or nan) until it is written. A step that raises breaks the device.
    """

    torch_device = torch.device("cpu")
    in_flight = 2

    def __init__(self, schedule: Sequence[int] = LATEST) -> None:
        self.copies, self.computes = Order(), Order()
        self.error: BaseException | None = None
        self._schedule = cycle(schedule)
        self._recorded: list[Callable[[], None]] | None = None
        self.captures = 0

    @contextmanager
    def computing(self) -> Iterator[None]:
        with torch.inference_mode():
            yield

    def is_broken(self, error: BaseException) -> bool:
        return error is self.error

    def allocated_bytes(self) -> int:
        return 1 << 20

    def free(self) -> None:
        pass

    def host_buffer(self, size: int) -> Tensor:
        return torch.full((size,), 255, dtype=torch.uint8)

    device_buffer = host_buffer

    def copy_in(self, target: Tensor, source: Tensor) -> Event:
        return self._enqueue(self.copies, lambda: target.copy_(source))

    def wait_for(self, event: Event) -> None:
        self._enqueue(self.computes, event)

    def copy(self, target: Tensor, source: Tensor) -> None:
        self._enqueue(self.computes, lambda: target.copy_(source))

    def copy_out(self, source: Tensor) -> Tensor:
        target = torch.full_like(source, -1)
        self._enqueue(self.computes, lambda: target.copy_(source))
        return target

    def mark(self) -> Event:
        return Event(self.computes, len(self.computes.steps))

    def synchronize(self, event: Event) -> None:
        self._run(event)
        if self.error is not None:
            raise self.error

    def capture(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.captures += 1
        self._recorded = []
        result = function()
        steps, self._recorded = self._recorded, None

        def replay() -> None:
            for step in steps:
                self._enqueue(self.computes, step)

        return result, replay

    def launch(self, kernel: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """What a model's operations do: the result is there at once, its values when the step has run."""
        result = torch.full(inputs[0].shape, float("nan"), dtype=inputs[-1].dtype)

        def step() -> None:
            result.copy_(kernel(*inputs))

        if self._recorded is None:
            self._enqueue(self.computes, step)
        else:
            self._recorded.append(step)
        return result

    def _enqueue(self, order: Order, step: Callable[[], Any] | Event) -> Event:
        order.steps.append(step)
        for some, count in ((self.copies, next(self._schedule)), (self.computes, next(self._schedule))):
            self._run(Event(some, min(some.done + count, len(some.steps))))
        return Event(order, len(order.steps))

    def _run(self, event: Event) -> None:
        order = event.order
        while order.done < event.steps and self.error is None:
            step = order.steps[order.done]
            order.done += 1
            if isinstance(step, Event):
                self._run(step)
                continue
            try:
                with torch.inference_mode():
                    step()
            except Exception as error:
                self.error = error


def look_up(ids: Tensor, weight: Tensor) -> Tensor:
    """Like an embedding, it breaks the device when an id is none."""
    assert ((ids >= 0) & (ids < 1000)).all(), "device-side assert triggered"
    return ids * weight[:, None]


def executor(device: LateDevice, **settings: Any) -> Executor:
    class Weighted:
        inputs = {"ids": "int64[rows, tokens]", "weight": "float32[rows]"}
        outputs = {"weighted": "float32[rows, tokens]"}

        def predict(self, ids: Tensor, weight: Tensor) -> dict[str, Tensor]:
            return {"weighted": device.launch(look_up, ids, weight)}

    class Poisoned(Weighted):
        """Raises for some rows when their kernel is on its way."""

        def predict(self, ids: Tensor, weight: Tensor, is_poison: Annotated[np.ndarray, "bool[rows]"]) -> Any:
            result = super().predict(ids, weight)
            if is_poison.any():
                raise RuntimeError("poison")
            return result

    cls = Weighted if settings else Poisoned
    made = Executor(inspect_class(cls), device=device, threads=1, tuning=Tuning(**settings))
    made.load()
    return made


def request(model: Executor, seed: int, rows: int, tokens: int, is_poison: bool = False) -> Bound:
    random = np.random.default_rng(seed)
    arrays = {"ids": random.integers(0, 1000, (rows, tokens)), "weight": random.random(rows, np.float32)}
    if "is_poison" in model.signature.names:
        arrays["is_poison"] = np.full(rows, is_poison)
    return model.signature.bind(arrays)


def check(parts: Sequence[Bound], results: Sequence[dict[str, np.ndarray] | TorporError]) -> None:
    for part, result in zip(parts, results, strict=True):
        if part.arrays.get("is_poison", np.zeros(1)).any():
            assert isinstance(result, ModelFailed), result
        else:
            assert isinstance(result, dict), result
            expected = (part.arrays["ids"] * part.arrays["weight"][:, None]).astype(np.float32)
            np.testing.assert_array_equal(result["weighted"], expected)


requests = st.tuples(st.integers(1, 3), st.integers(1, 20), st.sampled_from([False, False, False, True]))
batches = st.lists(st.tuples(st.lists(requests, min_size=1, max_size=3), st.booleans()), min_size=1, max_size=8)
schedules = st.sampled_from([(0,), (9, 0), (0, 9), (9,)]) | st.lists(st.integers(0, 3), min_size=1, max_size=9)


@settings(deadline=None)
@given(batches, schedules, st.booleans())
def test_every_schedule_gives_the_right_answers(
    batches: list[tuple[list[tuple[int, int, bool]], bool]], schedule: Sequence[int], graphs: bool
) -> None:
    """Batches of any sizes, one or two in flight, poison among them: whenever the device does a step, rows stay their own."""
    model = executor(LateDevice(schedule), **({"cuda_graphs": True} if graphs else {}))
    running: list[tuple[list[Bound], Begun]] = []
    for number, (requests, is_ended_first) in enumerate(batches):
        if len(running) == 2 or (running and is_ended_first):
            parts, begun = running.pop(0)
            check(parts, model.run(parts, begun))
        parts = [request(model, 100 * number + at, *each) for at, each in enumerate(requests)]
        running.append((parts, model.begin(parts)))
    for parts, begun in running:
        check(parts, model.run(parts, begun))


def test_the_next_batch_is_copied_while_one_computes() -> None:
    """Begun while another runs, a batch's copy can end before that one's computing has begun."""
    device = LateDevice(schedule=(9, 0))
    model = executor(device)
    parts = [[request(model, seed, 2, 5)] for seed in range(2)]
    begun = [model.begin(part) for part in parts]
    assert (device.copies.done, device.computes.done) == (2, 0)
    for part, one in zip(parts, begun, strict=True):
        check(part, model.run(part, one))


def test_memory_of_a_device_is_told_by_its_name() -> None:
    """Once it is open, and once for all models there; the CPU has none of its own."""

    class Same:
        def predict(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": x}

    for device, told in ((LateDevice(), {"cpu": 1 << 20}), ("cpu", {})):
        model = Executor(inspect_class(Same), device=device, threads=1)
        assert model.memory_bytes == {}
        model.load()
        assert DevicePool("m", [model, model]).memory_bytes() == told


def test_buffers_are_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slots are enough for ever; their buffers are made anew only for a larger batch than any before."""
    made: list[int] = []
    make = LateDevice.host_buffer
    monkeypatch.setattr(LateDevice, "host_buffer", lambda self, size: made.append(size) or make(self, size))
    model = executor(LateDevice())
    for pair in [(4, 4), (1, 2), (40, 40), (30, 4)]:
        parts = [[request(model, rows, rows, 8)] for rows in pair]
        begun = [model.begin(part) for part in parts]
        for part, one in zip(parts, begun, strict=True):
            check(part, model.run(part, one))
    assert made == [512, 512, 4096, 4096]


def test_what_a_device_does_wrong_comes_at_the_end_and_breaks_it() -> None:
    """An error of a step belongs to no line of Python; whoever waits gets it, its callers may go elsewhere."""
    model = executor(LateDevice())
    bad = [request(model, 0, 1, 3), request(model, 1, 1, 3)]
    bad[0].arrays["ids"] = np.full((1, 3), 1000)
    assert [type(result) for result in model.run(bad)] == [ModelBroken, ModelBroken]
    for seed in range(2, 5):  # more than it has slots
        assert [type(result) for result in model.run([request(model, seed, 1, 3)])] == [ModelBroken]


def test_batches_share_a_graph_by_powers_of_two_and_buckets() -> None:
    """Three rows of nine tokens and four of sixteen are one graph; what fills them up reaches nobody."""
    device = LateDevice()
    model = executor(device, cuda_graphs=True)
    for seed, (rows, tokens) in enumerate([(3, 9), (4, 16), (4, 12), (3, 16)]):
        parts = [request(model, seed, rows, tokens)]
        check(parts, model.run(parts))
    assert device.captures == 1
    parts = [request(model, 9, 5, 16)]
    check(parts, model.run(parts))
    assert device.captures == 2


def test_bfloat16_is_copied_in_and_out_as_it_is() -> None:
    """Rows of different lengths are filled up with the pad value of their dtype; what comes out are the same 16 bits."""
    device = LateDevice()
    seen: list[list[list[float]]] = []

    def double(x: Tensor) -> Tensor:
        seen.append(x.tolist())
        return x * 2

    class Doubled:
        inputs = {"x": "bfloat16[rows, tokens]"}
        outputs = {"y": "bfloat16[rows, tokens]"}
        pad = {"x": 0.5}

        def predict(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": device.launch(double, x)}

    model = Executor(inspect_class(Doubled), device=device, threads=1)
    model.load()
    rows = [np.array([row], np.float32) for row in ([1.5], [3.0, -2.0])]
    results = model.run([model.signature.bind({"x": bfloat16_from_float32(row)}) for row in rows])
    assert seen == [[[1.5, 0.5], [3.0, -2.0]]]
    for row, result in zip(rows, results, strict=True):
        assert isinstance(result, dict), result
        assert float32_from_bfloat16(result["y"]).tolist() == (2 * row).tolist()


def test_the_error_of_a_batch_keeps_none_of_its_tensors() -> None:
    """When the first half of a batch that failed runs, the whole has gone from memory."""
    inputs: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Raising:
        def predict(self, x: Tensor) -> Tensor:
            alive.append(sum(ref() is not None for ref in inputs))
            inputs.append(weakref.ref(x))
            raise RuntimeError("poison")

    model = Executor(inspect_class(Raising), device=LateDevice(), threads=1)
    model.load()
    parts = [model.signature.bind({"x": np.ones(1)}) for _ in range(2)]
    model.run(parts, model.begin(parts))
    assert alive[:2] == [0, 0]


def test_each_input_begins_where_its_dtype_may() -> None:
    """Whatever the sizes of those before it are."""

    class Mixed:
        inputs = {"flag": "bool[rows]", "x": "float64[rows]"}

        def predict(self, flag: Tensor, x: Tensor) -> Tensor:
            return device.launch(lambda flag, x: torch.where(flag, x, -x), flag, x)

    device = LateDevice()
    model = Executor(inspect_class(Mixed), device=device, threads=1)
    model.load()
    arrays = {"flag": np.array([True, False, True]), "x": np.array([1.0, 2.0, 3.0])}
    (result,) = model.run([model.signature.bind(arrays)])
    assert isinstance(result, dict), result
    assert result["output"].tolist() == [1, -2, 3]


def test_shapes_beyond_the_most_graphs_run_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes memory of the device; those that there are go on."""
    monkeypatch.setattr("torpor.predictors.runtime.graphs._MOST", 1)
    device = LateDevice()
    model = executor(device, cuda_graphs=True)
    for seed, rows in enumerate((2, 4, 2, 8)):
        parts = [request(model, seed, rows, 4)]
        check(parts, model.run(parts))
    assert device.captures == 1


def test_a_graph_is_captured_with_the_batchs_own_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs before the recording would meet numbers that are none of its ids."""

    def full_of_nonsense(tensor: Tensor, shape: Sequence[int]) -> Tensor:
        return torch.full(shape, -1, dtype=tensor.dtype)

    class Careful(LateDevice):
        def capture(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
            function()
            return super().capture(function)

    monkeypatch.setattr(Tensor, "new_empty", full_of_nonsense)
    model = executor(Careful(), cuda_graphs=True)
    parts = [request(model, 0, 2, 4)]
    check(parts, model.run(parts))


INT = {"x": "int64[rows]"}


class Optional:
    inputs = INT

    def predict(self, x: Tensor | None = None) -> None: ...


class AsNumpy:
    inputs = INT

    def predict(self, x: np.ndarray) -> None: ...


class Words:
    inputs = {"x": "bytes[rows]"}

    def predict(self, x: Any) -> None: ...


class Undeclared:
    def predict(self, x: Tensor) -> None: ...


class Coroutine:
    inputs = INT

    async def predict(self, x: Tensor) -> None: ...


class Asking:
    inputs = INT

    def predict(self, x: Tensor, requests: Any) -> None: ...


class Collating:
    inputs = INT

    def collate(self, items: Any) -> None: ...

    def predict(self, x: Tensor) -> None: ...


@pytest.mark.parametrize("cls", [Optional, AsNumpy, Words, Undeclared, Coroutine, Asking, Collating])
def test_a_class_that_no_graph_can_repeat_is_refused(cls: type) -> None:
    """Its Python would run once, at the capture, and never again."""
    model = Executor(inspect_class(cls), device=LateDevice(), threads=1, tuning=Tuning(cuda_graphs=True))
    with pytest.raises(UserClassError, match=rf"cuda_graphs = true: {cls.__name__}\.predict must be a plain method"):
        model.load()
