"""Devices: how they are named, which errors break them, and what unloading leaves."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torpor.predictors.runtime.assembly import device_names
from torpor.predictors.runtime.devices import open_device
from torpor.predictors.runtime.devices.cuda import is_broken
from torpor.predictors.runtime.executor import Executor
from torpor.predictors.runtime.user_class import inspect_class
from torpor.predictors.settings import SettingError


def test_devices_are_named_as_in_torch() -> None:
    """One, or several with commas; auto takes the CPU where there is no GPU."""
    assert device_names("cpu") == ["cpu"]
    assert device_names("cuda:0, cuda:1") == ["cuda:0", "cuda:1"]
    assert device_names("cpu, cpu") == ["cpu", "cpu"]
    if not torch.cuda.is_available():
        assert open_device("auto").torch_device == torch.device("cpu")


@pytest.mark.parametrize("text", ["", "gpu", "cuda:x", "cuda:0,cuda:0", "auto,cpu", "cuda:0,", "../cpu", "cuda:-1"])
def test_an_unknown_device_is_refused_in_words(text: str) -> None:
    """The message has the value and what there is."""
    with pytest.raises(SettingError, match=r"device = .*, must be one of auto, cpu, cuda, or several of cuda:0"):
        device_names(text)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: an illegal instruction was encountered",
        "CUDA error: misaligned address",
        "CUDA error: unspecified launch failure",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: the launch timed out and was terminated",
    ],
)
@pytest.mark.parametrize("kind", [RuntimeError, torch.AcceleratorError])
def test_errors_that_cuda_does_not_recover_from(text: str, kind: type[Exception]) -> None:
    """Raised as such, or as the cause of what the user's code made of them."""
    error = kind(text)
    assert is_broken(error)
    wrapped = ValueError("no answer")
    wrapped.__cause__ = error
    assert is_broken(wrapped)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("an illegal memory access was encountered"),
    ],
)
def test_errors_that_leave_the_device_whole(error: Exception) -> None:
    """Out of memory, a wrong shape, and the user's own words."""
    assert not is_broken(error)


class Weights:
    """In a cycle, as models with back references are."""

    def __init__(self) -> None:
        self.tensor = torch.ones(1000)
        self.itself = self


class Loaded:
    unloaded = 0

    def load(self) -> None:
        self.weights = Weights()

    def predict(self, x: Tensor) -> Tensor:
        return x

    def unload(self) -> None:
        type(self).unloaded += 1


def test_unloading_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class's `unload` is called, the instance goes, even one that was frozen with everything else at the start, and
    then the device gives its memory back."""
    executor = Executor(inspect_class(Loaded), device="cpu", threads=1)
    executor.load()
    (result,) = executor.run([executor.signature.bind({"x": np.ones(1)})])
    assert isinstance(result, dict)
    instance, tensor = weakref.ref(executor._model), weakref.ref(executor._model.weights.tensor)
    left: list[object] = []
    monkeypatch.setattr(executor._device, "free", lambda: left.extend((instance(), tensor())))
    gc.collect()
    gc.freeze()
    try:
        executor.unload()
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
    assert left == [None, None]
    assert Loaded.unloaded == 1


def test_unloading_what_goes_by_itself_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection holds every thread up for as long as all objects take; only what cycles keep needs one."""

    class Plain(Loaded):
        def load(self) -> None:
            self.weights = set[int]()

    class Cyclic(Plain):
        def load(self) -> None:
            self.itself = self

    collections: list[object] = []
    monkeypatch.setattr(gc, "collect", lambda: collections.append(None))
    for cls, expected in ((Plain, 0), (Cyclic, 1)):
        executor = Executor(inspect_class(cls), device="cpu", threads=1)
        executor.load()
        gc.unfreeze()
        executor.unload()
        assert len(collections) == expected, cls
        assert not gc.get_freeze_count()  # garbage that comes later can go


def test_an_unload_that_raises_unloads(caplog: pytest.LogCaptureFixture) -> None:
    """What it raises is logged."""

    class Raising(Loaded):
        def unload(self) -> None:
            raise RuntimeError("nothing to unload")

    executor = Executor(inspect_class(Raising), device="cpu", threads=1)
    executor.load()
    executor.unload()
    assert executor._model is None
    assert "nothing to unload" in caplog.text


def test_a_model_that_was_unloaded_can_be_loaded_again() -> None:
    """The same executor, a new instance; a coroutine's loop is closed and made anew."""

    class Waiting:
        async def predict(self, x: Tensor) -> Tensor:
            return x + 1

    executor = Executor(inspect_class(Waiting), device="cpu", threads=1)
    for _ in range(2):
        executor.load()
        (result,) = executor.run([executor.signature.bind({"x": np.ones(1)})])
        assert isinstance(result, dict)
        assert result["output"].tolist() == [2.0]
        executor.unload()


def test_weights_are_not_unpickled_unless_the_users_code_says_so(tmp_path: Path) -> None:
    """`torch.load` in a class's `load` refuses a file that would run code, before it runs any."""
    ran = tmp_path / "ran"

    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (ran,))

    class Loading:
        def load(self, folder: Path) -> None:
            self.weights = torch.load(folder / "weights.pt")

        def predict(self, x: Tensor) -> Tensor:
            return x

    torch.save({"w": Malicious()}, tmp_path / "weights.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        Executor(inspect_class(Loading), tmp_path, device="cpu", threads=1).load()
    assert not ran.exists()
