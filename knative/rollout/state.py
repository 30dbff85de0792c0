"""Where a rollout stands, kept at the service itself: whoever comes next, anywhere, can go on with it or take it back.

It is an annotation of the Knative Service, also under an InferenceService: there any annotation of its own would go into the
pods' template, and so make a new revision. A Knative Service's own annotations do not.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

ANNOTATION = "torpor.dev/rollout"


@dataclass
class State:
    """digest: of what was applied. phase: rolling, promoted or returned. by: which process drives it; another's hand ends it.

    stable, candidate, before: revisions by the names of their Knative Services; before: the newest one ahead of the apply.
    """

    digest: str
    by: str
    phase: str = "rolling"
    percent: int = 0
    why: str = ""
    stable: dict[str, str] = field(default_factory=dict)
    candidate: dict[str, str] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def state_of(service: dict[str, Any] | None) -> State | None:
    """Of a Knative Service; None where there is none that can be read."""
    text = ((service or {}).get("metadata", {}).get("annotations") or {}).get(ANNOTATION)
    try:
        return State(**json.loads(text)) if text else None
    except (ValueError, TypeError):
        return None


def digest_of(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()[:16]
