"""What the agent remembers beside the node's own state: agent.json, replaced as a whole, so that a verdict and its report are
there together or not at all.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .contents import canonical, parsed
from .refused import Refused

MOST_REPORTS = 200
"""That wait for their receiver; the oldest go first."""

MOST_SAID = 50


@dataclass(frozen=True)
class Trial:
    """A version that was switched to, or is about to be, and has no verdict yet. has_way_back: whether the one before it may be
    served again. starts: how often its service was brought up. wrong: '' until it has failed; then it is on its way back.
    """

    index: str
    version: str
    attempt: int
    has_way_back: bool
    starts: int = 0
    wrong: str = ""


@dataclass(frozen=True)
class AgentState:
    """left: the digest that the agent last left in charge; another one was put there by hand. declined: by digest the attempt
    with which a version failed here or was put aside by hand. said: the gists of reports that are not repeated until something
    changes. reports: those that were not received yet, as they are sent.
    """

    left: str = ""
    declined: Mapping[str, int] = field(default_factory=dict)
    trial: Trial | None = None
    said: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()

    def with_report(self, report: str) -> "AgentState":
        return replace(self, reports=(*self.reports, report)[-MOST_REPORTS:])

    def having_said(self, gist: str) -> "AgentState":
        return replace(self, said=(*self.said, gist)[-MOST_SAID:])

    def data(self) -> bytes:
        value: dict[str, Any] = {
            "left": self.left, "declined": dict(self.declined), "said": list(self.said), "reports": list(self.reports)
        }  # fmt: skip
        if self.trial:
            value["trial"] = asdict(self.trial)
        return canonical(value)

    @classmethod
    def of(cls, data: bytes) -> "AgentState":
        """Raises Refused."""
        value = parsed(data, "agent.json")
        try:
            trial = Trial(**value["trial"]) if "trial" in value else None
            declined = {str(digest): int(attempt) for digest, attempt in value["declined"].items()}
            return cls(str(value["left"]), declined, trial, tuple(value["said"]), tuple(value["reports"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Refused("state", f"agent.json is damaged: {error!r}") from None
