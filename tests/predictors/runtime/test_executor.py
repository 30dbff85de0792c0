"""A user's class run in batches: what it gets, how its outputs are cut, and whom its errors reach."""

import asyncio
import math
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor
from torpor.predictors.errors import InvalidInput, ModelFailed, OutOfMemory, TorporError
from torpor.predictors.protocol.datatypes import bfloat16_from_float32, datatype_of, float32_from_bfloat16
from torpor.predictors.runtime.cores import limit_threads, usable_cores
from torpor.predictors.runtime.executor import Executor, Outputs
from torpor.predictors.runtime.user_class import UserClassError, import_class, inspect_class
from torpor.predictors.signature import Bound, Request


def loaded(cls: type, **options: Any) -> Executor:
    executor = Executor(inspect_class(cls), device="cpu", threads=1, **options)
    executor.load()
    return executor


def ask(
    executor: Executor, *requests: dict[str, Any], infos: list[Request] | None = None
) -> list[Outputs | TorporError]:
    parts = [executor.signature.bind({name: np.asarray(v) for name, v in request.items()}) for request in requests]
    if infos:
        parts = [Bound(p.arrays, p.rows, p.bucket, p.sizes, i) for p, i in zip(parts, infos, strict=True)]
    return executor.run(parts)


def values(results: list[Outputs | TorporError], name: str = "output") -> list[Any]:
    for result in results:
        assert isinstance(result, dict), result
    return [result[name].tolist() for result in results]  # type: ignore[index]


class Double:
    def predict(self, x: Annotated[Tensor, "float32[rows, 2]"]) -> Tensor:
        assert torch.is_inference_mode_enabled()
        return x * 2


def test_rows_of_several_requests_run_as_one_batch() -> None:
    """The class sees one tensor with all rows; each request gets its own back."""
    seen: list[tuple[int, ...]] = []

    class Watching(Double):
        def predict(self, x: Annotated[Tensor, "float32[rows, 2]"]) -> Tensor:
            seen.append(tuple(x.shape))
            return super().predict(x)

    one, two = np.ones((1, 2), np.float32), np.full((2, 2), 3, np.float32)
    assert values(ask(loaded(Watching), {"x": one}, {"x": two})) == [[[2, 2]], [[6, 6], [6, 6]]]
    assert seen == [(3, 2)]


