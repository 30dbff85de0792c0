"""Settings: where a value comes from, what it may be, and the words for one that may not; `model.toml`."""

from pathlib import Path

import pytest
from torpor.predictors.settings import SETTINGS, ModelFile, Setting, SettingError, resolve

BY_NAME = {setting.name: setting for setting in SETTINGS}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("port", "0", 0),
        ("port", 65535, 65535),
        ("max_batch_size", "1", 1),
        ("request_timeout_s", 1, 1.0),
        ("request_timeout_s", "0.5", 0.5),
        ("device", "cuda:1", "cuda:1"),
        ("log_format", "json", "json"),
    ],
)
def test_a_value_in_range_is_taken(name: str, value: object, expected: object) -> None:
    """Text is converted, and an integer will do for a number."""
    read = BY_NAME[name].read(value, "here")
    assert (read, type(read)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("port", 65536, "here: port = 65536, must be in [0, 65535]"),
        ("port", -1, "here: port = -1, must be in [0, 65535]"),
        ("port", "http", "here: port = 'http', must be an integer in [0, 65535]"),
        ("port", 80.0, "here: port = 80.0, must be an integer"),
        ("port", True, "here: port = True, must be an integer"),
        ("port", [80], "here: port = [80], must be an integer"),
        ("max_batch_size", 0, "max_batch_size = 0, must be in [1, 65536]"),
        ("max_batch_size", 65537, "max_batch_size = 65537, must be in [1, 65536]"),
        pytest.param(
            "max_batch_size",
            1 << 20_000,
            "max_batch_size is an integer of more than 64 bits, must be in [1, 65536]",
            id="long",
        ),
        ("max_batch_size", "9" * 5000, "must be an integer in [1, 65536]"),
        ("request_timeout_s", 10**400, "request_timeout_s is an integer of more than 64 bits, must be in [0, 86400]"),
        ("request_timeout_s", "nan", "request_timeout_s = nan, must be in [0, 86400]"),
        ("request_timeout_s", "soon", "request_timeout_s = 'soon', must be a number in [0, 86400]"),
        ("device", 1, "device = 1, must be a text"),
        ("log_format", "xml", "log_format = xml, must be one of text, json"),
        ("log_format", 1, "log_format = 1, must be a text one of text, json"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(name: str, value: object, message: str) -> None:
    """And with where it came from."""
    with pytest.raises(SettingError) as error:
        BY_NAME[name].read(value, "here")
    assert message in str(error.value)


def test_every_default_is_in_its_own_range() -> None:
    """Whoever says nothing gets what he could have said."""
    for setting in SETTINGS:
        assert setting.read(setting.default, "default") == setting.default


def test_flags_come_before_the_environment_and_that_before_the_file() -> None:
    """The default is last; the environment's empty text says nothing."""
    flags = {"max_batch_size": "1"}
    environment = {"TORPOR_MAX_BATCH_SIZE": "2", "TORPOR_THREADS": "2", "TORPOR_DEVICE": ""}
    file = {"max_batch_size": 3, "threads": 3, "device": "cpu", "max_queue_rows": 3}
    values = resolve(flags, environment, file)
    assert (values["max_batch_size"], values["threads"], values["device"]) == (1, 2, "cpu")
    assert values["max_queue_rows"] == 3
    assert values["log_level"] == "info"
    assert values.keys() == BY_NAME.keys()


def test_an_empty_flag_says_so() -> None:
    """Unlike a variable, nobody gives one by accident: it takes back what the environment asks for."""
    assert resolve({}, {"K_SINK": "http://broker"}, {})["sink"] == "http://broker"
    assert resolve({"sink": ""}, {"K_SINK": "http://broker"}, {})["sink"] == ""
    assert resolve({}, {"TORPOR_SINK": "", "K_SINK": "http://broker"}, {})["sink"] == "http://broker"


@pytest.mark.parametrize(
    ("environment", "port"),
    [({}, 8080), ({"PORT": "81"}, 81), ({"TORPOR_PORT": "82"}, 82), ({"PORT": "81", "TORPOR_PORT": "82"}, 82)],
)
def test_knatives_port_counts_unless_torpors_own_is_given(environment: dict[str, str], port: int) -> None:
    """PORT is what Knative sets."""
    assert resolve({}, environment, {})["port"] == port


def test_the_quiet_before_the_end_is_queue_proxys_under_knative() -> None:
    """5 s elsewhere, an empty name included, and whatever is asked for."""
    assert resolve({}, {}, {})["drain_quiet_s"] == 5
    assert resolve({}, {"K_SERVICE": "s"}, {})["drain_quiet_s"] == 0
    assert resolve({}, {"K_SERVICE": ""}, {})["drain_quiet_s"] == 5
    assert resolve({"drain_quiet_s": "0"}, {}, {})["drain_quiet_s"] == 0


def test_a_wrong_value_names_its_source() -> None:
    """A flag, or a variable."""
    with pytest.raises(SettingError, match=r"^--port: port = 'x'"):
        resolve({"port": "x"}, {}, {})
    with pytest.raises(SettingError, match=r"^PORT: port = 'x'"):
        resolve({}, {"PORT": "x"}, {})


def test_a_number_without_a_range_is_any() -> None:
    """Both ends make a range."""
    assert Setting("n", int, 0, "").read(-5, "here") == -5


def test_a_model_file_is_read(tmp_path: Path) -> None:
    """Class, name, the settings of its two tables, and parameters of any kind."""
    path = tmp_path / "model.toml"
    path.write_text(
        'class = "m:C"\nname = "n"\n[batching]\nmax_batch_size = 4\n[device]\nthreads = 2\n[parameters]\na = [1, {b = 2}]\n'
    )
    file = ModelFile.read(path)
    assert (file.class_path, file.name) == ("m:C", "n")
    assert file.settings == {"max_batch_size": 4, "threads": 2}
    assert file.parameters == {"a": [1, {"b": 2}]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "class = None, must be 'module:Class'"),
        (b"class = 1", "class = 1, must be 'module:Class'"),
        (b'class = "C"', "class = 'C', must be 'module:Class'"),
        (b'class = "a:b:C"', "class = 'a:b:C', must be 'module:Class'"),
        (b'class = "m:C"\nname = 1', "name = 1, must be a text"),
        (b'class = "m:C"\nparameters = 1', "parameters must be a table"),
        (b'class = "m:C"\nbatching = 1', "batching is unknown"),
        (b'class = "m:C"\n[""]\nmodel_version = "1"', " is unknown, must be class"),
        (
            b'class = "m:C"\n[other]\na = 1',
            "other is unknown, must be class, name, model_version, [batching], [device], [transformer] or [parameters]",
        ),
        (b'class = "m:C"\n[batching]\nport = 1', "batching.port is unknown, must be one of batch_timeout_micros"),
        (b'class = "m:C"\n[batching]\nmax_batch_size = 0', "batching: max_batch_size = 0, must be in [1, 65536]"),
        (b"class = ", "Invalid value"),
        (b"\xff", "can't decode"),
        (b"a = " + b"9" * 5000, "4300 digits"),
        (b"a = " + b"[" * 5000, "recursion"),
    ],
)
def test_a_bad_model_file_says_what_is_wrong(tmp_path: Path, text: bytes, message: str) -> None:
    """And which file it is."""
    path = tmp_path / "model.toml"
    path.write_bytes(text)
    with pytest.raises(SettingError) as error:
        ModelFile.read(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_model_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """As the system has it."""
    with pytest.raises(SettingError, match=r"model\.toml.*No such file|No such file.*model\.toml"):
        ModelFile.read(tmp_path / "model.toml")


def model_file(tmp_path: Path, text: str) -> ModelFile:
    path = tmp_path / "model.toml"
    path.write_text(f'class = "m:M"\n{text}')
    return ModelFile.read(path)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
def test_a_switch_is_a_word_or_tomls_own(tmp_path: Path, text: str, value: bool) -> None:
    """true or false, in the file, the environment and the flag alike; false does not fall through to what comes after."""
    file = model_file(tmp_path, f"[device]\nchannels_last = {text}").settings
    other = {"channels_last": not value}
    assert resolve({}, {}, file)["channels_last"] is value
    assert resolve({}, {"TORPOR_CHANNELS_LAST": text}, other)["channels_last"] is value
    assert resolve({"channels_last": text}, {}, other)["channels_last"] is value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[device]\nchannels_last = 1", "channels_last = 1, must be true or false"),
        ('[device]\ndtype = "half"', "dtype = half, must be one of keep, float32, float16, bfloat16"),
        ('[device]\nautocast = "float32"', "autocast = float32, must be one of off, float16, bfloat16"),
        ('[device]\ncompile = "fast"', "compile = fast, must be one of off, default, reduce-overhead"),
        ("[batching]\nmodel_timeout_s = -1", r"model_timeout_s = -1.0, must be in \[0, 86400\]"),
    ],
)
def test_a_bad_value_is_refused_with_its_range(tmp_path: Path, line: str, message: str) -> None:
    """The message names the setting, its value and what is allowed."""
    with pytest.raises(SettingError, match=message):
        model_file(tmp_path, line)
