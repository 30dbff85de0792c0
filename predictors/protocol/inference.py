"""A request and a response between the wire and the batcher, the same for every protocol."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ..errors import InvalidInput
from .datatypes import Array

Parameter = bool | int | float | str
Parameters = Mapping[str, Parameter]

NO_PARAMETERS: Parameters = MappingProxyType({})
NO_TENSOR_PARAMETERS: Mapping[str, Parameters] = MappingProxyType({})

_NEEDED = {"classification": "parameter classification", "shared_memory_region": "shared memory"}
"""Parameters of Triton's extensions that change what a tensor means; others that nobody here knows do no harm."""


def check_parameters(kind: str, name: str, parameters: Mapping[str, object]) -> None:
    """Refuse what cannot be passed over in the parameters of a tensor, an "input" or "output". Raises InvalidInput."""
    for parameter, text in _NEEDED.items():
        if parameter in parameters:
            raise InvalidInput(f"{kind} '{name}': {text} is not supported")


def timeout_of(parameters: Parameters) -> float | None:
    """Seconds from the request parameter `timeout`, microseconds as Triton has it; None without. Raises InvalidInput."""
    timeout = parameters.get("timeout")
    if timeout is None:
        return None
    if type(timeout) is not int or timeout <= 0:
        raise InvalidInput(f"parameter timeout = {timeout!r}, must be a positive integer of microseconds")
    return timeout / 1e6


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What a request says beside its tensors.

    outputs: the names that the caller asks for, in its order; () for all.
    binary_outputs: of these, the ones to send as binary data (REST); None: all, as `binary_data_output` says.
    id: the caller's, "" without one; it comes back with the response.
    timeout_s: what the caller gives it, None if it does not say.
    tensor_parameters: the parameters of each input that has any beside its size, by name.
    are_kept: requests whose tensors differ in their data alone share these terms, so that what was checked for one need
        not be checked again.
    """

    outputs: tuple[str, ...] = ()
    binary_outputs: frozenset[str] | None = frozenset()
    id: str = ""
    parameters: Parameters = field(default_factory=lambda: NO_PARAMETERS)
    timeout_s: float | None = None
    are_kept: bool = False
    tensor_parameters: Mapping[str, Parameters] = field(default_factory=lambda: NO_TENSOR_PARAMETERS)


NO_TERMS = Terms()


@dataclass(slots=True)
class InferRequest:
    """One request, decoded.

    inputs: by name, in the caller's order, rows on axis 0; numeric arrays are read-only views of the received body
        where its layout allows.
    """

    inputs: dict[str, Array]
    terms: Terms = NO_TERMS


@dataclass(slots=True)
class InferResponse:
    """The answer to one request: outputs by name, the caller's rows only, in the order that it asked for.

    json_outputs: those whose elements are JSON texts.
    """

    model_name: str
    model_version: str
    outputs: dict[str, Array]
    id: str = ""
    json_outputs: frozenset[str] = frozenset()

    def likeness(self) -> tuple[object, ...]:
        """Equal for responses that differ in their data and id alone, so that what is written around data can be kept."""
        key: tuple[object, ...] = self.model_name, self.model_version
        for name, array in self.outputs.items():
            key += name, array.dtype, array.shape
        return key
