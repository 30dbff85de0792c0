"""From a user's class to its signature: what `predict` takes and gives, read from its parameters and annotations.

    class Digits:
        def load(self, folder): ...
        def predict(self, image: Annotated[Tensor, "float32[rows, 8, 8]"]) -> Annotated[Tensor, "float32[rows, 10]"]: ...

The parameters' names are the inputs' names, a default makes one optional, `**inputs` takes whatever comes. Several
outputs, or declarations that should stand apart, go into class attributes `inputs` and `outputs` (name to declaration);
`pad` gives the pad value of an input where it is not 0. `request` and `requests` are torpor's own names.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import numpy as np

from ..signature import Signature, TensorSpec


class UserClassError(Exception):
    """The user's class cannot be served; the message says what to change."""


@dataclass(frozen=True)
class UserClass:
    """A class that can be served. as_numpy: the inputs that its annotations want as numpy arrays."""

    cls: type
    signature: Signature
    as_numpy: frozenset[str]
    output_name: str


def import_class(class_path: str, folder: Path | None) -> type:
    """The class `module:Class`; the module's file is looked for in `folder` first, then on the import path.

    The folder is appended to the import path, so that the module finds its neighbours and none of them hides an installed
    package. Raises UserClassError.
    """
    module_name, _, class_name = class_path.partition(":")
    if not module_name or not class_name:
        raise UserClassError(f"{class_path!r} is not of the form module:Class")
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))
        _model_folders.append(folder)
    file = folder / f"{module_name}.py" if folder is not None else None
    try:
        module = _import_file(module_name, file) if file and file.is_file() else importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserClassError(f"{class_path}: {error}") from error
    if folder is not None:
        _check_neighbours(class_path, folder)
    cls = getattr(module, class_name, None)
    if not isinstance(cls, type):
        raise UserClassError(f"{class_path}: {module_name} has no class {class_name}")
    return cls


_model_folders: list[Path] = []
"""The folders that models brought to the import path."""


def _check_neighbours(class_path: str, folder: Path) -> None:
    """A process has one module of each name: two models' own `helper.py` would be one and the same. Raises UserClassError."""
    for file in folder.glob("*.py"):
        loaded = getattr(sys.modules.get(file.stem), "__file__", None)
        if loaded and Path(loaded).parent in _model_folders and Path(loaded).parent != folder:
            raise UserClassError(f"{class_path}: {file.stem!r} is another model's module too ({loaded}), rename one")


def inspect_class(cls: type, method: str = "predict") -> UserClass:
    """Read the declaration of the class's method. Raises UserClassError.

    The class's attributes `inputs`, `pad` and `outputs` speak of what the class as a whole takes and gives: of a
    transformer's `postprocess` they declare the outputs alone, of its `preprocess` the inputs alone.
    """
    function = getattr(cls, method, None)
    if not callable(function):
        raise UserClassError(f"{cls.__name__} has no method {method}")
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError:  # an annotation under `if TYPE_CHECKING:` declares nothing
        hints = {}
    names: list[str] = []
    optional: set[str] = set()
    wants, takes_any = "", False
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.name in ("request", "requests"):
            wants = parameter.name
        elif parameter.kind is parameter.VAR_KEYWORD:
            takes_any = True
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise UserClassError(f"{cls.__name__}.{method}: inputs come by name, '{parameter.name}' cannot")
        else:
            names.append(parameter.name)
            if parameter.default is not parameter.empty:
                optional.add(parameter.name)
    texts = {name: text for name in names if (text := _declaration(hints.get(name)))}
    pads: Mapping[str, float] = {}
    if method != "postprocess":
        pads = getattr(cls, "pad", {})
        texts |= getattr(cls, "inputs", {})
    outputs = dict(getattr(cls, "outputs", {})) if method != "preprocess" else {}
    if not outputs and (text := _declaration(hints.get("return"))):
        outputs = {"output": text}
    if takes_any:
        names = list(texts) if texts else []
    try:
        for name in (*texts, *pads):
            if names and name not in names:
                raise ValueError(f"input '{name}' is declared, but {method} takes {', '.join(names)}")
        signature = Signature(
            tuple(names),
            {name: TensorSpec.parse(name, texts[name], pads.get(name, 0)) for name in texts},
            {name: TensorSpec.parse(name, text) for name, text in outputs.items()},
            frozenset(optional),
            wants,
        )
    except ValueError as error:
        raise UserClassError(f"{cls.__name__}: {error}") from None
    as_numpy = frozenset(name for name in names if _base(hints.get(name)) is np.ndarray)
    return UserClass(cls, signature, as_numpy, next(iter(outputs)) if len(outputs) == 1 else "output")


def _declaration(hint: Any) -> str | None:
    if get_origin(hint) is not Annotated:
        return None
    return next((extra for extra in get_args(hint)[1:] if isinstance(extra, str)), None)


def _base(hint: Any) -> Any:
    base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return get_origin(base) or base


def _import_file(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserClassError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if sys.modules.get(name) is module:  # else it was given up, and loaded anew meanwhile
            del sys.modules[name]
        raise
    return module
