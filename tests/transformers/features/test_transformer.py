"""The ready-made class `Features`: keys become features, the other inputs stay."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torpor.predictors.errors import InvalidInput
from torpor.predictors.protocol.datatypes import object_array
from torpor.predictors.runtime.user_class import inspect_class
from torpor.predictors.settings import SettingError
from torpor.transformers.features import Features

LOADER = """
async def users(keys):
    return {key: [len(key), 0.5] for key in keys if not key.startswith(b"no")}

nobody = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder with a loader; no Redis where it is looked for."""
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    monkeypatch.setenv("TORPOR_FEATURES_URL", "redis://127.0.0.1:1")
    (tmp_path / f"loader_{tmp_path.name}.py").write_text(LOADER)
    return tmp_path


def loaded(folder: Path, **parameters: Any) -> Features:
    features = Features()
    given = {"loader": f"loader_{folder.name}:users", "features": "float32[rows, 2]", "key": "user", **parameters}
    features.load(folder, given)
    return features


def joined(features: Features, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    return asyncio.run(features.preprocess(**inputs))


def users(*keys: bytes) -> np.ndarray:
    return object_array(keys, [len(keys)])


def test_keys_become_features_and_other_inputs_stay(folder: Path) -> None:
    """A row each, under the name that the predictor knows."""
    price = np.array([1.0, 2.0])
    given = joined(loaded(folder, output="user_features"), user=users(b"a", b"bcd"), price=price)
    assert list(given) == ["price", "user_features"]
    assert given["price"] is price
    assert given["user_features"].tolist() == [[1, 0.5], [3, 0.5]]
    assert given["user_features"].dtype == np.float32


def test_keys_may_be_integers_and_have_more_axes(folder: Path) -> None:
    """Candidates of a ranking: the features' axes come behind those of the keys."""
    given = joined(loaded(folder), user=np.array([[1, 22, 333], [1, 1, 1]]))
    assert given["features"].shape == (2, 3, 2)
    assert given["features"][:, :, 0].tolist() == [[1, 2, 3], [1, 1, 1]]


def test_a_key_without_features_is_refused_or_filled(folder: Path) -> None:
    """With the default there may be one more input that says who has none."""
    with pytest.raises(InvalidInput, match=r"^input 'user': key 'nobody' has no features$"):
        joined(loaded(folder), user=users(b"a", b"nobody"))
    given = joined(loaded(folder, default=-1.0, present="known", keep_key=True), user=users(b"nobody", b"a"))
    assert given["features"].tolist() == [[-1, -1], [1, 0.5]]
    assert given["known"].tolist() == [False, True]
    assert given["user"].tolist() == [b"nobody", b"a"]


def test_a_request_without_keys_is_refused(folder: Path) -> None:
    """So is one whose keys are no keys."""
    with pytest.raises(InvalidInput, match="input 'user' is missing"):
        joined(loaded(folder), price=np.ones(1))
    with pytest.raises(InvalidInput, match="input 'user': dtype = float64, must be bytes or an integer"):
        joined(loaded(folder), user=np.ones(1))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"features": "float32[rows, tokens]"}, r"features = 'float32\[rows, tokens\]', must be of bool"),
        ({"features": "bytes[rows]"}, "must be of bool, an integer, float16, float32 or float64"),
        ({"features": ""}, "is not of the form"),
        ({"loader": "nothing"}, "loader = 'nothing', must be of the form module:function"),
        ({"loader": "no_such_module:f"}, "loader = 'no_such_module:f': No module named"),
        ({"ttl_s": 0}, "ttl_s = 0.0, must be in"),
        ({"features": "int64[rows]", "default": 0.5}, r"default = 0.5 is no value of features = 'int64\[rows\]'"),
        ({"present": "known"}, "present = 'known' has no meaning without default"),
        ({"url": "http://localhost"}, "url: Redis URL must specify one of"),
        ({"ttl": 3.0}, "Features: parameter ttl is unknown, must be one of features"),
    ],
)
def test_a_parameter_that_cannot_be_used_ends_the_start(folder: Path, parameters: dict[str, Any], message: str) -> None:
    """And the message names it, its value and what is allowed."""
    with pytest.raises(SettingError, match=message):
        loaded(folder, **parameters)


def test_a_loader_must_be_a_function(folder: Path) -> None:
    """Not a number of that name."""
    with pytest.raises(SettingError, match="has no function nobody"):
        loaded(folder, loader=f"loader_{folder.name}:nobody")


def test_the_class_takes_any_inputs(folder: Path) -> None:
    """By a coroutine, so that it runs on the event loop."""
    declared = inspect_class(Features, "preprocess")
    assert declared.signature.names == ()
    assert asyncio.iscoroutinefunction(Features.preprocess)


def test_unloading_ends_the_connections_from_any_thread(folder: Path, redis_server: Any) -> None:
    """A class with a plain `postprocess` too is unloaded on the device's thread."""

    async def scenario() -> None:
        features = loaded(folder, url=redis_server.url)
        await features.preprocess(user=users(b"a"))
        assert redis_server.connections() > 0
        await asyncio.to_thread(features.unload)
        for _ in range(1000):
            if redis_server.connections() == 0:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("connections are left")

    asyncio.run(scenario())
