"""From a model's class and settings to what runs it: its executors, and how its rows are batched."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..batching.policy import BatchingSettings
from ..settings import SettingError
from .devices import kinds
from .executor import Executor
from .tuning import Tuning
from .user_class import inspect_class


def assemble(
    cls: type, folder: Path | None, parameters: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[list[Executor], BatchingSettings]:
    """The executors, one for each device and none loaded yet, and their batching.

    folder, parameters: what `load` gets. Raises UserClassError, SettingError.
    """
    names = device_names(settings["device"])
    user_class = inspect_class(cls)
    tuning = Tuning(**{field.name: settings[field.name] for field in fields(Tuning)})
    executors = [
        Executor(user_class, folder, device=name, threads=settings["threads"], parameters=parameters, tuning=tuning)
        for name in names
    ]
    return executors, BatchingSettings.of(settings)


def device_names(text: str) -> list[str]:
    """The devices of the setting: "auto", or torch's names of devices that are here, with commas. Raises SettingError.

    The CPU may be there several times: for as many instances, which run at the same time.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        kind, _, index = name.partition(":")
        is_known = (kind in kinds() and (index.isdecimal() or not index)) or text == "auto"
        if not is_known or (names.count(name) > 1 and name != "cpu"):
            allowed = ", ".join(("auto", *kinds()))
            raise SettingError(
                f"device = {text!r}, must be one of {allowed}, or several of cuda:0, cuda:1 …, each once, or of cpu"
            )
    return names
