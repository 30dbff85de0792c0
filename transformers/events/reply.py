"""The answer to an event is an event, and always the same one: whatever of it is not the model's comes from the request.

Brokers deliver at least once. Consumers tell a repeat by source and id (spec.md, "id"), so both follow from the request's,
and so does every other attribute; `time` is the request's, and absent if that has none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from . import Event
from .attributes import check
from .content import Answered

_OWN = frozenset(("specversion", "id", "source", "type", "datacontenttype", "dataschema", "dataref", "sequence", "sequencetype",
    "inferenceheadercontentlength",
))  # fmt: skip
"""Attributes of the request that say nothing about its answer."""

_BROKERS = "knative"
"""A Knative broker's own attributes begin so; those of the request would count against its answer's way."""

CORRELATION = "correlationid"
"""The extension by which a caller finds the answer (knative.dev's RequestReply); without one, it is the request's id."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answers, and with which type of event. Raises InvalidInput for what no event may have as source or type."""

    source: str
    type: str
    _end: str = field(init=False, repr=False)
    """Of what ids are made of."""

    def __post_init__(self) -> None:
        check({"specversion": "1.0", "id": "any", "source": self.source, "type": self.type})
        object.__setattr__(self, "_end", f"{len(self.source)}:{self.source}{len(self.type)}:{self.type}")

    def is_ours(self, event: Event) -> bool:
        """Whether an event is an answer of ours that came back: an unfiltered trigger delivers it to whoever sent it."""
        return event.type == self.type and event.source == self.source

    def reply(self, request: Event, answered: Answered) -> Event:
        """The answer to the request."""
        kept = {
            name: value
            for name, value in request.attributes.items()
            if name not in _OWN and not name.startswith(_BROKERS)
        }
        kept.setdefault(CORRELATION, request.id)
        own = {
            "specversion": "1.0", "id": self.id(request.attributes), "source": self.source, "type": self.type,
            "datacontenttype": answered.datacontenttype,
        }  # fmt: skip
        return Event.of_checked({**own, **kept, **answered.extensions}, answered.data)

    def id(self, request: Mapping[str, str]) -> str:
        """Of the answer to the event with these attributes: one for each source, id and type, and each answerer."""
        source, number, kind = request["source"], request["id"], request["type"]
        # With their lengths: ("a", "bc") is not ("ab", "c").
        text = f"{len(source)}:{source}{len(number)}:{number}{len(kind)}:{kind}{self._end}"
        return sha256(text.encode()).hexdigest()[:32]
