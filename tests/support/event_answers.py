"""What `torpor events tail` prints of answers, and what is asked of them wherever the chain runs."""

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

Answers = dict[str, list[dict[str, Any]]]


def answers_in(lines: Iterable[str], name: str) -> Answers:
    """By the id of their question, of those that begin so."""
    answers = defaultdict(list)
    for line in lines:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("correlationid", "").startswith(name):
            answers[event["correlationid"]].append(event)
    return answers


def assert_each_is_answered(answers: Answers, questions: Iterable[str]) -> None:
    """Each question by a vector of length 1; whoever is answered again, by the same event."""
    assert set(answers) == set(questions)
    for events in answers.values():
        first, *others = [{k: v for k, v in event.items() if not k.startswith("knative")} for event in events]
        assert all(other == first for other in others)
        (vector,) = first["data"]["predictions"]
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-4)
