"""A predictor's executor with a transformer's plain methods on its thread, where they cost no way to another one.

`postprocess` always runs there. `preprocess` does for a row that comes alone, `Unprepared`, so that it crosses between
threads as often as the predictor's own requests do; its own thread is for rows that come while the device is busy.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torpor.predictors.errors import InvalidInput, ModelFailed, TorporError
from torpor.predictors.serving.device_thread import Executor
from torpor.predictors.signature import Bound, Signature

from .rows import Rows, by_shape
from .step import Method, ThreadStep, Transformer, run, run_alike


class Unprepared(Bound):
    """A row as its caller sent it; `prepare` makes the predictor's request of it, in place."""

    is_prepared = False

    def __init__(self, bound: Bound, step: ThreadStep) -> None:
        super().__init__(bound.arrays, bound.rows, bound.bucket, bound.sizes, bound.request)
        self.step = step

    def prepare(self, signature: Signature) -> None:
        """Raises what `preprocess` fails with, and ModelFailed if the predictor, of this signature, takes no such row."""
        began_s = time.perf_counter()
        try:
            with self.step.turn:
                (result,) = run(self.step.method, [self])
            if isinstance(result, TorporError):
                raise result
            ((self.arrays, _),) = by_shape(result)
            try:
                self.rows, self.bucket, self.sizes = signature.fit(self.arrays)
            except InvalidInput as error:
                raise unfit(error) from None
        finally:
            self.preparing_s = time.perf_counter() - began_s
        self.is_prepared = True


def unfit(error: InvalidInput) -> ModelFailed:
    """Of what the predictor says to a `preprocess`'s rows: its caller has done nothing wrong."""
    return ModelFailed(f"what preprocess gave does not fit the predictor: {error}")


class Accompanied:
    """postprocess: None, or what the answers go through before they leave the thread."""

    def __init__(self, inner: Executor, transformer: Transformer, postprocess: Method | None) -> None:
        self._inner = inner
        self._transformer = transformer
        self._postprocess = postprocess

    @property
    def signature(self) -> Signature:
        return self._inner.signature

    @property
    def in_flight(self) -> int:
        return self._inner.in_flight

    @property
    def compiles(self) -> bool:
        return self._inner.compiles

    @property
    def halved_s(self) -> float:
        return self._inner.halved_s

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        return self._inner.memory_bytes

    def load(self) -> None:
        self._inner.load()
        self._transformer.load()

    def unload(self) -> None:
        self._inner.unload()
        self._transformer.unload()

    def warm_up(self, rows: int) -> Bound | None:
        return self._inner.warm_up(rows)

    def begin(self, parts: Sequence[Bound]) -> Any:
        return self._inner.begin(parts)

    def wait(self, begun: Any) -> None:
        self._inner.wait(begun)

    def run(self, parts: Sequence[Bound], begun: Any = None) -> list[Rows | TorporError]:
        first = parts[0]
        if isinstance(first, Unprepared):  # it is alone
            try:
                first.prepare(self.signature)
            except TorporError as error:
                return [error]
        results = self._inner.run(parts, begun)
        return results if self._postprocess is None else self._postprocessed(results, self._postprocess)

    def _postprocessed(self, results: list[Rows | TorporError], method: Method) -> list[Rows | TorporError]:
        places: dict[Bound, int] = {}
        for place, result in enumerate(results):
            if isinstance(result, TorporError):
                continue
            try:
                places[method.bind_outputs(result)] = place
            except TorporError as error:
                results[place] = error
        for bound, result in run_alike([*places], method).items():
            results[places[bound]] = result
        return results
