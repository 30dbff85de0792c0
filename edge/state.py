"""What a node knows beside what it serves: whose bundles it takes, what it has accepted of TUF, and its history."""

from dataclasses import dataclass, replace
from typing import Any

from .contents import canonical, parsed, time_of, time_text
from .generations import Generation
from .refused import Refused
from .trust import Trust

MOST_HISTORY = 100


@dataclass(frozen=True)
class State:
    """node.json. name: of the bundles that the node takes. history: the installations, the last ones at the end."""

    name: str
    trust: Trust
    history: tuple[dict[str, Any], ...] = ()

    def with_installation(self, generation: Generation, expired: tuple[str, ...], word: str) -> "State":
        """What was installed is said once, however often an installation was broken off."""
        record: dict[str, Any] = {"version": generation.version, "index": generation.index}
        if expired:
            record |= {"expired": list(expired), "word": word}
        last = {name: value for name, value in self.history[-1].items() if name != "at"} if self.history else None
        if last == record:
            return self
        return replace(self, history=(*self.history, {"at": time_text(generation.installed), **record}))

    def data(self) -> bytes:
        trust = self.trust
        files = {"root": trust.root, "timestamp": trust.timestamp, "snapshot": trust.snapshot, "targets": trust.targets}
        return canonical(
            {
                "name": self.name,
                "trust": {role: data.decode() for role, data in files.items() if data is not None},
                "time": time_text(trust.time),
                "history": list(self.history[-MOST_HISTORY:]),
            }
        )

    @classmethod
    def of(cls, data: bytes) -> "State":
        """Raises Refused."""
        value = parsed(data, "node.json")
        trust = value.get("trust", {})
        try:
            files = {
                role: trust[role].encode() for role in ("root", "timestamp", "snapshot", "targets") if role in trust
            }
            return cls(
                value["name"], Trust(**files, time=time_of(value["time"], "node.json: time")), tuple(value["history"])
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise Refused("state", f"node.json is damaged: {error!r}") from None
