"""In which respects two servers' answers to a case differ."""

import json
from collections.abc import Sequence
from typing import Any

from judge.client import Answer
from judge.scenes import Case

ASPECTS = ("status", "content type", "header", "body", "pieces", "spacing", "error object", "message")
"""pieces: chunks, or messages of a stream. spacing: the same JSON, in other bytes. error object: an error in KServe's form for
one in TorchServe's. message: of an error in the same form, with the same type; its code is its status.
"""


def differing(case: Case, theirs: Sequence[Answer], ours: Sequence[Answer]) -> list[str]:
    """The aspects in which any of the answers differ, in order of weight."""
    if case.is_a_set:
        return [] if _kinds(case, theirs) == _kinds(case, ours) else ["body"]
    found = set()
    for his, own in zip(theirs, ours, strict=True):
        if his.status != own.status:
            found.add("status")
        if his.headers.get("content-type") != own.headers.get("content-type"):
            found.add("content type")
        if any(his.headers.get(name) != own.headers.get(name) for name in case.headers):
            found.add("header")
        if aspect := _bodies(normal(case, his), normal(case, own)):
            found.add(aspect)
        if case.has_pieces and his.pieces != own.pieces:
            found.add("pieces")
    return [aspect for aspect in ASPECTS if aspect in found]


def normal(case: Case, answer: Answer) -> Any:
    """The case's own view of a body; of one that has another form than the view expects, the body itself."""
    try:
        return case.normal(answer.body)
    except (ValueError, KeyError, TypeError, AttributeError):
        return answer.body


def _kinds(case: Case, answers: Sequence[Answer]) -> set[str]:
    """Errors by their type, without their message."""
    kinds = set()
    for one in answers:
        body = json.loads(one.body)["type"] if one.status != 200 else normal(case, one)
        kinds.add(repr((one.status, one.headers.get("content-type"), body)))
    return kinds


def _bodies(his: Any, own: Any) -> str:
    if his == own:
        return ""
    try:
        his, own = json.loads(his), json.loads(own)
    except (TypeError, ValueError):
        return "body"
    if his == own:
        return "spacing"
    if not isinstance(his, dict) or not isinstance(own, dict) or list(his) != _ERROR:
        return "body"
    if list(own) == ["error"]:
        return "error object"
    return "message" if list(own) == _ERROR and his["type"] == own["type"] else "body"


_ERROR = ["code", "type", "message"]
