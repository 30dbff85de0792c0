"""A torpor predictor or transformer as a `kserve.Model` under a stock `kserve.ModelServer`; the only place that imports kserve.

model = KServeModel("minilm", "examples/minilm")
model.load()
kserve.ModelServer().start([model])
"""

import asyncio
import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kserve
import orjson
from fastapi import HTTPException
from grpc_interceptor.exceptions import DeadlineExceeded as GrpcDeadlineExceeded
from kserve.errors import InvalidInput as KServeInvalidInput
from kserve.errors import ModelNotReady
from kserve.protocol.infer_type import to_http_parameters

from .batching.policy import BatchingPolicy
from .batching.run_times import RunTimes
from .catalog import Assembled, ModelFolder, Outside
from .errors import DeadlineExceeded, InvalidInput, ModelBroken, TorporError, Unavailable
from .protocol import v1
from .protocol.datatypes import DTYPES, Array, datatype_of, object_array
from .protocol.inference import InferRequest, InferResponse, Terms, check_parameters, timeout_of
from .protocol.json_tensor import array_from_json
from .serving.batcher import Batcher
from .serving.data_plane import DataPlane, Served, ServedModel
from .serving.device_pool import DevicePool
from .serving.metrics import ModelMetrics
from .serving.repository import Loadable
from .serving.request_options import read_timeout
from .signature import Bound

logger = logging.getLogger("torpor")

_DATATYPES = tuple(name for name in DTYPES if name != "BF16")
"""The SDK has no BF16."""


class KServeModel(kserve.Model):  # type: ignore[misc]
    """One model folder; settings come from its model.toml and the environment.

    A transformer has its predictor behind it here as elsewhere, by the setting `predictor`, and not by the SDK's client.
    """

    def __init__(self, name: str, folder: str | Path) -> None:
        super().__init__(name)
        self._folder = Path(folder).resolve()
        self._served: Served | None = None
        self._chain: Loadable | None = None
        self._loading = asyncio.Lock()
        self._broken: ModelBroken | None = None
        self._devices: DevicePool | None = None
        self._policy: BatchingPolicy[Bound] | None = None
        self._version = "1"
        self._timeout_s = self._model_timeout_s = 0.0

    def load(self) -> bool:
        """Import and load the class on its device threads; errors are raised as they are.

        A transformer is loaded by the server, once that has the event loop that its predictor's client needs (`start_engine`).
        """
        if self._broken is not None:  # the SDK loads what is not ready whenever a call over gRPC comes
            raise self._refusal(self._broken)
        source = ModelFolder(self.name, self._folder, Outside({}, os.environ))
        self._version = source.versions()[0]
        assembled = source.assemble(self._version)
        if not isinstance(assembled, Assembled):
            self._chain = assembled
            self.engine = self.ready = True
            return True
        self._timeout_s, self._model_timeout_s = assembled.request_timeout_s, assembled.model_timeout_s
        self._devices = DevicePool(self.name, assembled.executors)
        self._devices.start()
        for loading in self._devices.load():
            loading.result()
        self._policy = BatchingPolicy(assembled.batching, RunTimes())
        self.ready = True
        return True

    async def start_engine(self) -> None:
        """Called by the server beside its own start. Raises what the class raises, which ends it."""
        await self._loaded()

    async def predict(self, payload: Any, headers: dict[str, str] | None = None, response_headers: Any = None) -> Any:
        """Answer a v1 dict with a v1 dict, an InferRequest with an InferResponse."""
        model = await self._loaded()
        try:
            timeout_s = _timeout_s(headers or {})
            if isinstance(payload, kserve.InferRequest):
                return self._answer(payload, await model.infer(_request(payload), headers, timeout_s))
            requests = v1.decode(orjson.dumps(payload), model.signature.names, model.signature.v1_datatypes)
            answers = await asyncio.gather(*(model.infer(request, headers, timeout_s) for request in requests))
            return orjson.loads(v1.encode(answers))
        except InvalidInput as error:
            raise KServeInvalidInput(str(error)) from error
        except Unavailable as error:
            raise self._refusal(error) from error
        except DeadlineExceeded as error:  # of which the SDK has no class
            if isinstance(payload, kserve.InferRequest) and payload.from_grpc:
                raise GrpcDeadlineExceeded(str(error)) from error
            raise HTTPException(error.http_status, str(error)) from error
        except TorporError as error:
            raise kserve.errors.InferenceError(str(error)) from error

    async def get_input_types(self) -> list[dict[str, Any]]:
        return (await self._loaded()).metadata()["inputs"]  # type: ignore[return-value]

    async def get_output_types(self) -> list[dict[str, Any]]:
        return (await self._loaded()).metadata()["outputs"]  # type: ignore[return-value]

    def stop(self) -> None:
        """Unload the model after its batches."""
        if self._devices is not None:
            self._devices.stop()

    def _broke(self, error: ModelBroken) -> None:
        """End the process as the SDK ends at SIGTERM: neither a hanging thread nor a broken device can be mended in it."""
        logger.error("ending, so that a new process can take over: %s", error)
        self._broken = error
        self.ready = False
        signal.raise_signal(signal.SIGTERM)

    def _refusal(self, error: Unavailable) -> ModelNotReady:
        refusal = ModelNotReady(self.name, str(error))
        refusal.reason = str(error)  # the SDK's gRPC server reads it, and the SDK's class lacks it
        return refusal

    def _answer(self, payload: Any, response: InferResponse) -> Any:
        outputs = []
        for name, array in response.outputs.items():
            output = kserve.InferOutput(name, list(array.shape), datatype_of(array))
            if payload.from_grpc:
                output.set_data_from_numpy(array, binary_data=True)
            else:  # JSON or binary, as the SDK reads in the request
                output.data = array
            outputs.append(output)
        return kserve.InferResponse(  # its id must be a text: "" without one
            response.id, self.name, outputs, model_version=response.model_version,
            use_binary_outputs=payload.use_binary_outputs, requested_outputs=payload.request_outputs,
        )  # fmt: skip

    async def _loaded(self) -> Served:
        """What is served belongs to the server's event loop, which exists when the first call comes."""
        if self._chain is not None and self._served is None:
            async with self._loading:
                if self._served is None:
                    data_plane = DataPlane("kserve")
                    data_plane.on_broken.append(self._broke)
                    self._served = await self._chain.load(data_plane, self.name, self._version)
        if self._served is None:
            assert self._devices is not None and self._policy is not None
            metrics = ModelMetrics(self.name, self._version, self._policy)
            batcher = Batcher(self._policy, self._devices, metrics, self._model_timeout_s, self._broke)
            self._served = ServedModel(
                self.name, self._version, self._devices.executor.signature, batcher, metrics, self._timeout_s
            )
        return self._served


