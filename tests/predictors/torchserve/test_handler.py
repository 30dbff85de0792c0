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


HANDLES = "def handle(data, context): return data and __name__"


@pytest.fixture
def torchserve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TorchServe's own handlers, of which there are none yet."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "ts"]:
        monkeypatch.delitem(sys.modules, name)
    place = folder / "installed/ts/torch_handler"
    place.mkdir(parents=True)
    for package in (place, place.parent):
        (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(folder / "installed"))
    yield place
    for name in [name for name in sys.modules if name.partition(".")[0] == "ts"]:
        del sys.modules[name]


def test_an_archives_own_is_before_torchserves(folder: Path, torchserve: Path) -> None:
    """A module, or a package; what is neither may be installed."""
    for name in ("own_k", "own_l", "own_m"):
        (torchserve / f"{name}.py").write_text(HANDLES)
    (folder / "own_k.py").write_text(HANDLES)
    (folder / "own_l").mkdir()
    (folder / "own_l/__init__.py").write_text(HANDLES)
    (folder / "installed/own_n.py").write_text(HANDLES)
    found = [load(name, folder, None)([{}], None) for name in ("own_k.py", "own_l", "own_m", "own_n")]
    assert found == ["own_k", "own_l", "ts.torch_handler.own_m", "own_n"]


@pytest.mark.parametrize(
    ("handler", "code", "reason"),
    [
        ("own_o", None, "handler 'own_o' is neither a file of the archive nor one of TorchServe's"),
        ("own_p", "import nowhere.at_all", "handler 'own_p' imports nowhere, which is not installed"),
        (
            "own_q",
            "import ts.nothing",
            "handler 'own_q' imports ts.nothing, which comes with pip install 'torpor[torchserve]'",
        ),
    ],
)
def test_what_torchserve_does_not_have_is_named(
    folder: Path, torchserve: Path, handler: str, code: str | None, reason: str
) -> None:
    """Or what its handler misses."""
    if code is not None:
        (torchserve / f"{handler}.py").write_text(code)
    with pytest.raises(HandlerError) as error:
        load(handler, folder, None)
    assert str(error.value) == reason


TWO = "class Two:\n    handle = initialize = print\nclass Another: ...\n"


@pytest.mark.parametrize(
    ("code", "function", "reason"),
    [
        ("", "", "own_r must have a function `handle` or one class, its classes are: none"),
        (TWO, "", "own_r must have a function `handle` or one class, its classes are: Another, Two"),
        (TWO, ":run", "own_r must have a function `handle` or one class, its classes are: Another, Two"),
        ("def handle(data, context): ...", ":run", "own_r has no run, and no class"),
        ("class Own:\n    def handle(self): ...", "", "class Own has no method initialize"),
        ("class Own:\n    def initialize(self): ...", "", "class Own has no method handle"),
    ],
)
def test_a_module_without_an_entry_point_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, function: str, reason: str
) -> None:
    """By what it has."""
    (folder / "own_r.py").write_text(code)
    with pytest.raises(HandlerError) as error:
        load(f"own_r.py{function}", folder, None)
    assert str(error.value) == f"handler {f'own_r.py{function}'!r}: {reason}"


def test_an_entry_point_loads_its_model_first(folder: Path) -> None:
    """A function is called without data; a class is initialized. Nothing else is called."""
    (folder / "own_s.py").write_text(
        "calls = []\ndef handle(data, context): calls.append((data, context))\nclass Other: ...\n"
    )
    load("own_s", folder, "context")
    (folder / "own_t.py").write_text(
        "calls = []\nclass Own:\n    handle = None\n    def initialize(self, context): calls.append(context)\n"
    )
    load("own_t", folder, "context")
    assert (sys.modules["own_s"].calls, sys.modules["own_t"].calls) == ([(None, "context")], ["context"])