def test_a_named_axis_is_padded_with_its_value_and_cut_back() -> None:
    """Rows of different lengths share a batch; the pad value is the input's own; outputs end where the request did."""
    seen: list[Any] = []

    class Tokens:
        inputs = {"ids": "int64[rows, tokens]", "mask": "int64[rows, tokens]"}
        outputs = {"next": "int64[rows, tokens]", "length": "int64[rows]"}
        pad = {"ids": 9}

        def predict(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
            seen.append((ids.tolist(), mask.tolist()))
            return {"next": ids + 1, "length": mask.sum(1)}

    short = {"ids": np.array([[1, 2]]), "mask": np.ones((1, 2), np.int64)}
    long = {"ids": np.array([[3, 4, 5]]), "mask": np.ones((1, 3), np.int64)}
    results = ask(loaded(Tokens), short, long)
    assert seen == [([[1, 2, 9], [3, 4, 5]], [[1, 1, 0], [1, 1, 1]])]
    assert values(results, "next") == [[[2, 3]], [[4, 5, 6]]]
    assert values(results, "length") == [[2], [3]]


def test_strings_arrive_as_object_arrays_of_bytes() -> None:
    """BYTES are numpy objects in and out, whether the class uses torch or not."""

    class Upper:
        def predict(self, text: Annotated[np.ndarray, "bytes[rows]"]) -> list[bytes]:
            assert text.dtype == object
            return [t.upper() for t in text]

    rows = np.array([b"a", b"bc"], object)
    assert values(ask(loaded(Upper), {"text": rows}, {"text": rows[:1]})) == [[b"A", b"BC"], [b"A"]]


def test_a_class_may_ask_for_numpy() -> None:
    """An annotation of ndarray keeps torch out of the way, and numpy scalars' arrays come back as they are."""

    class Plain:
        def predict(self, x: np.ndarray) -> np.ndarray:
            assert isinstance(x, np.ndarray)
            return x + 1

    assert values(ask(loaded(Plain), {"x": [1.0, 2.0]})) == [[2.0, 3.0]]


def test_what_numpy_gives_keeps_its_dtype() -> None:
    """float32 becomes bfloat16 only where that is declared."""

    class Plain:
        def predict(self, x: np.ndarray) -> np.ndarray:
            return x

    (result,) = ask(loaded(Plain), {"x": np.ones(1, np.float32)})
    assert isinstance(result, dict)
    assert result["output"].dtype == np.float32


def test_an_input_with_a_default_may_be_left_out() -> None:
    """Those who bring it and those who do not are not batched together."""

    class Scaled:
        def predict(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            return x if scale is None else x * scale

    executor = loaded(Scaled)
    assert values(ask(executor, {"x": [2]})) == [[2]]
    assert values(ask(executor, {"x": [2], "scale": [3]})) == [[6]]
    buckets = {
        executor.signature.bind({name: np.ones(1) for name in names}).bucket for names in (("x",), ("x", "scale"))
    }
    assert len(buckets) == 2


def test_any_inputs_can_be_taken() -> None:
    """`**inputs` gets what the caller sent, by name."""

    class Anything:
        def predict(self, **inputs: Tensor) -> Mapping[str, Tensor]:
            return {name + "_back": value for name, value in inputs.items()}

    assert values(ask(loaded(Anything), {"a": [1], "b": [2]}), "b_back") == [[2]]


def test_a_coroutine_predicts_as_well() -> None:
    """`async def predict` runs to its end on the device thread's own loop."""

    class Waiting:
        async def predict(self, x: Tensor) -> Tensor:
            await asyncio.sleep(0)
            return x + 1

    executor = loaded(Waiting)
    assert values(ask(executor, {"x": [1]})) == [[2]]
    assert executor._loop is not None
    executor._loop.close()


def test_collate_and_split_replace_torpors_own() -> None:
    """The class gets each request's arrays and gives each request's outputs."""

    class Ragged:
        def collate(self, items: list[dict[str, np.ndarray]]) -> dict[str, Any]:
            return {"x": [item["x"] for item in items]}

        def predict(self, x: list[np.ndarray]) -> list[float]:
            return [float(rows.sum()) for rows in x]

        def split(self, result: list[float], items: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
            return [np.full(len(item["x"]), total) for total, item in zip(result, items, strict=True)]

    assert values(ask(loaded(Ragged), {"x": [1.0, 2.0]}, {"x": [5.0]})) == [[3.0, 3.0], [5.0]]


def test_a_split_that_gives_too_few_fails() -> None:
    """The error says how many there must be; nobody gets another's outputs."""

    class Short:
        def predict(self, x: Tensor) -> Tensor:
            return x

        def split(self, result: Tensor, items: list[dict[str, np.ndarray]]) -> list[Tensor]:
            return [result[:1]]

    first, second = ask(loaded(Short), {"x": [1.0]}, {"x": [2.0]})
    assert isinstance(first, dict)  # each ran again by itself
    assert isinstance(second, dict)

    class Nothing(Short):
        def split(self, result: Tensor, items: list[dict[str, np.ndarray]]) -> list[Tensor]:
            return []

    (failed,) = ask(loaded(Nothing), {"x": [1.0]})
    assert isinstance(failed, ModelFailed)
    assert "split gave 0 items, must be 1, one for each of collate's" in str(failed)


def test_requests_come_one_a_row() -> None:
    """Headers, parameters and id of the request that a row belongs to."""

    class Who:
        def predict(self, x: Tensor, requests: list[Request]) -> list[str]:
            return [f"{r.id}:{r.headers['h']}:{r.parameters['p']}" for r in requests]

    infos = [Request({"h": "1"}, {"p": True}, "a"), Request({"h": "2"}, {"p": 0.5}, "b")]
    assert values(ask(loaded(Who), {"x": [1, 2]}, {"x": [3]}, infos=infos)) == [["a:1:True", "a:1:True"], ["b:2:0.5"]]


class Poisoned:
    def predict(self, x: Tensor) -> Tensor:
        if (x == 13).any():
            raise RuntimeError("secret detail")
        if (x == 14).any():
            raise InvalidInput("x = 14, must be another number")
        return x


def test_a_poison_request_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A batch that raises is halved until the culprit is alone; the details stay in the log."""
    results = ask(loaded(Poisoned), *({"x": [n]} for n in (1, 13, 3, 14, 5)))
    assert [r["output"].tolist() for r in results if isinstance(r, dict)] == [[1], [3], [5]]
    assert isinstance(results[1], ModelFailed)
    assert str(results[1]) == "the model raised RuntimeError; the server's log has the details"
    assert "secret detail" in caplog.text
    assert isinstance(results[3], InvalidInput)
    assert str(results[3]) == "x = 14, must be another number"


def test_a_poison_request_costs_two_runs_a_halving() -> None:
    """Of 32 requests one fails, with all of its rows; the batch and ten halves of it run, and 31 are answered."""
    runs: list[int] = []

    class Counting(Poisoned):
        def predict(self, x: Tensor) -> Tensor:
            runs.append(len(x))
            return super().predict(x)

    results = ask(loaded(Counting), *({"x": [100, 13 if n == 5 else n + 20]} for n in range(32)))
    assert [n for n, result in enumerate(results) if not isinstance(result, dict)] == [5]
    assert len(runs) == 1 + 2 * math.log2(32)


def test_each_run_of_a_half_is_seen_to_begin() -> None:
    """So that a batch is not taken for one that hangs as long as its halves run (`batcher.py`)."""
    seen: list[float] = []

    class Seen(Poisoned):
        def predict(self, x: Tensor) -> Tensor:
            seen.append(executor.halved_s)
            return super().predict(x)

    executor = loaded(Seen)
    ask(executor, *({"x": [n]} for n in (1, 2, 3, 13)))
    assert seen[0] == -math.inf
    assert len(set(seen)) == len(seen) == 5
    assert seen == sorted(seen)


def test_a_request_that_ends_the_process_costs_nobody_else_an_answer() -> None:
    """sys.exit in `predict` is a failure like any other."""

    class Leaving:
        def predict(self, x: Tensor) -> Tensor:
            if (x == 13).any():
                raise SystemExit(3)
            return x

    results = ask(loaded(Leaving), {"x": [1]}, {"x": [13]}, {"x": [2]})
    assert [type(result) for result in results] == [dict, ModelFailed, dict]


def test_a_failed_batch_is_let_go_before_its_halves_run() -> None:
    """What the error's frames hold is memory that the halves may need."""
    alive: list[int] = []

    class Holding(Poisoned):
        def predict(self, x: Tensor) -> Tensor:
            alive.append(sum(ref() is not None for ref in batches))
            batches.append(weakref.ref(x))
            return super().predict(x)

    batches: list[weakref.ref[Tensor]] = []
    ask(loaded(Holding), *({"x": [n]} for n in (1, 2, 3, 13)))
    assert set(alive) == {0}


class Hungry:
    """Has memory for two rows only: more than 64 TiB are no machine's."""

    def predict(self, x: Tensor) -> Tensor:
        if (x == 13).any():
            raise RuntimeError("poison")
        if len(x) > 2:
            torch.empty(len(x) << 46, dtype=torch.uint8)
        return x


def test_out_of_memory_is_nobodys_poison() -> None:
    """The batch is not halved here: all of its requests say how many rows were too many, for the policy to learn."""
    results = ask(loaded(Hungry), {"x": [1, 2]}, {"x": [3]})
    assert [type(result) for result in results] == [OutOfMemory] * 2
    assert [result.rows for result in results if isinstance(result, OutOfMemory)] == [3, 3]


def test_memory_and_poison_are_told_apart() -> None:
    """The half of a failing batch that runs out of memory names its own rows; the poison is still found."""
    results = ask(loaded(Hungry), {"x": [1]}, {"x": [13]}, {"x": [2, 3]}, {"x": [4]})
    assert [type(result) for result in results] == [dict, ModelFailed, OutOfMemory, OutOfMemory]
    assert [result.rows for result in results if isinstance(result, OutOfMemory)] == [3, 3]


def wrapped(error: Exception) -> Exception:
    try:
        raise ValueError("no answer") from error
    except ValueError as raised:
        return raised


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        wrapped(MemoryError()),
        wrapped(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")),
    ],
)
def test_every_allocators_error_is_out_of_memory(error: Exception) -> None:
    """Python's and numpy's, torch's on a device, and those that a class raises another one from."""

    class Raising:
        def predict(self, x: Tensor) -> Tensor:
            raise error

    (result,) = ask(loaded(Raising), {"x": [1]})
    assert isinstance(result, OutOfMemory)
    assert str(result) == "the device ran out of memory with rows = 1"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({}, "predict returned no outputs"),
        ([[1.0], [1.0, 2.0]], "output 'output' is a list, must be a tensor or an array"),
    ],
)
def test_what_is_no_output_is_the_models_failure(returned: Any, message: str) -> None:
    """The message says what it must be."""

    class Wrong:
        def predict(self, x: Tensor) -> Any:
            return returned

    (result,) = ask(loaded(Wrong), {"x": [1, 2]})
    assert isinstance(result, ModelFailed)
    assert message in str(result)


