"""A predictor elsewhere, by its pod's socket or over the network, as the chain's target."""

from collections.abc import Mapping, Sequence
from typing import Any

from torpor.predictors.errors import TorporError
from torpor.predictors.protocol.inference import InferRequest, InferResponse
from torpor.predictors.serving.metrics import ModelMetrics

from .client import PredictorClient
from .step import Answer


class Remote:
    """Forwards to a `PredictorClient`, which has bounds, deadlines and retries of its own."""

    wants_headers = True
    """Some of them go on to the predictor (`client/passing_on.py`)."""

    measured: Sequence[ModelMetrics] = ()

    def __init__(self, client: PredictorClient) -> None:
        self._client = client

    def start(
        self, request: InferRequest, headers: Mapping[str, str] | None, timeout_s: float | None, answer: Answer
    ) -> Any:
        def answered(result: InferResponse | TorporError) -> None:
            answer(result if isinstance(result, TorporError) else result.outputs)

        return self._client.start(request, headers, timeout_s, answered)

    def cancel(self, started: Any) -> None:
        started.cancel()

    def check_room(self) -> None:
        pass  # the client refuses what does not fit

    def flush(self) -> None:
        pass  # nothing waits for company here

    def abandon(self) -> None:
        pass  # what is under way may have begun

    async def close(self) -> None:
        await self._client.close()
