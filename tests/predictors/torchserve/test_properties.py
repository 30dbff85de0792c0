"""config.properties: Java's format, the keys that mean something, and the values that they cannot have."""

import logging
from pathlib import Path

import pytest
from torpor.predictors.settings import SettingError
from torpor.predictors.torchserve import properties
from torpor.predictors.torchserve.properties import Config, parse


def read(tmp_path: Path, text: str, **environment: str) -> Config:
    path = tmp_path / "config.properties"
    path.write_text(text)
    return Config.read(path, environment)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", {"a": "1"}),
        ("a = 1 ", {"a": "1 "}),
        ("a:1\nb 2\nc", {"a": "1", "b": "2", "c": ""}),
        ("# no\n ! no\n\n  a=#1", {"a": "#1"}),
        ("a=1\\\n   2\\\r\n3", {"a": "123"}),
        ("a=1\\\\\nb=2", {"a": "1\\", "b": "2"}),
        ("a\\ b\\=c=d\\te", {"a b=c": "d\te"}),
        ("a=\\u00e9\\q", {"a": "éq"}),
        ("a=1\na=2", {"a": "2"}),
        ("a==b", {"a": "=b"}),
        ("a=1\\", {"a": "1"}),
        ("a=1\rb=2\r\nc=3", {"a": "1", "b": "2", "c": "3"}),
        ("\t\fa\t=\f1\n\t#b=2", {"a": "1"}),
        ("a=1\\\n\t\f 2", {"a": "12"}),
        ("a\\:b:c:d\na\\\\=1", {"a:b": "c:d", "a\\": "1"}),
        ("a=\\t\\n\\r\\f\\u0041\\u12", {"a": "\t\n\r\fAu12"}),
        ("a\\tb=1\n=2", {"a\tb": "1", "": "2"}),
        ('s={"a":\\\n {"b": 1}}', {"s": '{"a":{"b": 1}}'}),
    ],
)
def test_javas_format(text: str, expected: dict[str, str]) -> None:
    """As java.util.Properties reads it: separators, comments, lines that go on, escapes."""
    assert parse(text) == expected


def test_keys_that_mean_something(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Others are said once, by name: KServe's own samples have keys that no version knew."""
    caplog.set_level(logging.INFO)
    config = read(
        tmp_path, "job_queue_size=7\nNUM_WORKERS=1\nvmargs=-Xmx1g\ndecode_input_request=FALSE\nservice_envelope=kserve"
    )
    assert config == Config(job_queue_size=7, decode_input_request=False, service_envelope="kserve")
    assert caplog.messages == [f"{tmp_path}/config.properties: without effect here: NUM_WORKERS, vmargs"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("job_queue_size=many", "job_queue_size = 'many', must be an integer of at least 1"),
        ("job_queue_size=0", "job_queue_size = '0', must be an integer of at least 1"),
        ("default_response_timeout=-1", "default_response_timeout = '-1', must be an integer of at least 1"),
        ("job_queue_size=1000000000", "job_queue_size = '1000000000', must be an integer of at least 1"),
        ("job_queue_size=+1", r"job_queue_size = '\+1', must be an integer of at least 1"),
        ("default_startup_timeout=0", "default_startup_timeout = '0', must be an integer of at least 1"),
        ("max_request_size=0", "max_request_size = '0', must be an integer of at least 1"),
        ("number_of_gpu=-1", "number_of_gpu = '-1', must be an integer of at least 0"),
        ("model_snapshot=[]", "model_snapshot = .*, must be an object of models by name"),
        ("allowed_urls=http://a/.*,(", r"allowed_urls = .*, must be regular expressions with commas \(missing \)"),
        ("decode_input_request=1", "decode_input_request = '1', must be true or false"),
        ("service_envelope=v3", "service_envelope = 'v3', must be one of body, json, kserve, kservev2"),
        ("model_snapshot={", "model_snapshot is not JSON"),
        ('model_snapshot={"models": []}', "model_snapshot = .*, must be an object of models by name"),
        ("models=[1]", "models = .*, must be an object of models by name"),
        (
            "disable_token_authorization=False",
            "disable_token_authorization = false, must be true: tokens are not checked here",
        ),
    ],
)
def test_a_value_that_cannot_be_is_named(tmp_path: Path, line: str, reason: str) -> None:
    """File, key, value and what it must be."""
    with pytest.raises(SettingError, match=rf"config\.properties: {reason}"):
        read(tmp_path, line)


