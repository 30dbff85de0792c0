"""From a model's file and settings to what runs it: the class imported, its executor, and how its rows are batched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..batching.policy import BatchingSettings
from ..settings import ModelFile
from .executor import Executor
from .user_class import import_class, inspect_class


def assemble(
    file: ModelFile, folder: Path | None, code_folder: Path, settings: Mapping[str, Any]
) -> tuple[Executor, BatchingSettings]:
    """The executor, not loaded yet, and its batching. folder: what `load` gets; code_folder: where the module is looked for.

    Raises UserClassError, and whatever the user's module raises when it is imported.
    """
    executor = Executor(
        inspect_class(import_class(file.class_path, code_folder)),
        folder,
        device=settings["device"],
        threads=settings["threads"],
        parameters=file.parameters,
    )
    batching = BatchingSettings(
        settings["max_batch_size"], settings["batch_timeout_micros"] / 1e6, settings["max_queue_rows"]
    )
    return executor, batching
