"""Handlers that come from the package `torchserve`, and archives' own that import it."""

import importlib.util
import io
import json
from pathlib import Path

import pytest
from archives import manifest, write_mar

needs_torchserve = pytest.mark.skipif(importlib.util.find_spec("ts") is None, reason="needs torchserve")

MODEL = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x)
"""

HANDLER = """
import torch
from ts.torch_handler.base_handler import BaseHandler
from ts.handler_utils.utils import send_intermediate_predict_response

class Own(BaseHandler):
    def preprocess(self, data):
        self.pieces = [row["body"].get("pieces", 0) for row in data]
        return torch.tensor([row["body"]["x"] for row in data])

    def handle(self, data, context):
        answers = super().handle(data, context)
        for number in range(max(self.pieces)):
            said = [f"{number} "] * len(data)
            send_intermediate_predict_response(said, context.request_ids, "more", 200, context)
        return answers
"""


def weights() -> bytes:
    """Of MODEL, so that it sums, and sums again with the sign turned."""
    import torch

    buffer = io.BytesIO()
    state = {"linear.weight": torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]), "linear.bias": torch.zeros(2)}
    torch.save(state, buffer)
    return buffer.getvalue()


def archive(tmp_path: Path, handler: str, files: dict[str, str | bytes]) -> Path:
    said = manifest("m", handler, modelFile="model.py", serializedFile="weights.pt")
    return write_mar(tmp_path / "m.mar", {"model.py": MODEL, "weights.pt": weights(), **files}, said)


@needs_torchserve
def test_a_handler_that_extends_torchserves_runs_unmodified(start, connect_http1, tmp_path: Path) -> None:
    """With an eager model and its weights, its own preprocessing, and an answer in pieces."""
    client = connect_http1(start(archive(tmp_path, "own.py", {"own.py": HANDLER}), OMP_NUM_THREADS="1"))
    json_type = {"content-type": "application/json"}
    reply = client.request("POST", "/predictions/m", b'{"x": [1.0, 2.0, 3.0]}', json_type)
    assert (reply.status, json.loads(reply.body)) == (200, [6.0, -6.0])
    reply = client.request("POST", "/predictions/m", b'{"x": [1.0, 2.0, 3.0], "pieces": 2}', json_type)
    assert reply.body == b"0 1 " + json.dumps([6.0, -6.0], indent=2).encode()
    assert "ts_stream_next" not in reply.headers


@needs_torchserve
def test_a_stock_handler_is_found_by_its_name(start, connect_http1, tmp_path: Path) -> None:
    """`base_handler` is no file of the archive; under v1's envelope it needs no code at all."""
    client = connect_http1(start(archive(tmp_path, "base_handler", {}), OMP_NUM_THREADS="1"))
    reply = client.request("POST", "/v1/models/m:predict", b'{"instances": [[1.0, 2.0, 3.0], [0.0, 0.0, 1.5]]}')
    assert reply.json() == {"predictions": [[6.0, -6.0], [1.5, -1.5]]}