def test_what_the_file_does_not_say_is_torchserves_default(tmp_path: Path) -> None:
    """But for the URLs that archives may come from: there it has all."""
    assert read(tmp_path, "") == Config(
        default_workers_per_model=0, default_response_timeout=120, default_startup_timeout=120, job_queue_size=100,
        number_of_gpu=None, decode_input_request=True, limit_max_image_pixels=True, enable_model_api=True,
        grpc_inference_port=0, grpc_management_port=0, max_request_size=None, allowed_urls=(),
    )  # fmt: skip


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    """Without the spaces behind it, which Java keeps."""
    lines = (
        "default_workers_per_model=0 ", "default_response_timeout=1", "job_queue_size=999999999", "number_of_gpu=2",
        "service_envelope= ", "limit_max_image_pixels=False", "enable_model_api=TRUE",
        'model_snapshot={"models": {}}', "allowed_urls= http://a/.* , , s3://b ", 'models={"m": {"1.0": {}}, "modelCount": 0}',
        "load_models=a.mar ",
    )  # fmt: skip
    assert read(tmp_path, "\n".join(lines)) == Config(
        default_workers_per_model=0, default_response_timeout=1, job_queue_size=999999999, number_of_gpu=2,
        service_envelope="", limit_max_image_pixels=False, enable_model_api=True,
        allowed_urls=["http://a/.*", "s3://b"], models={"m": {"1.0": {}}, "modelCount": 0}, snapshot={}, load_models="a.mar",
    )  # fmt: skip


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none, or it is too large to be one."""
    with pytest.raises(SettingError, match=r"/none: No such file or directory"):
        Config.read(tmp_path / "none", {})
    monkeypatch.setattr(properties, "_LARGEST_BYTES", 18)
    assert read(tmp_path, "job_queue_size=123").job_queue_size == 123
    with pytest.raises(SettingError, match=r"config\.properties: size must be at most 18 bytes"):
        read(tmp_path, "job_queue_size=1234")


def test_the_environment_counts_where_the_file_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """TorchServe's rule; KServe passes the envelope in this way. The key that says so has its effect."""
    caplog.set_level(logging.INFO)
    assert read(tmp_path, "", TS_SERVICE_ENVELOPE="kserve").service_envelope == ""
    text = "enable_envvars_config=true\nservice_envelope=body"
    assert read(tmp_path, text, TS_SERVICE_ENVELOPE="kserve").service_envelope == "kserve"
    assert read(tmp_path, text.replace("true", "TRUE"), TS_SERVICE_ENVELOPE="kserve").service_envelope == "kserve"
    assert read(tmp_path, text, TS_SERVICE_ENVELOPE="").service_envelope == "body"
    assert read(tmp_path, text.replace("true", "no"), TS_SERVICE_ENVELOPE="kserve").service_envelope == "body"
    assert read(
        tmp_path, f"{text}\ndisable_token_authorization=false", TS_DISABLE_TOKEN_AUTHORIZATION="true"
    ) == Config(service_envelope="body")
    with pytest.raises(SettingError, match="disable_token_authorization = false"):
        read(tmp_path, f"{text}\ndisable_token_authorization= False ")
    with pytest.raises(SettingError, match="disable_token_authorization = false"):
        read(tmp_path, text, TS_DISABLE_TOKEN_AUTHORIZATION="false")
    assert not caplog.messages


def test_a_configuration_without_tokens_is_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It says what is so here."""
    caplog.set_level(logging.INFO)
    assert read(tmp_path, "disable_token_authorization=true") == Config()
    assert not caplog.messages


def test_a_variable_in_a_value_is_the_environments(tmp_path: Path) -> None:
    """$$NAME$$, empty where there is none."""
    assert read(tmp_path, "model_store=/a/$$WHERE$$/$$NONE$$b", WHERE="x").model_store == "/a/x/b"


def test_a_snapshot_without_models_loads_none(tmp_path: Path) -> None:
    """TorchServe goes by its modelCount."""
    assert read(tmp_path, 'model_snapshot={"modelCount": 0, "models": {"a": {}}}').snapshot == {}
    assert read(tmp_path, 'model_snapshot={"modelCount": 1, "models": {"a": {}}}').snapshot == {"a": {}}


@pytest.mark.parametrize(
    "address",
    [
        "https://127.0.0.1:8443",
        "unix:/tmp/inference.sock",
        "127.0.0.1:8080",
        "http://a:65536",
        "http://a/b:1",
        "http://:1",
    ],
)
def test_an_address_that_nobody_can_listen_at_is_named(address: str) -> None:
    """When it is to be listened at, and not before: a configuration may have it for TorchServe alone."""
    with pytest.raises(SettingError, match=r"inference_address = '.*', must be http://HOST:PORT"):
        Config(inference_address=address).addresses()


def test_addresses_are_listened_at_once(tmp_path: Path) -> None:
    """KServe's samples have one port for two of them."""
    config = read(
        tmp_path,
        "inference_address=http://0.0.0.0:8085\nmanagement_address=http://0.0.0.0:8085\nmetrics_address=http://[::1]:8082\n"
        "grpc_inference_port=7070",
    )
    assert config.addresses() == [("0.0.0.0", 8085), ("::1", 8082), ("127.0.0.1", 7070)]
    assert read(tmp_path, "").addresses() == []
    config = read(tmp_path, "inference_address=http://a:65535/\ngrpc_inference_address=b\ngrpc_inference_port=1")
    assert config.addresses() == [("a", 65535), ("b", 1)]
