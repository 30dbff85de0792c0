"""One event between its sender and its consumer: attributes as text, data as bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from .attributes import check


class DataForm(Enum):
    """How an event's data came, which decides how the JSON format writes it again.

    BODY: as the body of an HTTP message; what it is, `datacontenttype` tells.
    VALUE: a JSON value, as JSON text in UTF-8; where `datacontenttype` is not of JSON, text in its charset.
    BINARY: bytes, which the JSON format carries in base64.
    """

    BODY = "body"
    VALUE = "value"
    BINARY = "binary"


@dataclass(frozen=True, slots=True)
class Event:
    """An event that adheres to the specification. Raises InvalidInput otherwise.

    attributes: by name, each in its canonical string encoding; extensions are attributes like the rest.
    data: None where the event has none. form: no part of what the event says, and so of no comparison.

    A VALUE without `datacontenttype` gets "application/json", which the JSON format leaves unsaid (json-format.md, 3.1.2).
    """

    attributes: Mapping[str, str]
    data: bytes | None = None
    form: DataForm = field(default=DataForm.BODY, compare=False)

    def __post_init__(self) -> None:
        attributes = dict(self.attributes)
        if self.form is DataForm.VALUE and self.data is not None:
            attributes.setdefault("datacontenttype", "application/json")
        check(attributes)
        object.__setattr__(self, "attributes", MappingProxyType(attributes))

    @property
    def id(self) -> str:
        return self.attributes["id"]

    @property
    def source(self) -> str:
        return self.attributes["source"]

    @property
    def type(self) -> str:
        return self.attributes["type"]

    @property
    def datacontenttype(self) -> str | None:
        return self.attributes.get("datacontenttype")
