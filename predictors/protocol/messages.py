"""The protobuf messages of the gRPC services, from `schemas/schemas.binpb` (`make schemas` compiles it).

They live in a descriptor pool of their own: KServe's SDK, tritonclient and torpor each bring the same `.proto` file, and
the default pool takes one of them only. Classes from descriptors also work with every protobuf runtime, where generated
modules are bound to a major version.
"""

from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_POOL = descriptor_pool.DescriptorPool()
_DESCRIPTORS = descriptor_pb2.FileDescriptorSet.FromString(
    files(__package__).joinpath("schemas/schemas.binpb").read_bytes()
)

FILES: dict[str, bytes] = {}
"""The schemas' serialized FileDescriptorProtos by file name, for reflection."""

SYMBOLS: dict[str, str] = {}
"""The file that defines a service, method or message, by the symbol's full name."""

SERVICES: tuple[str, ...] = ()
"""The full names of the services."""


def _add_symbols(scope: str, parent: Any, file_name: str) -> None:
    """The messages and enums of a file or message, nested ones included."""
    messages = parent.message_type if isinstance(parent, descriptor_pb2.FileDescriptorProto) else parent.nested_type
    for child in (*messages, *parent.enum_type):
        name = f"{scope}.{child.name}"
        SYMBOLS[name] = file_name
        if isinstance(child, descriptor_pb2.DescriptorProto):
            _add_symbols(name, child, file_name)


def _collect() -> tuple[str, ...]:
    services: list[str] = []
    for file in _DESCRIPTORS.file:
        _POOL.Add(file)
        FILES[file.name] = file.SerializeToString()
        _add_symbols(file.package, file, file.name)
        for service in file.service:
            name = f"{file.package}.{service.name}"
            services.append(name)
            SYMBOLS[name] = file.name
            SYMBOLS.update((f"{name}.{method.name}", file.name) for method in service.method)
    return tuple(services)


SERVICES = _collect()


@cache
def message(full_name: str) -> Any:
    """The class of a message, such as `inference.ModelInferRequest`."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(full_name))
