"""Lanes of batches that overlap, without their process (`test_overlap.py` has it): what runs where, and on whose handler."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from torpor.predictors.torchserve.worker.context import Context
from torpor.predictors.torchserve.worker.handler import HandlerError
from torpor.predictors.torchserve.worker.metrics import Noted
from torpor.predictors.torchserve.worker.overlap import Device, does_overlap, in_lane


class Handler:
    def __init__(self, context: Context | None = None) -> None:
        self.context = context
        self.model = ["weights"]

    def handle(self, data: Any, context: Any) -> Any:
        return self.inference(data), self.explain_handle(data), threading.current_thread()

    def inference(self, data: Any) -> Any:
        return threading.current_thread()

    def explain_handle(self, data: Any) -> Any:
        return threading.current_thread()


class Whole:
    """A handler without the method that would overlap."""

    def handle(self, data: Any, context: Any) -> Any:
        return data


def of_module(name: str) -> Any:
    return type("Stock", (Handler,), {"__module__": name})().handle


def function(data: Any, context: Any) -> Any:
    return data


@pytest.mark.parametrize(
    "name", ["base_handler", "image_classifier", "image_segmenter", "object_detector", "text_classifier"]
)
def test_torchserves_own_handlers_overlap_unless_told_not_to(name: str) -> None:
    """They keep nothing of a batch that a copy does not keep apart."""
    assert does_overlap(of_module(f"ts.torch_handler.{name}"), None)
    assert not does_overlap(of_module(f"ts.torch_handler.{name}"), False)


def test_others_overlap_if_they_are_told_to_and_can() -> None:
    """By a method `inference`; a function has none."""
    for handle in (Handler().handle, of_module("ts.torch_handler.request_envelope.base"), Whole().handle, function):
        assert not does_overlap(handle, None)
        assert not does_overlap(handle, False)
    assert does_overlap(Handler().handle, True)
    for handle in (Whole().handle, function):
        with pytest.raises(
            HandlerError, match="overlapBatches = true, must be false for a handler that is no class with"
        ):
            does_overlap(handle, True)


def context() -> Context:
    return Context("m", None, {}, {}, Noted())


def serve(*lanes: Callable[[Device], None]) -> None:
    """Run each lane until one has come to its end."""
    device, left = Device(), iter(lanes)
    device.serve(lambda _: next(left)(device), [context() for _ in lanes])


def test_a_lane_runs_a_copy_of_the_handler() -> None:
    """With a context of its own wherever the handler has kept that of its load; what is loaded is shared."""
    loaded_with, own = context(), context()
    handler = Handler(loaded_with)
    handle: Any = in_lane(handler.handle, loaded_with, own, Device())
    copy = handle.__self__
    assert (copy.context, copy.model) == (own, handler.model)
    assert copy.model is handler.model
    assert handler.context is loaded_with
    assert "inference" not in vars(handler)
    with_other = in_lane(Handler(own).handle, loaded_with, context(), Device())
    assert with_other.__self__.context is own  # type: ignore[attr-defined]
    assert in_lane(Whole().handle, loaded_with, own, Device())("x", own) == "x"


def test_the_device_is_the_main_threads() -> None:
    """Inference and explanation run there, everything else in the lane."""
    found: list[Any] = []

    def lane(device: Device) -> None:
        with device.turn:
            found.extend(in_lane(Handler().handle, context(), context(), device)("x", None))

    serve(lane)
    assert found[:2] == [threading.main_thread()] * 2
    assert found[2] is not threading.main_thread()


def test_the_other_lane_has_its_turn_while_the_device_works() -> None:
    """And the first has its turn again when that has ended."""
    has_had_its_turn = threading.Event()
    held: list[bool] = []

    def first(device: Device) -> None:
        with device.turn:
            is_over = device.call(has_had_its_turn.wait, timeout=20)
            held.extend((is_over, device.turn.locked()))

    def second(device: Device) -> None:
        with device.turn:
            has_had_its_turn.set()
        threading.Event().wait()

    serve(first, second)
    assert held == [True, True]


def test_an_error_of_the_device_is_the_lanes_that_called() -> None:
    """With its turn, and the device goes on."""
    caught: list[Any] = []

    def lane(device: Device) -> None:
        for text in ("x", "1"):
            with device.turn:
                try:
                    caught.append(device.call(int, text))
                except ValueError as error:
                    caught.extend((type(error), device.turn.locked()))

    serve(lane)
    assert caught == [ValueError, True, 1]


@pytest.mark.parametrize("error", [SystemExit(3), KeyError("x")])
def test_what_ends_a_lane_ends_the_process(error: BaseException) -> None:
    """An exit, or an error of our own: it is raised on the main thread."""

    def lane(device: Device) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        serve(lane, lambda device: threading.Event().wait() and None)
    assert raised.value is error


def test_an_exit_on_the_device_is_an_exit() -> None:
    """It is on the main thread already."""
    with pytest.raises(SystemExit):
        serve(lambda device: device.turn.acquire() and device.call(exit_now))


def exit_now() -> None:
    raise SystemExit(4)
