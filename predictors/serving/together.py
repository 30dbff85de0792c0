"""Several requests that are answered as one, such as the rows of a v1 request that differ in length."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ..errors import TorporError
from ..protocol.inference import InferRequest
from ..signature import Bound
from .batcher import Outputs
from .data_plane import Served


class Together:
    """Requests for one model. `answer` is called once: with the outputs of all in their order, or with the first error."""

    def __init__(self, model: Served, answer: Callable[[list[Outputs] | TorporError], None]) -> None:
        self._model = model
        self._answer = answer
        self._bounds: list[Bound] = []
        self._outputs: dict[int, Outputs] = {}
        self._count = 0
        self._is_over = False

    def start(
        self, requests: Sequence[InferRequest], headers: Mapping[str, str] | None, timeout_s: float | None
    ) -> None:
        """As `Served.start`. Raises a TorporError, and then does not call `answer`."""
        self._count = len(requests)
        try:
            for number, request in enumerate(requests):
                if self._is_over:  # one of them has failed already
                    return
                self._bounds.append(self._model.start(request, headers, timeout_s, partial(self._take, number)))
        except TorporError:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._is_over = True
        for bound in self._bounds:
            self._model.cancel(bound)

    def _take(self, number: int, result: Outputs | TorporError) -> None:
        if self._is_over:
            return
        if isinstance(result, TorporError):
            self.cancel()
            self._answer(result)
            return
        self._outputs[number] = result
        if len(self._outputs) == self._count:
            self._answer([self._outputs[n] for n in range(self._count)])
