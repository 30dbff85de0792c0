"""A handler's tensors of lists: those that torch makes itself, number by number, to the bit."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torpor.predictors.torchserve.worker import tensors

numbers = st.floats() | st.integers(-(2**70), 2**70) | st.floats(width=32) | st.booleans()


def regular(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Lists in lists, each as long as its neighbours."""

    def of_shape(shape: list[int]) -> st.SearchStrategy[Any]:
        made: st.SearchStrategy[Any] = leaves
        for size in reversed(shape):
            made = st.lists(made, min_size=size, max_size=size)
        return made

    return st.lists(st.integers(1, 3), min_size=1, max_size=4).flatmap(of_shape)


irregular = st.recursive(numbers | st.none() | st.text(max_size=2), lambda inner: st.lists(inner, max_size=3))
anything = (
    regular(st.floats()) | regular(st.integers()) | regular(numbers) | irregular | st.lists(irregular, max_size=3)
)
dtypes = st.sampled_from([None, torch.float32, torch.float64, torch.int64, torch.float16, torch.bool])


def told(make: Any, data: Any, **named: Any) -> Any:
    """The tensor's dtype, device, shape and bytes; or what was raised."""
    try:
        made = make(data, **named)
    except Exception as error:
        return type(error), str(error)
    return (
        made.dtype,
        made.device,
        made.shape,
        made.requires_grad,
        made.contiguous().flatten().view(torch.uint8).tolist(),
    )


class Handler:
    """Its `preprocess` makes a tensor as it is told."""

    make: Any = staticmethod(torch.tensor)

    def preprocess(self, data: Any, **named: Any) -> Any:
        return self.make(data, **named)

    def handle(self, data: Any, context: Any) -> Any:
        raise NotImplementedError


@pytest.fixture(scope="module")
def quick() -> Handler:
    handler = Handler()
    tensors.quicken(handler.handle)
    return handler


@pytest.mark.parametrize("make", [torch.tensor, torch.as_tensor])
@given(data=anything, dtype=dtypes)
def test_it_is_the_tensor_that_torch_makes(quick: Handler, make: Any, data: Any, dtype: torch.dtype | None) -> None:
    """Or its error, for what makes none."""
    named = {} if dtype is None else {"dtype": dtype}
    quick.make = make
    assert told(quick.preprocess, data, **named) == told(make, data, **named)


@pytest.mark.parametrize(
    ("data", "dtype"),
    [([[0.5, 1], [2, 0.25]], None), ([1.5], torch.float64), ([[[3]], [[-4]]], None), ([[3, 4.5]], torch.float32)],
)
def test_lists_of_numbers_are_not_left_to_torch(data: Any, dtype: torch.dtype | None) -> None:
    made = tensors.tensor(data, dtype)
    assert made is not None
    assert torch.equal(made, torch.tensor(data, dtype=dtype))
    with torch.device("meta"):  # it goes there when it is made
        there = tensors.tensor(data, dtype)
    assert there is not None
    assert torch.equal(made, there)


def test_what_is_no_plain_list_is_left_to_torch() -> None:
    """Tuples, numbers of numpy's, lists of tensors, a list that holds itself; rows whose lengths differ."""
    endless: list[Any] = []
    endless.append(endless)
    half = np.float64(0.5)
    for data in ([(0.5,)], (0.5,), np.array([0.5]), [0.5, half], [0.5, [0.5]], endless, 0.5, [], [[]], [0.5, True]):
        assert tensors.tensor(data) is None
    for data in ([torch.tensor([0.5])], [[0.5, 0.5], [0.5], [0.5, 0.5, 0.5]], [half, 0.5], [True]):
        assert tensors.tensor(data, torch.float32) is None


def test_other_arguments_are_torchs(quick: Handler) -> None:
    quick.make = torch.tensor
    assert quick.preprocess([0.5], requires_grad=True).requires_grad
    quick.make = torch.as_tensor
    assert quick.preprocess([0.5], device="meta").is_meta
    shared = torch.ones(2)
    assert quick.preprocess(shared) is shared
    quick.make = lambda data: torch.tensor(data=data)
    assert quick.preprocess([0.5]).tolist() == [0.5]


def test_lists_that_are_no_data_are_nobodys(quick: Handler) -> None:
    quick.make = torch.zeros
    assert quick.preprocess([2, 3]).shape == (2, 3)


@pytest.mark.parametrize("make", [torch.tensor, torch.as_tensor])
def test_both_ways_to_make_one_are_looked_at(quick: Handler, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    quick.make = make
    monkeypatch.setattr(tensors, "tensor", lambda data, dtype: torch.tensor([7.0]))
    assert quick.preprocess([0.5]).tolist() == [7.0]


def test_the_default_dtype_and_device_hold(quick: Handler) -> None:
    quick.make = torch.tensor
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            made = quick.preprocess([[0.5]])
    finally:
        torch.set_default_dtype(torch.float32)
    assert (made.dtype, made.is_meta, made.shape) == (torch.float64, True, (1, 1))


def test_only_what_preprocess_calls_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler's own attributes, and the function's name, are what they were; the model sees no mode."""
    depths: list[int] = []

    class Deep(Handler):
        def preprocess(self, data: Any, **named: Any) -> Any:
            """Of rows."""
            self.seen = data
            depths.append(torch._C._len_torch_function_stack())
            raise ValueError("no rows")

    handler = Deep()
    tensors.quicken(handler.handle)
    with pytest.raises(ValueError, match="no rows"):
        handler.preprocess([1])
    assert (handler.seen, handler.preprocess.__name__, handler.preprocess.__doc__) == ([1], "preprocess", "Of rows.")
    assert (depths, torch._C._len_torch_function_stack()) == ([1], 0)


def test_a_handler_without_a_preprocess_is_as_it_was() -> None:
    """A function of a module, one without the method, one that can be given no attribute."""

    class Slotted:
        __slots__ = ()

        def preprocess(self) -> None: ...

        def handle(self, data: Any, context: Any) -> Any: ...

    tensors.quicken(lambda data, context: data)
    none = SimpleNamespace()
    none.handle = none.__repr__
    tensors.quicken(none.handle)
    assert not hasattr(none, "preprocess")
    tensors.quicken(Slotted().handle)