def _timeout_s(headers: Mapping[str, str]) -> float | None:
    """What the header fields say, as elsewhere; gRPC's own deadline is none of them, and ends the call by itself."""
    return read_timeout({name.lower().encode(): f"{value}".encode() for name, value in headers.items()})


def _request(payload: Any) -> InferRequest:
    outputs = tuple(output.name for output in payload.request_outputs or ())
    parameters = to_http_parameters(payload.parameters) if payload.parameters else {}
    tensor_parameters: dict[str, dict[str, Any]] = {}
    for tensor in payload.inputs:
        its_parameters = to_http_parameters(tensor.parameters or {})
        check_parameters("input", tensor.name, its_parameters)
        its_parameters.pop("binary_data_size", None)
        if its_parameters:
            tensor_parameters[tensor.name] = its_parameters
    terms = Terms(
        outputs, id=payload.id or "", parameters=parameters, timeout_s=timeout_of(parameters),
        tensor_parameters=tensor_parameters,
    )  # fmt: skip
    return InferRequest({i.name: _array(i) for i in payload.inputs}, terms)


def _array(tensor: Any) -> Array:
    """The SDK's own conversion cuts floats to integers and knows only its own errors."""
    name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
    if datatype not in _DATATYPES:
        raise InvalidInput(f"input '{name}': datatype = {datatype}, must be one of {', '.join(_DATATYPES)}")
    try:
        # With raw data, over gRPC, the list is there and empty.
        if isinstance(tensor.data, list) and tensor.data and DTYPES[datatype].kind in "biu":
            return array_from_json(name, tensor.data, datatype, shape)
        array: Array = tensor.as_numpy()
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"input '{name}': {error}") from None
    if datatype == "BYTES":
        elements = [element.encode() if isinstance(element, str) else element for element in array.ravel()]
        return object_array(elements, shape)
    return array