def test_what_split_gives_is_checked() -> None:
    """As what torpor cuts itself: rows and datatypes."""

    class Short:
        def predict(self, x: Tensor) -> Tensor:
            return x

        def split(self, result: Tensor, items: list[dict[str, np.ndarray]]) -> list[Tensor]:
            return [result[:1] for _ in items]

    (result,) = ask(loaded(Short), {"x": [1.0, 2.0]})
    assert isinstance(result, ModelFailed)
    assert "output 'output': shape = [1], must have 2 rows" in str(result)


def test_wrong_rows_are_the_models_failure() -> None:
    """What a batch returns must have a row for each row of the input."""

    class Short:
        def predict(self, x: Tensor) -> Tensor:
            return x[:-1]

    (result,) = ask(loaded(Short), {"x": [1, 2, 3]})
    assert isinstance(result, ModelFailed)
    assert "output 'output': shape = [2], must have 3 rows" in str(result)


def bfloat16(values: Any) -> np.ndarray:
    return bfloat16_from_float32(np.array(values, np.float32))


def test_bfloat16_reaches_torch_and_comes_back() -> None:
    """As a tensor of that dtype, padded with its own pad value, cut back, and never by way of another dtype."""
    seen: list[Tensor] = []

    class Half:
        pad = {"x": -1}

        def predict(self, x: Annotated[Tensor, "bfloat16[rows, n]"]) -> Annotated[Tensor, "bfloat16[rows, n]"]:
            seen.append(x.clone())
            return x / 2

    results = ask(loaded(Half), {"x": bfloat16([[1, 3.140625]])}, {"x": bfloat16([[4]])})
    assert seen[0].dtype is torch.bfloat16
    assert seen[0].tolist() == [[1, 3.140625], [4, -1]]
    outputs = [result["output"] for result in results if isinstance(result, dict)]
    assert [datatype_of(output) for output in outputs] == ["BF16", "BF16"]
    assert [float32_from_bfloat16(output).tolist() for output in outputs] == [[[0.5, 1.5703125]], [[2.0]]]


