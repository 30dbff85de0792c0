"""BF16 between its 16 bits and float32, against torch."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torpor.predictors.protocol.datatypes import BFLOAT16, bfloat16_from_float32, float32_from_bfloat16


@given(st.lists(st.floats(width=32) | st.sampled_from([3.3961776e38, 1.00390625, 1.01171875, -0.0])))
def test_float32_is_rounded_as_torch_rounds_it(values: list[float]) -> None:
    """To the nearest, ties to even, too large ones to infinity, every NaN to one."""
    array = np.array(values, np.float32)
    expected = torch.from_numpy(array).to(torch.bfloat16).view(torch.int16).numpy()
    assert bfloat16_from_float32(array).view(np.int16).tolist() == expected.tolist()


def test_every_bfloat16_is_a_float32() -> None:
    """All 65 536, NaNs with their payloads, and back for those that are numbers."""
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    wide = float32_from_bfloat16(bits.view(BFLOAT16))
    assert wide.view(np.uint32).tolist() == (bits.astype(np.uint32) << 16).tolist()
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(wide, expected)
    numbers = np.isfinite(wide)
    assert bfloat16_from_float32(wide[numbers]).view(np.uint16).tolist() == bits[numbers].tolist()
