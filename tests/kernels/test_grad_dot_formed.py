"""formed_dot: the inner product of a gradient with directions, as accurate for a large one as for a small one."""

import pytest
import torch

from synpro_kernels.ops.grad_dot import formed_dot
from synpro_kernels.testing.layers import drawn


@pytest.mark.parametrize("shape", [(7,), (0, 4), (3, 5), (1500, 800)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_the_sum_of_the_products(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    gradient, direction = drawn(shape, 0).to(dtype), drawn((2, *shape), 1)
    exact = gradient.double() * direction.double()
    scale = exact.norm() / 2**0.5  # a random sum is as large as this
    found = formed_dot(gradient, direction)
    assert found.dtype == torch.float64 and found.shape == (2,)
    assert (found - exact.reshape(2, -1).sum(1)).abs().max() <= 3e-7 * scale


def test_directions_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"direction: expected \[K, \*\(2, 3\)\], got \(1, 6\)"):
        formed_dot(torch.zeros(2, 3), torch.zeros(1, 6))
    assert formed_dot(torch.zeros(2, 3), torch.zeros(0, 2, 3)).shape == (0,)
