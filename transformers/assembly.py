"""From a transformer's class and settings to what is served: its steps, and the predictor behind them where it may be."""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torpor.predictors.batching.policy import BatchingSettings
from torpor.predictors.catalog import Assembled
from torpor.predictors.runtime.user_class import UserClassError
from torpor.predictors.serving.batcher import Batcher
from torpor.predictors.serving.data_plane import DataPlane, ServedModel
from torpor.predictors.settings import SettingError
from torpor.predictors.signature import Signature, TensorSpec

from .accompanied import Accompanied
from .chain import Chain, Target
from .step import LoopStep, Method, Step, ThreadStep, Transformer

if TYPE_CHECKING:
    from .remote import Remote

SETTINGS: Mapping[str, Any] = {"max_batch_size": 1024, "batch_timeout_micros": 0}
"""Where nobody says otherwise: a step takes all rows that came while its thread was busy, and waits for none."""


@dataclass(frozen=True)
class AssembledChain:
    """A transformer, imported and not loaded yet."""

    transformer: Transformer
    preprocess: Method | None
    postprocess: Method | None
    batching: BatchingSettings
    request_timeout_s: float
    media_types: Sequence[str]
    predictor: "Assembled | Elsewhere"

    async def load(self, data_plane: DataPlane, name: str, version: str) -> Chain:
        """Load the predictor and the transformer. Raises what either raises."""
        predictor, postprocess = self.predictor, self.postprocess
        behind_it = Signature() if isinstance(predictor, Elsewhere) else predictor.executors[0].signature
        inputs = self.preprocess.declared.signature if self.preprocess is not None else behind_it
        outputs = (postprocess.declared.signature if postprocess is not None else behind_it).outputs
        if isinstance(predictor, Assembled):
            # A plain postprocess runs where the outputs are: another thread would cost a way there and back.
            is_plain = postprocess is not None and not (postprocess.is_coroutine or postprocess.signature.wants)
            there, postprocess = (postprocess, None) if is_plain else (None, postprocess)
            executors = [Accompanied(executor, self.transformer, there) for executor in predictor.executors]
            predictor = replace(predictor, executors=executors)
        async with AsyncExitStack() as on_failure:
            with data_plane.metrics.phase("transformer"):
                before = await self._step(self.preprocess, name, version, on_failure)
                behind = await self._step(postprocess, name, version, on_failure)
            target = await predictor.load(data_plane, name, version)
            on_failure.pop_all()
        signature = _signature(inputs, outputs)
        return Chain(
            name, version, signature, before, target, behind, self.request_timeout_s, self.media_types,
            target_postprocesses=postprocess is not self.postprocess, alone=_preparing(target),
        )  # fmt: skip

    async def _step(self, method: Method | None, name: str, version: str, on_failure: AsyncExitStack) -> Step | None:
        if method is None:
            return None
        kind = LoopStep if method.is_coroutine else ThreadStep
        step: Step = kind(method, self.batching, name, version)
        await step.open()
        on_failure.push_async_callback(step.close)
        return step


@dataclass(frozen=True)
class Elsewhere:
    """A predictor that is asked, by its settings (`settings.py`). Raises SettingError."""

    address: str
    name: str
    protocol: str
    timeout_s: float
    retries: int

    async def load(self, data_plane: DataPlane, name: str, version: str) -> "Remote":
        """Nothing is asked yet: it may sleep at zero, or start at the same time."""
        from .client import Backoff, PredictorClient
        from .remote import Remote

        client = PredictorClient(
            self.address, self.name or name, self.protocol, timeout_s=self.timeout_s, backoff=Backoff(self.retries)
        )
        return Remote(client)


def _preparing(target: Target) -> Batcher | None:
    """The batcher of a predictor whose device prepares rows that come alone.

    Not of one that wants a request of its own with its rows, nor where steps of two batches are in flight at once.
    """
    if not isinstance(target, ServedModel) or target.wants_headers or target.batcher.begins_ahead:
        return None
    return target.batcher


def elsewhere(settings: Mapping[str, Any]) -> Elsewhere:
    """Raises SettingError."""
    from .client.address import Address  # httptools, which the client needs, is an extra

    try:
        Address.parse(settings["predictor"])
    except ValueError as error:
        raise SettingError(f"predictor = {settings['predictor']!r}: {error}") from None
    return Elsewhere(
        settings["predictor"], settings["predictor_name"], settings["predictor_protocol"],
        settings["predictor_timeout_s"], settings["predictor_retries"],
    )  # fmt: skip


def assemble(
    cls: type,
    folder: Path | None,
    parameters: Mapping[str, Any],
    settings: Mapping[str, Any],
    predictor: Assembled | Elsewhere,
) -> AssembledChain:
    """Raises UserClassError."""
    transformer = Transformer(cls, folder, parameters)
    preprocess = Method.of(transformer, cls, "preprocess")
    return AssembledChain(
        transformer,
        preprocess,
        Method.of(transformer, cls, "postprocess"),
        BatchingSettings.of(settings),
        settings["request_timeout_s"],
        _media_types(cls, preprocess),
        predictor,
    )


def _media_types(cls: type, preprocess: Method | None) -> Sequence[str]:
    """What the class declares. Raises UserClassError if a body cannot be the row of its only input."""
    media_types: Sequence[str] = getattr(cls, "media_types", ())
    if media_types:
        inputs = preprocess.declared.signature.inputs if preprocess is not None else {}
        if [(spec.datatype, spec.axes) for spec in inputs.values()] != [("BYTES", ())]:
            raise UserClassError(f"{cls.__name__}.media_types needs a preprocess with one input, bytes[rows]")
    return media_types


def _signature(inputs: Signature, outputs: Mapping[str, TensorSpec]) -> Signature:
    """What callers give and get. Outputs' named axes are those of nobody here."""
    plain = {
        name: replace(spec, axes=tuple(-1 if isinstance(axis, str) else axis for axis in spec.axes))
        for name, spec in outputs.items()
    }
    return Signature(inputs.names, inputs.inputs, plain, inputs.optional, inputs.wants)
