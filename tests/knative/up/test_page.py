"""The live page, as a browser shows it."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from up_process import Up, ask, service

MODELS = Path(__file__).parents[2] / "transformers" / "models"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

YAML = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: { name: counts }
spec: { predictor: { containerConcurrency: 8, model: { modelFormat: { name: torpor }, storageUri: "file:///models/counts" } } }
---
"""


def shown(port: int) -> str:
    """The page's elements after its script has run for two seconds of the browser's time."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/"], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt-get install chromium")
def test_the_page_shows_each_component(up: Callable[..., Up]) -> None:
    """One awake, with its phases and what it has answered, and one asleep; nothing comes from another machine."""
    running = up(YAML + service(name="sleeper"), "--map", f"/models={MODELS}")
    port = running.port("counts-predictor")
    for _ in range(3):
        assert ask(port, "/v1/models/counts:predict", "POST", json.dumps({"instances": [[1.0, 2.0]]}))[0] == 200
    running.wait_until(lambda state: "import" in state["wakes"][0]["phases"], "counts-predictor")
    page = shown(running.page())
    assert "1 of 2 awake" in page
    awake, _, asleep = page.partition('<section id="sleeper">')
    assert '<span class="state awake">awake</span>' in awake
    assert "<dt>answered</dt><dd>3</dd>" in awake
    assert "<dt>rows a batch</dt><dd>1.0</dd>" in awake
    assert "<dt>in flight</dt><dd>0 of 8</dd>" in awake
    for phase in ("process", "python", "import"):
        assert f">{phase} " in awake
    assert '<span class="state asleep">asleep</span>' in asleep
    assert "counts-predictor is awake after" in asleep
    assert not re.search(r"""(src|href)="(?!data:)|@import|url\(""", page)


def test_the_numbers_are_json(up: Callable[..., Up]) -> None:
    """What the page asks for is there for others; looking wakes nobody, and nothing else is served."""
    running = up(service())
    state = running.state()
    assert (state["state"], state["role"], state["wakes"]) == ("asleep", "service", [])
    assert ask(running.page(), "/etc/passwd")[0] == 404
    assert ask(running.page(), "/", "POST", b"")[0] == 405
