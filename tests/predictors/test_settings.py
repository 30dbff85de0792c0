"""Settings of a model's file: what is taken, and the words for what is not."""

from pathlib import Path

import pytest
from torpor.predictors.settings import ModelFile, SettingError, resolve


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
