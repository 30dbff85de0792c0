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


@dataclass(frozen=True, slots=True, init=False)
class Event:
    """An event that adheres to the specification.

    attributes: by name, each in its canonical string encoding; extensions are attributes like the rest.
    data: None where the event has none. form: no part of what the event says, and so of no comparison.
    """

    attributes: Mapping[str, str]
    data: bytes | None
    form: DataForm = field(compare=False)

    def __init__(
        self, attributes: Mapping[str, str], data: bytes | None = None, form: DataForm = DataForm.BODY
    ) -> None:
        """Raises InvalidInput for attributes that the specification does not allow.

        A VALUE without `datacontenttype` gets "application/json", which the JSON format leaves unsaid (json-format.md, 3.1.2).
        """
        attributes = dict(attributes)
        if data is not None and "datacontenttype" not in attributes and form is DataForm.VALUE:
            attributes["datacontenttype"] = "application/json"
        check(attributes)
        object.__setattr__(self, "attributes", MappingProxyType(attributes))
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "form", form)

    @classmethod
    def of_checked(cls, attributes: dict[str, str], data: bytes | None) -> "Event":
        """An event whose attributes need no look: they are another event's, or have been checked before."""
        event = object.__new__(cls)
        object.__setattr__(event, "attributes", MappingProxyType(attributes))
        object.__setattr__(event, "data", data)
        object.__setattr__(event, "form", DataForm.BODY)
        return event

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
