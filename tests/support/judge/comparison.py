"""In which respects two servers' answers to a case differ."""

import json
from collections.abc import Sequence
from typing import Any

from judge.client import Answer
from judge.scenes import Case

ASPECTS = ("status", "content type", "header", "body")


def differing(case: Case, theirs: Sequence[Answer], ours: Sequence[Answer]) -> list[str]:
    """The aspects in which any of the answers differ, in order of weight."""
    if case.is_a_set:
        kinds = [{repr((one.status, one.headers.get("content-type"), normal(case, one))) for one in both} for both in (theirs, ours)]
        return [] if kinds[0] == kinds[1] else ["body"]
    found = set()
    for his, own in zip(theirs, ours, strict=True):
        if his.status != own.status:
            found.add("status")
        if his.headers.get("content-type") != own.headers.get("content-type"):
            found.add("content type")
        if any(his.headers.get(name) != own.headers.get(name) for name in case.headers):
            found.add("header")
        if normal(case, his) != normal(case, own):
            found.add("body")
    return [aspect for aspect in ASPECTS if aspect in found]


def normal(case: Case, answer: Answer) -> Any:
    """The case's own view of a body; of an error without the case's view of one, the body itself."""
    try:
        return case.normal(answer.body)
    except (ValueError, KeyError, TypeError, AttributeError):
        return answer.body


def is_same_json(theirs: Answer, ours: Answer) -> bool:
    """The same value in other bytes."""
    try:
        return bool(json.loads(theirs.body) == json.loads(ours.body))
    except ValueError:
        return False
