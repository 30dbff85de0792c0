"""Several requests that are answered as one, such as the rows of a v1 request that differ in length."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..errors import TorporError
from ..protocol.inference import InferRequest
from .batcher import Outputs
from .data_plane import Served


class Together:
    """Requests for one model. `answer` is called once: with the outputs of all in their order, or with the first error.

    parts: what `Served.start` gave for each. answer: None when it has been called, or nobody waits any more.
    """

    def __init__(self, model: Served, answer: Callable[[list[Outputs] | TorporError], None]) -> None:
        self._model = model
        self.answer: Callable[[list[Outputs] | TorporError], None] | None = answer
        self.parts: list[Any] = []
        self._outputs: dict[int, Outputs] = {}
        self._count = 0

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    def start(
        self, requests: Sequence[InferRequest], headers: Mapping[str, str] | None, timeout_s: float | None
    ) -> None:
        """As `Served.start`. Raises a TorporError, and then does not call `answer`."""
        self._count = len(requests)
        try:
            for number, request in enumerate(requests):
                self.parts.append(self._model.start(request, headers, timeout_s, partial(self._take, number)))
                if self.answer is None:  # one of them has failed already
                    self._model.cancel(self.parts[-1])
                    return
        except TorporError:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Nobody waits any more."""
        self.answer = None
        for part in self.parts:
            self._model.cancel(part)

    def _take(self, number: int, result: Outputs | TorporError) -> None:
        answer = self.answer
        if answer is None:
            return
        if isinstance(result, TorporError):
            self.cancel()
            answer(result)
            return
        self._outputs[number] = result
        if len(self._outputs) == self._count:
            self.answer = None
            answer([self._outputs[n] for n in range(self._count)])
