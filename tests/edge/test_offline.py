"""What a node does in a network that leads nowhere: it installs, checks its YAML, and serves by it."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from edge_bundles import NOW, Publisher
from torpor.edge.bundle import Input, make_bundle

TORPOR = Path(sys.executable).with_name("torpor")
MODEL = Path(__file__).parents[1] / "transformers" / "models" / "counts"
SERVICE = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: counts
  annotations: {serving.kserve.io/deploymentMode: Knative}
spec:
  predictor:
    minReplicas: 0
    containerConcurrency: 64
    timeout: 60
    model:
      modelFormat: {name: torpor}
      storageUri: pvc://models/counts
      resources:
        requests: {cpu: 500m, memory: 1Gi}
        limits: {cpu: "1", memory: 1Gi}
"""


@pytest.fixture
def alone() -> Iterator[list[str]]:
    """What runs a command in a network that has nothing but a loopback."""
    space = f"torpor-alone-{os.getpid()}"
    if (
        shutil.which("ip") is None
        or subprocess.run(["ip", "netns", "add", space], capture_output=True, check=False).returncode
    ):
        pytest.skip("no network namespace can be made here: it takes iproute2 and root's rights")
    inside = ["ip", "netns", "exec", space]
    try:
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        yield inside
    finally:
        subprocess.run(["ip", "netns", "del", space], check=True)


def run(inside: Sequence[str], *command: str | Path) -> str:
    done = subprocess.run([*inside, *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_bundle_is_installed_and_its_yaml_serves_without_a_network(tmp_path: Path, alone: list[str]) -> None:
    """From the bundle's file to an answer of the model behind `torpor up`, which sleeps and wakes by the installed YAML."""
    publisher = Publisher(tmp_path)
    (tmp_path / "service.yaml").write_text(SERVICE)
    inputs = [Input("model", "counts", MODEL), Input("manifest", "counts", tmp_path / "service.yaml")]
    make_bundle(tmp_path / "bundle", "counts", "1", "any", NOW, inputs)
    publisher.sign(tmp_path / "bundle", days=36_500)
    (tmp_path / "1.root.json").write_bytes(publisher.root)
    node = tmp_path / "node"
    run(alone, TORPOR, "edge", "install", tmp_path / "bundle", "--root", tmp_path / "1.root.json", "--node", node)
    service = node / "current/manifest/counts/service.yaml"
    run(alone, TORPOR, "validate", service)
    up = [TORPOR, "up", service, "--map", f"pvc://models={node / 'current/model'}", "--port", "0"]
    process = subprocess.Popen([*alone, *up, "--state", tmp_path / "state"], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = next(
            filter(None, (re.search(r"counts-predictor is at (http://\S+?)/:", line) for line in process.stderr))
        )
        reader = threading.Thread(target=process.stderr.read)
        reader.start()
        asked = '{"instances": [[1, 2]]}'
        answer = run(alone, "curl", "-sS", "-d", asked, f"{found[1]}/v1/models/counts:predict")
        assert json.loads(answer)["predictions"][0]["total"] == 3.0
    finally:
        process.terminate()
        process.wait(60)
        reader.join(60)
        process.stderr.close()