def test_bfloat16_is_float32_to_numpy() -> None:
    """Where numpy computes, in `predict` or `collate`, it gets float32, and gives either that or ml_dtypes'."""

    class Numpy:
        gives: Any = ml_dtypes.bfloat16

        def predict(self, x: Annotated[np.ndarray, "bfloat16[rows, 2]"]) -> Annotated[np.ndarray, "bfloat16[rows, 2]"]:
            assert x.dtype == np.float32
            return (x * 2).astype(self.gives)

    class Collated(Numpy):
        def collate(self, items: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
            return {"x": np.concatenate([item["x"] for item in items])}

    class Wide(Numpy):
        gives = np.float32

    for cls in (Numpy, Collated, Wide):
        (result,) = ask(loaded(cls), {"x": bfloat16([[1, 1.5]])})
        assert isinstance(result, dict), result
        assert float32_from_bfloat16(result["output"]).tolist() == [[2, 3]]


def test_load_gets_what_it_asks_for(tmp_path: Path) -> None:
    """Of folder, device and parameters only the ones that it names; it runs where `predict` does."""

    class Loading:
        def load(self, parameters: dict[str, Any], folder: Path, times: int = 1) -> None:
            assert torch.is_inference_mode_enabled()
            self.k = (parameters["k"] + len(folder.name)) * times

        def predict(self, x: Tensor) -> Tensor:
            return x * self.k

    executor = Executor(inspect_class(Loading), tmp_path / "abc", device="cpu", parameters={"k": 4})
    executor.load()
    assert values(ask(executor, {"x": [2]})) == [[14]]


def test_warm_up_is_made_from_the_declaration() -> None:
    """Fixed axes as declared, named ones of sixteen; None where the declaration does not tell."""

    class Declared:
        def predict(
            self, ids: Annotated[Tensor, "int64[rows, tokens]"], x: Annotated[Tensor, "float32[rows, 3]"]
        ) -> None: ...

    bound = loaded(Declared).warm_up(2)
    assert bound is not None
    assert {name: array.shape for name, array in bound.arrays.items()} == {"ids": (2, 16), "x": (2, 3)}
    assert loaded(Poisoned).warm_up(1) is None

    class Anything:
        def predict(self, **inputs: Tensor) -> None: ...

    class AnySize:
        def predict(self, x: Annotated[Tensor, "float32[rows, -1]"]) -> None: ...

    for cls in (Anything, AnySize):
        assert loaded(cls).warm_up(1) is None


@pytest.mark.parametrize("wants", ["request", "requests"])
def test_warm_up_is_a_request_like_any_other(wants: str) -> None:
    """Texts are empty ones, and a class that looks at its caller finds one that says nothing."""

    class Asking:
        def words(self, text: np.ndarray, request: Request) -> list[str]:
            return [one.decode() + request.headers.get("h", "-") for one in text]

    class One(Asking):
        def predict(self, text: Annotated[np.ndarray, "bytes[rows]"], request: Request) -> list[str]:
            return self.words(text, request)

    class Many(Asking):
        def predict(self, text: Annotated[np.ndarray, "bytes[rows]"], requests: list[Request]) -> list[str]:
            return self.words(text, requests[0])

    executor = loaded(One if wants == "request" else Many)
    bound = executor.warm_up(2)
    assert bound is not None
    assert values(executor.run([bound])) == [["-", "-"]]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class A:\n    pass", "A has no method predict"),
        ("class A:\n    def predict(self, *x): ...", "inputs come by name, 'x' cannot"),
        ("class A:\n    def predict(self, x, /): ...", "inputs come by name, 'x' cannot"),
        ("class A:\n    pad = {'y': 1}\n    def predict(self, x): ...", "input 'y' is declared, but predict takes x"),
        (
            "class A:\n    inputs = {'y': 'float32[rows]'}\n    def predict(self, x): ...",
            "input 'y' is declared, but predict takes x",
        ),
        ("class A:\n    inputs = {'x': 'float32'}\n    def predict(self, x): ...", "is not of the form"),
    ],
)
def test_a_class_that_cannot_be_served_says_why(source: str, message: str) -> None:
    """The message tells what to change."""
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    with pytest.raises(UserClassError, match=message):
        inspect_class(namespace["A"])


