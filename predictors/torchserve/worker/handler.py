"""From an archive's `handler` to what is called with its requests: a module's function, or a class's `handle`.

The lookup is TorchServe's (ts/model_loader.py): the module of the archive, else TorchServe's own of that name; in it the
function that `handler` names after a colon, or `handle`; else the one class that is defined there. What is said of a failed
import is different: the archive's own module is never reported as missing because of one that it imports.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

EXTRA = "pip install 'torpor[torchserve]'"

Handle = Callable[[Any, Any], Any]


class HandlerError(Exception):
    """A handler that cannot be loaded; the message says why, and what to do."""


def load(handler: str, folder: Path, context: Any) -> Handle:
    """The entry point, initialized. Raises HandlerError, and what the handler raises itself."""
    named, _, function = handler.partition(":")
    name = named.removesuffix(".py").rpartition("/")[2]
    module = _module(handler, name, folder)
    entry = getattr(module, function or "handle", None)
    if entry is not None:
        entry(None, context)  # TorchServe's way to let a function load its model
        return entry  # type: ignore[no-any-return]
    if function:
        classes = _classes(module)
        if not classes:
            raise HandlerError(f"handler {handler!r}: {name} has no {function}, and no class")
    cls = _only_class(handler, name, module)
    instance = cls()
    for method in ("initialize", "handle"):
        if not hasattr(instance, method):
            raise HandlerError(f"handler {handler!r}: class {cls.__name__} has no method {method}")
    instance.initialize(context)
    return instance.handle  # type: ignore[no-any-return]


def _module(handler: str, name: str, folder: Path) -> ModuleType:
    if not name.replace(".", "").isidentifier():
        raise HandlerError(f"handler {handler!r}: {name!r} is no module's name")
    is_own = (folder / f"{name}.py").is_file() or (folder / name).is_dir()
    try:
        if is_own or importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise _missing(handler, error) from error
    if importlib.util.find_spec("ts") is None:
        raise HandlerError(f"handler {handler!r} is no file of the archive; TorchServe's own need {EXTRA}")
    try:
        return importlib.import_module(f"ts.torch_handler.{name}")
    except ModuleNotFoundError as error:
        if error.name == f"ts.torch_handler.{name}":
            raise HandlerError(
                f"handler {handler!r} is neither a file of the archive nor one of TorchServe's"
            ) from None
        raise _missing(handler, error) from error


def _missing(handler: str, error: ModuleNotFoundError) -> HandlerError:
    package = (error.name or "").partition(".")[0]
    if package == "ts":
        return HandlerError(f"handler {handler!r} imports {error.name}, which comes with {EXTRA}")
    return HandlerError(f"handler {handler!r} imports {error.name}, which is not installed")


def _classes(module: ModuleType) -> list[type]:
    return [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]


def _only_class(handler: str, name: str, module: ModuleType) -> type:
    classes = _classes(module)
    if len(classes) != 1:
        there = ", ".join(cls.__name__ for cls in classes) or "none"
        raise HandlerError(
            f"handler {handler!r}: {name} must have a function `handle` or one class, its classes are: {there}"
        )
    return classes[0]
