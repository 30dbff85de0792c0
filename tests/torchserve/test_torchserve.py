"""Every archive and call of the list, sent to TorchServe 0.12 and to torpor, and their answers compared.

`judge/cases.py` is the list, `judge/differences.py` what is known to differ.
"""

import fnmatch
from collections.abc import Callable
from pathlib import Path

import pytest
from judge import differences
from judge.cases import SCENES
from judge.client import Answer
from judge.comparison import differing
from judge.scenes import Case

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "torchserve.md"
CASES = [
    pytest.param(scene.name, case, id=f"{scene.name}/{case.name}") for scene in SCENES.values() for case in scene.cases
]
Answers = Callable[[str], dict[str, list[Answer]]]


@pytest.mark.parametrize(("scene", "case"), CASES)
def test_torchserve_answers_as_known(scene: str, case: Case, torchserve_answers: Answers) -> None:
    """The peer is what the list says it is: its statuses, and the body where the list has it."""
    answers = torchserve_answers(scene)[case.name]
    if case.statuses:
        assert [answer.status for answer in answers] == list(case.statuses), "\n".join(map(str, answers))
    if case.body is not None:
        assert answers[-1].body == case.body


@pytest.mark.parametrize(("scene", "case"), CASES)
def test_torpor_answers_alike(scene: str, case: Case, torchserve_answers: Answers, torpor_answers: Answers) -> None:
    """Status, content type and body are TorchServe's, but for the differences that are listed."""
    theirs, ours = torchserve_answers(scene)[case.name], torpor_answers(scene)[case.name]
    both = "\n".join(f"TorchServe {his}\ntorpor     {own}" for his, own in zip(theirs, ours, strict=True))
    found = differing(case, theirs, ours)
    assert differences.is_known(f"{scene}/{case.name}", found), f"differ in {found}:\n{both}"


def test_cases_are_told_apart() -> None:
    """One name, one case: answers are kept by it."""
    names = [f"{scene.name}/{case.name}" for scene in SCENES.values() for case in scene.cases]
    assert len(names) == len(set(names))


def test_every_difference_is_of_a_case() -> None:
    """A case that was renamed takes its entry with it."""
    known = {f"{scene.name}/{case.name}" for scene in SCENES.values() for case in scene.cases}
    listed = [case for one in differences.DIFFERENCES for case in one.cases]
    assert not [case for case in listed if not fnmatch.filter(known, case)]
    assert len(listed) == len(set(listed))


def test_the_docs_have_the_differences() -> None:
    """What a user reads is what the tests know."""
    assert differences.table() in DOCS.read_text()


def test_a_module_of_the_benchmarks_hides_none_of_the_tests() -> None:
    """What is imported from there stays in one process with the tests' own modules: each name is one module's."""
    ours = {file.name for file in (ROOT / "tests/support").glob("*.py")}
    assert not [file.name for file in (ROOT / "benchmarks").glob("*.py") if file.name in ours]
