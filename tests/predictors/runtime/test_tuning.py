"""What the settings of [device] do to a model: each has an effect that can be seen, or is refused in words."""

import logging
import shutil
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torpor.predictors.errors import ModelFailed
from torpor.predictors.runtime.executor import Executor
from torpor.predictors.runtime.tuning import Tuning, modules_of
from torpor.predictors.runtime.user_class import UserClassError, inspect_class
from torpor.predictors.signature import TensorSpec


class Net(nn.Module):
    """Remembers what it computed with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2)
        self.seen: list[Tensor] = []
        self.computed: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        result = self.conv(x)
        self.computed.append(result.dtype)
        return result


class Images:
    def load(self) -> None:
        torch.manual_seed(0)
        self.net = Net()

    def predict(self, x: Annotated[Tensor, "float32[rows, 3, 4, 4]"]) -> Annotated[Tensor, "float32[rows, 4, 3, 3]"]:
        return self.net(x)


ROWS = np.random.default_rng(0).random((2, 3, 4, 4), np.float32)


def run(cls: type = Images, rows: np.ndarray = ROWS, **settings: Any) -> tuple[Any, Any]:
    """The instance, and the only output for the rows."""
    executor = Executor(inspect_class(cls), device="cpu", threads=1, tuning=Tuning(**settings))
    executor.load()
    (result,) = executor.run([executor.signature.bind({"x": rows})])
    assert isinstance(result, dict), result
    (output,) = result.values()
    return executor._model, output


def plain() -> np.ndarray:
    return run()[1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_converts_weights_and_inputs_but_not_outputs(dtype: str) -> None:
    """The network computes in it; callers get what is declared, a little less exact."""
    model, output = run(dtype=dtype)
    assert {p.dtype for p in model.net.parameters()} == {model.net.seen[0].dtype} == {getattr(torch, dtype)}
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, plain(), atol=0.02)
    assert not np.array_equal(output, plain())


def test_an_undeclared_output_is_float32_and_integers_stay() -> None:
    """Whatever the precision is, callers see the datatypes that they would see without it; BF16 needs no datatype."""

    class Undeclared:
        def load(self) -> None:
            self.net = nn.Linear(2, 2)

        def predict(self, x: Annotated[Tensor, "float32[rows, 2]"]) -> dict[str, Tensor]:
            y = self.net(x)
            return {"y": y, "at": y.argmax(1)}

    executor = Executor(inspect_class(Undeclared), device="cpu", threads=1, tuning=Tuning(dtype="bfloat16"))
    executor.load()
    (result,) = executor.run([executor.signature.bind({"x": np.ones((1, 2), np.float32)})])
    assert not isinstance(result, ModelFailed)
    assert {name: str(array.dtype) for name, array in result.items()} == {"y": "float32", "at": "int64"}  # type: ignore[union-attr]


def test_channels_last_reorders_weights_and_images() -> None:
    """The network's weights and its input are stored so; the answer is the same."""
    model, output = run(channels_last=True)
    for tensor in (model.net.conv.weight, model.net.seen[0]):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()
    np.testing.assert_allclose(output, plain(), atol=1e-5)


def test_autocast_computes_in_its_dtype_and_leaves_the_weights() -> None:
    """What torch thinks safe runs in bfloat16; weights stay, outputs are as declared."""
    model, output = run(autocast="bfloat16")
    assert {p.dtype for p in model.net.parameters()} == {torch.float32}
    assert model.net.computed == [torch.bfloat16]
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, plain(), atol=0.02)


needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler: no g++ here")


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compile_compiles_and_warm_up_covers_other_shapes() -> None:
    """What warm-up ran, one row and four, is enough for every number of rows and tokens that comes; torch's own modules
    are compiled too."""

    class Tokens:
        inputs = {"x": "float32[rows, tokens]"}
        outputs = {"y": "float32[rows, tokens]"}

        def load(self) -> None:
            self.net = nn.Sequential(nn.GELU(), nn.Softplus())

        def predict(self, x: Tensor) -> Tensor:
            return {"y": self.net(x)}  # type: ignore[return-value]

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    executor = Executor(inspect_class(Tokens), device="cpu", threads=1, tuning=Tuning(compile="default"))
    executor.load()
    for rows in (1, 4):
        bound = executor.warm_up(rows)
        assert bound is not None
        assert isinstance(executor.run([bound])[0], dict)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    with torch.compiler.set_stance("fail_on_recompile"):
        for rows, tokens in ((1, 9), (2, 33), (7, 5), (32, 16)):
            x = np.random.default_rng(rows).random((rows, tokens), np.float32)
            (result,) = executor.run([executor.signature.bind({"x": x})])
            assert isinstance(result, dict), result
            expected = nn.Softplus()(nn.GELU()(torch.from_numpy(x))).numpy()
            np.testing.assert_allclose(result["y"], expected, atol=1e-5)


