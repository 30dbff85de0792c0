"""Batches that overlap: a handler prepares one, and finishes another, while the device works on a third.

    lane 1   preprocess A │ ……………………… │ postprocess A · preprocess C │ ………
    lane 2                │ preprocess B │ ………………………………              │ postprocess B
    main                  │ inference A               │ inference B

Two lanes are threads that answer batches, each with a shallow copy of the handler and a context of its own: what a handler
keeps on `self` from `preprocess` to `postprocess` is its batch's. One lane at a time runs the handler's code, but for
`inference` and explanations: the main thread runs these, which has loaded the handler and has what torch keeps by thread
(modes, current device, OpenMP's team), and meanwhile the other lane has its turn.
"""

import copy
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from .context import Context
from .handler import Handle, HandlerError

LANES = 2
"""One batch on the device, and one that is prepared or finished."""

_STOCK = ("base_handler", "image_classifier", "image_segmenter", "object_detector", "text_classifier")
"""TorchServe's own that keep nothing on `self` but what is loaded."""

_OF_THE_DEVICE = ("inference", "explain_handle")


def does_overlap(handle: Handle, is_wanted: bool | None) -> bool:
    """Whether batches are to. is_wanted: None if the model does not say. Raises HandlerError for one that cannot."""
    handler = getattr(handle, "__self__", None)
    if is_wanted is None:
        return type(handler).__module__ in [f"ts.torch_handler.{name}" for name in _STOCK]
    if is_wanted and not callable(getattr(handler, "inference", None)):
        raise HandlerError(
            "overlapBatches = true, must be false for a handler that is no class with a method inference"
        )
    return is_wanted


class Device:
    """The main thread, as lanes use it."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        """Held by the lane that runs the handler's code."""
        self._asked: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | BaseException | None] = (
            queue.SimpleQueue()
        )

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """From the lane whose turn it is: run it on the main thread, and let the other lane have its turn meanwhile."""
        future: Future[Any] = Future()
        self._asked.put((future, partial(function, *arguments, **named)))
        self.turn.release()
        try:
            return future.result()
        finally:
            self.turn.acquire()

    def serve(self, lane: Callable[[Context], None], contexts: list[Context]) -> None:
        """Run a lane for each context until one has come to its end. Raises what one raised: SystemExit ends the process."""
        for context in contexts:
            threading.Thread(target=self._run, args=(lane, context), daemon=True).start()
        while (asked := self._asked.get()) is not None:
            if isinstance(asked, BaseException):
                raise asked
            future, function = asked
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

    def _run(self, lane: Callable[[Context], None], context: Context) -> None:
        try:
            lane(context)
        except BaseException as error:
            self._asked.put(error)
        else:
            self._asked.put(None)


def in_lane(handle: Handle, loaded_with: Context, own: Context, device: Device) -> Handle:
    """The entry point of the handler's copy for a lane."""
    handler = copy.copy(handle.__self__)  # type: ignore[attr-defined]
    for name, value in [*vars(handler).items()]:
        if value is loaded_with:
            setattr(handler, name, own)
    for name in _OF_THE_DEVICE:
        if (method := getattr(handler, name, None)) is not None:
            setattr(handler, name, partial(device.call, method))
    return handler.handle  # type: ignore[no-any-return]
