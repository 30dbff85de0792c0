"""Where the agent's settings come from, and which are refused."""

import re
from pathlib import Path

import pytest
from torpor.edge.agent_settings import resolve
from torpor.predictors.settings import SettingError


def test_a_flag_comes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    """What none of them says has its default; the node's name is the host's."""
    file = tmp_path / "edge.toml"
    file.write_text('mirrors = ["http://a", "http://b"]\nbundle = "file"\nk3s = "file"\nlabels = { ring = "canary" }\n')
    variables = {"TORPOR_EDGE_BUNDLE": "variable", "TORPOR_EDGE_K3S": "variable", "TORPOR_EDGE_RESTART": ""}
    values = resolve({"k3s": "flag", "restart": None}, variables, file)
    assert [values[name] for name in ("k3s", "bundle", "restart", "interval_s")] == ["flag", "variable", "", 300.0]
    assert (values["mirrors"], values["labels"]) == ("http://a,http://b", "ring=canary")
    assert values["name"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "mirrors is empty, must be URLs"),
        ('mirrors = "http://a"\ncolour = "red"\n', "colour is unknown, must be one of bundle"),
        ('mirrors = "http://a"\ninterval_s = 0\n', "interval_s = 0.0, must be in [1, 86400]"),
        ("mirrors =\n", "edge.toml: "),
        (None, "edge.toml: [Errno 2] No such file"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "edge.toml").write_text(text)
    with pytest.raises(SettingError, match=re.escape(said)):
        resolve({}, {}, tmp_path / "edge.toml")
