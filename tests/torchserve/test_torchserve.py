"""TorchServe 0.12 itself, as the list of calls knows it: what torpor is compared with must be what the docs describe."""

from collections.abc import Callable

import pytest
from judge.cases import SCENES
from judge.client import Answer
from judge.scenes import Case

CASES = [
    pytest.param(scene.name, case, id=f"{scene.name}/{case.name}") for scene in SCENES.values() for case in scene.cases
]


@pytest.mark.parametrize(("scene", "case"), CASES)
def test_torchserve_answers_as_known(
    scene: str, case: Case, torchserve_answers: Callable[[str], dict[str, list[Answer]]]
) -> None:
    """Statuses, and the body where the list has it."""
    answers = torchserve_answers(scene)[case.name]
    if case.statuses:
        assert [answer.status for answer in answers] == list(case.statuses), "\n".join(map(str, answers))
    if case.body is not None:
        assert answers[-1].body == case.body