def test_compile_that_reaches_nothing_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """A class that goes around its module's `forward` runs as before, with a warning."""

    class Around(Images):
        def predict(self, x: Annotated[Tensor, "float32[rows, 3, 4, 4]"]) -> Tensor:
            return self.net.conv(x)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run(Around, compile="default")
    assert "compile = default has no effect: Around.predict calls none of the modules" in caplog.text


@pytest.mark.parametrize("settings", [{"dtype": "float16"}, {"channels_last": True}, {"compile": "default"}])
def test_a_setting_that_finds_no_module_is_refused(settings: dict[str, Any]) -> None:
    """The message names the setting and says where modules are looked for."""

    class Hidden:
        def load(self) -> None:
            self.net = nn.Linear(2, 2).forward

        def predict(self, x: Tensor) -> Tensor:
            return self.net(x)

    with pytest.raises(
        UserClassError, match=rf"^{next(iter(settings))} = .* finds nothing to act on: Hidden has no nn"
    ):
        run(Hidden, **settings)


@pytest.mark.parametrize("place", ["attribute", "list", "tuple", "dict", "itself"])
def test_modules_are_found(place: str) -> None:
    """As an attribute, in a list, tuple or dict that is one, or as the instance itself."""

    class Places:
        def load(self) -> None:
            net = nn.Linear(2, 2)
            self.net = {"attribute": net, "list": [net], "tuple": (net,), "dict": {"a": net}}[place]
            self.weight = net.weight

        def predict(self, x: Tensor) -> Tensor:
            return x @ self.weight

    class Itself(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2))

        def predict(self, x: Tensor) -> Tensor:
            return x @ self.weight

    model, _ = run(Itself if place == "itself" else Places, np.ones((1, 2), np.float32), dtype="bfloat16")
    assert model.weight.dtype is torch.bfloat16


def test_an_instance_that_is_a_module_is_the_only_one() -> None:
    """What is in it is reached through it: it would be compiled twice."""
    net = nn.Sequential(nn.Linear(2, 2))
    assert list(modules_of(net)) == [net]


def test_modules_that_load_has_put_elsewhere_stay() -> None:
    """As one that is spread over several devices, by its own code."""

    class Spread:
        def __init__(self) -> None:
            self.net = nn.Linear(2, 2, device="meta")
            self.half = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))

    model = Spread()
    Tuning().apply(model, torch.device("cpu"))
    for module, expected in ((model.net, {"meta"}), (model.half, {"cpu", "meta"})):
        assert {parameter.device.type for parameter in module.parameters()} == expected


def test_inputs_are_changed_only_where_a_setting_means_them() -> None:
    """Numbers of tokens are no floating ones, and a memory format is for images alone."""
    tokens, row, image = torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3), torch.ones(2, 3, 4, 4)
    half = Tuning(dtype="bfloat16")
    assert (half.input(tokens).dtype, half.input(row).dtype) == (torch.int64, torch.bfloat16)
    last = Tuning(channels_last=True)
    assert last.input(row) is row
    assert last.input(image).is_contiguous(memory_format=torch.channels_last)


def test_outputs_are_as_declared() -> None:
    """A declared one keeps its own precision, another is float32, integers stay."""
    tuning, spec = Tuning(dtype="bfloat16"), TensorSpec.parse("y", "float64[rows]")
    y = torch.ones(2, dtype=torch.bfloat16)
    assert (tuning.output(y, spec).dtype, tuning.output(y, None).dtype) == (torch.float64, torch.float32)
    assert tuning.output(y.long(), None).dtype == torch.int64


def test_settings_for_torch_need_a_class_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class whose module does not import torch has no use for them."""
    monkeypatch.delitem(__import__("sys").modules, "torch")
    with pytest.raises(UserClassError, match='autocast = "bfloat16" has no effect: Images has no torch'):
        Executor(inspect_class(Images), tuning=Tuning(autocast="bfloat16")).load()
    with pytest.raises(UserClassError, match='device = "cuda:1" has no effect: Images has no torch'):
        Executor(inspect_class(Images), device="cuda:1").load()


def test_graphs_on_the_cpu_say_that_there_are_none(caplog: pytest.LogCaptureFixture) -> None:
    """The model is served all the same: the same model.toml may be tried on a laptop."""
    with caplog.at_level(logging.WARNING):
        _, output = run(cuda_graphs=True)
    assert "cuda_graphs = true has no effect: the device is cpu" in caplog.text
    np.testing.assert_array_equal(output, plain())
