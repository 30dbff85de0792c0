"""What serves the bundles on a node, as the agent brings it up: what goes wrong is a sentence of its report."""

import re
import shlex
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from edge_bundles import NAME, NOW
from failing_disk import Unsynced
from torpor.edge import service as service_module
from torpor.edge.contents import Blob, File
from torpor.edge.generations import Generation
from torpor.edge.k3s import K3s
from torpor.edge.service import Service

NOBODY = "http://127.0.0.1:9"


def generation(folder: Path, **texts: str) -> Generation:
    """What is served from the folder: a file m of each kind."""
    for kind, text in texts.items():
        (folder / kind / "m").mkdir(parents=True)
        (folder / kind / "m" / "smoke.json").write_text(text)
    files = (File(f"{kind}/m/smoke.json", (Blob.of(text.encode()),)) for kind, text in texts.items())
    return Generation(1, NAME, "1", "", NOW, None, tuple(files))


def never() -> AbstractContextManager[object]:
    pytest.fail("it would wait")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("", ""),
        (f"{sys.executable} -c pass", ""),
        ("/no/such/program now", "the restart failed: .*No such file.*"),
        (shlex.join([sys.executable, "-c", "import sys; sys.exit('no such unit')"]), "the restart ended with 1: no such unit"),
    ],
)  # fmt: skip
def test_a_restart_that_fails_is_said(tmp_path: Path, command: str, said: str) -> None:
    wrong = Service(tmp_path, command, "", 0).bring_up(generation(tmp_path))
    assert re.fullmatch(said, wrong)


def test_a_restart_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "RESTART_TIMEOUT_S", 0.01)
    wrong = Service(tmp_path, "sleep 600", "", 0).bring_up(generation(tmp_path))
    assert "the restart failed" in wrong
    assert "timed out" in wrong


def test_a_smoke_request_that_is_none_is_said_and_not_sent(tmp_path: Path) -> None:
    service = Service(tmp_path, "", NOBODY, 60, interruptible=never)
    assert "smoke.json: neither inputs" in service.bring_up(generation(tmp_path, model="{}"))


def test_a_server_that_does_not_answer_in_time_is_said(tmp_path: Path) -> None:
    """What it was last; each model is asked, and a bundle without one has nothing to be asked."""
    asked = generation(tmp_path, model='{"inputs": []}')
    assert "refused" in Service(tmp_path, "", NOBODY, 0, interruptible=never).bring_up(asked)
    assert Service(tmp_path, "", NOBODY, 0, interruptible=never).bring_up(generation(tmp_path / "none")) == ""


def test_k3s_has_the_version_before_it_is_restarted(tmp_path: Path) -> None:
    served = generation(tmp_path / "current", manifest="{}")
    (tmp_path / "k3s").mkdir()
    placed = tmp_path / "k3s/server/manifests/torpor-m-smoke.json"
    command = shlex.join(["test", "-e", str(placed)])
    assert Service(tmp_path / "current", command, "", 0, K3s(tmp_path / "k3s", Unsynced())).bring_up(served) == ""