def test_a_models_folder_hides_no_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's module is found first by its own name; its neighbours come after what is installed."""
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    for installed in ("numpy", "wave"):  # one that is imported already, and one that is not
        (tmp_path / f"{installed}.py").write_text("raise RuntimeError('hidden')")
    (tmp_path / "neighbour.py").write_text("VALUE = 3")
    (tmp_path / "own_model.py").write_text(
        "import numpy, wave, neighbour\nclass A:\n    value = neighbour.VALUE\n    def predict(self, x): ..."
    )
    assert import_class("own_model:A", tmp_path).value == 3  # type: ignore[attr-defined]
    with pytest.raises(UserClassError, match="has no class B"):
        import_class("own_model:B", tmp_path)
    with pytest.raises(UserClassError, match="No module named"):
        import_class("absent_model:A", tmp_path)


def test_a_module_is_imported_as_python_imports_it(tmp_path: Path) -> None:
    """It finds itself among the modules, as its dataclasses need; one that fails leaves nothing there."""
    text = "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass A:\n    n: int = 3\n"
    (tmp_path / "looks_at_itself.py").write_text(text)
    for _ in range(2):
        assert import_class("looks_at_itself:A", tmp_path)().n == 3
    assert sys.path.count(str(tmp_path)) == 1
    (tmp_path / "fails_halfway.py").write_text("raise OSError('no weights')")
    with pytest.raises(OSError, match="no weights"):
        import_class("fails_halfway:A", tmp_path)
    assert "fails_halfway" not in sys.modules
    # As by a load that came after this one had been given up.
    (tmp_path / "fails_late.py").write_text("import sys; sys.modules[__name__] = sys; raise OSError('too late')")
    with pytest.raises(OSError, match="too late"):
        import_class("fails_late:A", tmp_path)
    assert sys.modules.pop("fails_late") is sys
    for incomplete in ("looks_at_itself:", ":A"):
        with pytest.raises(UserClassError, match=f"'{incomplete}' is not of the form module:Class"):
            import_class(incomplete, tmp_path)


