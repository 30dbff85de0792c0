"""How a handler is found, and what is said of one that is not."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torpor.predictors.torchserve.worker.handler import HandlerError, load

CLASS = """
from json import JSONDecoder  # a class that is not defined here
class Own:
    def initialize(self, context): self.context = context
    def handle(self, data, context): return [self.context.name]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive's folder, imported from as in a worker."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("handler", "code"),
    [
        ("own_a.py", CLASS),
        ("own_b", CLASS),
        ("some/where/own_c.py", CLASS),
        ("own_d", "def handle(data, context): return context and [context.name]"),
        ("own_e:run", CLASS + "def run(data, context): return context and [context.name]"),
        ("own_f", CLASS + "class Two: ...\ndef handle(data, context): return [context.name]"),
        ("own_g:nothing", CLASS),
    ],
)
def test_an_entry_point_is_a_function_or_the_only_class(folder: Path, handler: str, code: str) -> None:
    """TorchServe's order: the function that is named, `handle`, then the class."""
    name = handler.partition(":")[0].removesuffix(".py").rpartition("/")[2]
    (folder / f"{name}.py").write_text(code)
    context = SimpleNamespace(name="it")
    assert load(handler, folder, context)([{}], context) == ["it"]


@pytest.mark.parametrize("handler", ["base_handler", "own_h.py"])
def test_without_torchserve_the_error_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, handler: str
) -> None:
    """For a handler of TorchServe's own, and for one that imports them."""
    monkeypatch.setitem(sys.modules, "ts", None)
    (folder / "own_h.py").write_text("from ts.torch_handler.base_handler import BaseHandler")
    with pytest.raises(HandlerError, match=r"pip install 'torpor\[torchserve\]'"):
        load(handler, folder, None)


def test_a_module_that_the_handler_misses_is_named(folder: Path) -> None:
    """TorchServe says that the handler is missing."""
    (folder / "own_i.py").write_text("import nowhere.at_all")
    with pytest.raises(HandlerError, match=r"handler 'own_i\.py' imports nowhere, which is not installed"):
        load("own_i.py", folder, None)


@pytest.mark.parametrize("handler", ["", "a b", "1", "own-j.py"])
def test_a_handler_that_is_no_name_is_refused(folder: Path, handler: str) -> None:
    """Before anything is imported."""
    with pytest.raises(HandlerError, match="is no module's name"):
        load(handler, folder, None)
