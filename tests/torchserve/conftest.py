"""TorchServe's answers, obtained once a session, scene by scene, and torpor's beside them."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import pytest
from judge import archives, servers
from judge.cases import SCENES
from judge.client import Addresses, Answer, ask
from judge.scenes import Scene

Answers = dict[str, list[Answer]]
Serve = Callable[[Scene, Path, Path], AbstractContextManager[Addresses]]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every archive, made by the real archiver."""
    if not os.environ.get("TORPOR_JUDGE"):
        pytest.skip(
            "the comparison with TorchServe takes some ten minutes and Java: TORPOR_JUDGE=1 pytest tests/torchserve"
        )
    if reason := servers.unavailable():
        pytest.skip(f"TorchServe can't run here: {reason}")
    generated, folder = tmp_path_factory.mktemp("weights"), tmp_path_factory.mktemp("store")
    archives.generate(generated)
    for archive in archives.ARCHIVES.values():
        archive.make(folder, generated)
    return folder


@pytest.fixture(scope="session")
def torchserve_answers(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Answers]:
    """TorchServe's answers to a scene's cases, by case."""
    return _answers("torchserve", servers.torchserve, store, tmp_path_factory)


@pytest.fixture(scope="session")
def torpor_answers(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Answers]:
    """torpor's answers to a scene's cases, by case."""
    return _answers("torpor", servers.torpor, store, tmp_path_factory)


def _answers(name: str, serve: Serve, store: Path, folders: pytest.TempPathFactory) -> Callable[[str], Answers]:
    """Each scene is served once."""

    @cache
    def answers(scene_name: str) -> Answers:
        scene = SCENES[scene_name]
        with serve(scene, folders.mktemp(f"{name}-{scene_name}"), store) as server:
            return {case.name: ask(server, case) for case in scene.cases}

    return answers
