"""Variables of the environment that count by what they say: an empty one says nothing."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torpor.knative import cluster
from torpor.knative.up.terminal import Terminal
from torpor.predictors.command import main


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("said", "is_coloured"), [(None, True), ("", True), ("0", False), ("1", False)])
def test_no_color_counts_unless_it_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, is_coloured: bool
) -> None:
    """Whatever else it says (https://no-color.org); in `torpor up` and in `torpor validate`."""
    if said is None:
        monkeypatch.delenv("NO_COLOR", raising=False)
    else:
        monkeypatch.setenv("NO_COLOR", said)
    screen = Screen()
    Terminal(["predictor"], screen).line("predictor", "ready")
    assert ("\x1b[" in screen.getvalue()) is is_coloured
    (tmp_path / "wrong.yaml").write_text("apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nspec: 3\n")
    monkeypatch.setattr(sys, "stdout", screen := Screen())
    assert main(["validate", str(tmp_path / "wrong.yaml")]) == 1
    assert ("\x1b[" in screen.getvalue()) is is_coloured


class Config:
    """`kubernetes.config`, as far as it is asked; `asked` is where for."""

    def __init__(self) -> None:
        self.asked = ""

    def load_incluster_config(self, client_configuration: Any) -> None:
        self.asked = "the pod's own account"

    def load_kube_config(self, file: str, context: str | None, settings: Any) -> None:
        self.asked = file

    def list_kube_config_contexts(self, file: str) -> tuple[list[Any], Any]:
        return [], {"name": "c", "context": {"namespace": "n"}}


@pytest.mark.parametrize("said", [None, ""])
@pytest.mark.parametrize("has_file", [False, True])
def test_an_empty_kubeconfig_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, has_file: bool
) -> None:
    """The file in the home folder counts then, and without it a pod's own account."""
    (tmp_path / ".kube").mkdir()
    file = tmp_path / ".kube" / "config"
    if has_file:
        file.write_text("")
    (tmp_path / "namespace").write_text("own")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(cluster, "_OWN_NAMESPACE", tmp_path / "namespace")
    if said is None:
        monkeypatch.delenv("KUBECONFIG", raising=False)
    else:
        monkeypatch.setenv("KUBECONFIG", said)
    config = Config()
    namespace = cluster._configure(config, SimpleNamespace(), None)
    assert (config.asked, namespace) == ((str(file), "n") if has_file else ("the pod's own account", "own"))