def test_annotations_that_only_a_type_checker_sees_declare_nothing() -> None:
    """As under `if TYPE_CHECKING:`."""

    class Hidden:
        def predict(self, x: "Elsewhere") -> "Elsewhere": ...  # type: ignore[name-defined] # noqa: F821

    signature = inspect_class(Hidden).signature
    assert (signature.names, signature.inputs, signature.outputs) == (("x",), {}, {})


def test_the_only_output_has_the_name_that_is_declared() -> None:
    """What `predict` gives need not be a dict."""

    class Named:
        outputs = {"y": "float64[rows]"}

        def predict(self, x: Tensor) -> Tensor:
            return x

    assert values(ask(loaded(Named), {"x": [2.0]}), "y") == [[2.0]]


def test_inputs_that_come_as_any_are_those_declared() -> None:
    """Then nothing else comes."""

    class Declared:
        inputs = {"a": "float32[rows]", "b": "float32[rows]"}

        def predict(self, **inputs: Tensor) -> None: ...

    assert inspect_class(Declared).signature.names == ("a", "b")


def test_numpys_libraries_count_no_more_cores_than_there_are() -> None:
    """All by OpenMP's variable; what the user has set stays."""
    environ = {"MKL_NUM_THREADS": "7"}
    limit_threads(environ, 2)
    assert environ == {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "7"}
    limit_threads(environ, 1)
    assert environ["OMP_NUM_THREADS"] == "2"


def test_the_containers_limit_counts_as_cores(tmp_path: Path) -> None:
    """cgroups v2 and v1; without a limit, the scheduler's mask."""
    unlimited = usable_cores(tmp_path)
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert usable_cores(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("20000 100000\n")
    assert usable_cores(tmp_path) == 1
    for more_than_there_are in ("99999900000 100000\n", "max 100000\n"):
        (tmp_path / "cpu.max").write_text(more_than_there_are)
        assert usable_cores(tmp_path) == unlimited
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("150000")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert usable_cores(tmp_path) == 1
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1")  # v1's word for none
    assert usable_cores(tmp_path) == unlimited
