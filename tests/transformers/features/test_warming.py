"""The command `torpor features warm`: what it fills, what it leaves, how it ends."""

import io
from pathlib import Path
from typing import Any

import pytest
from torpor.predictors.command import main

LOADER = """
from pathlib import Path

calls = []

def users(keys):
    calls.append(keys)
    if b"bad" in keys:
        raise OSError("no route")
    return {key: [len(key), 0.5] for key in keys if not key.startswith(b"no")}
"""
DECLARED = ["--features", "float32[rows, 2]"]


@pytest.fixture
def loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The loader's name; its module lies in the working folder."""
    name = f"loader_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(LOADER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return f"{name}:users"


@pytest.fixture
def url(redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TORPOR_FEATURES_URL", redis_server.url)
    return redis_server.url


def calls_of(loader: str) -> list[list[bytes]]:
    return __import__(loader.partition(":")[0]).calls


@pytest.mark.usefixtures("url")
def test_it_fills_what_is_lacking_and_may_be_repeated(
    loader: str, redis_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each key once, empty lines aside; the second run finds all there, and `--refresh` loads again."""
    Path("keys").write_text("a\nbc\n\nnobody\na\r\n")
    command = ["features", "warm", loader, "--keys", "keys", *DECLARED]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("4 keys: 1 there already, 2 loaded, 1 without features, ")
    assert calls_of(loader) == [[b"a", b"bc", b"nobody"]]
    assert redis_server.ask("EXISTS features:a features:bc features:nobody") == b":3\r\n"
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("4 keys: 4 there already, 0 loaded, 0 without features, ")
    assert len(calls_of(loader)) == 1
    assert main([*command, "--refresh", "--ttl-s", "7200", "--prefix", "features"]) == 0
    assert len(calls_of(loader)) == 2
    assert int(redis_server.ask("TTL features:a")[1:]) > 3600


@pytest.mark.usefixtures("url")
def test_keys_go_in_batches_from_standard_input(
    loader: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No more at once than asked for."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(b"%d" % n for n in range(95)))))
    assert main(["features", "warm", loader, "--keys", "-", "--batch", "10", "--parallel", "3", *DECLARED]) == 0
    assert capsys.readouterr().out.startswith("95 keys: 0 there already, 95 loaded")
    assert sorted(map(len, calls_of(loader))) == [5, *[10] * 9]


@pytest.mark.usefixtures("url")
def test_a_models_folder_says_what_its_features_are(loader: str, redis_server: Any) -> None:
    """The parameters of `Features` are read from where the server reads them."""
    Path("model.toml").write_text(
        'class = "torpor.transformers.features:Features"\n[parameters]\n'
        f'loader = "{loader}"\nfeatures = "float32[rows, 2]"\nprefix = "users"\nkey = "user"\n'
    )
    Path("keys").write_text("a\n")
    assert main(["features", "warm", ".", "--keys", "keys"]) == 0
    assert redis_server.ask("EXISTS users:a") == b":1\r\n"


@pytest.mark.usefixtures("url")
def test_a_loader_that_fails_ends_it_with_1(loader: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An init container is then tried again; what was loaded before stays."""
    Path("keys").write_text("a\nbad\n")
    command = ["features", "warm", loader, "--keys", "keys", "--batch", "1", "--parallel", "1", *DECLARED]
    assert main(command) == 1
    assert "torpor: the loader of features raised OSError" in capsys.readouterr().err


def test_a_redis_that_is_not_there_ends_it_with_1(
    loader: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not with a row that nobody keeps."""
    monkeypatch.setenv("TORPOR_FEATURES_URL", "redis://:secret@127.0.0.1:1")
    Path("keys").write_text("a\n")
    assert main(["features", "warm", loader, "--keys", "keys", *DECLARED]) == 1
    error = capsys.readouterr().err
    assert "127.0.0.1:1" in error
    assert "secret" not in error
    assert calls_of(loader) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["LOADER", "--keys", "none", *DECLARED], "--keys: "),
        (["LOADER", "--keys", "keys"], "features = ''"),
        (["LOADER", "--keys", "long", *DECLARED], "--keys: a key has 2000 bytes, must have at most 1024"),
        (["LOADER", "--keys", "keys", *DECLARED, "--ttl-s", "never"], "ttl_s = 'never', must be a number in"),
        (["nothing", "--keys", "keys"], "'nothing' is neither a folder nor MODULE:LOADER"),
        (["LOADER", "--keys", "keys", *DECLARED, "--url", "ftp://x"], "url: Redis URL must specify"),
    ],
)
def test_a_setting_that_cannot_be_used_ends_it_with_2(
    loader: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A retry would not mend it."""
    Path("keys").write_text("a\n")
    Path("long").write_text("a" * 2000)
    assert main(["features", "warm", *(loader if word == "LOADER" else word for word in arguments)]) == 2
    assert message in capsys.readouterr().err
