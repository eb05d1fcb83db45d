"""Products of halves are summed in fp32 whatever this torch offers for it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import add_product, mm, product, wide_addmm, wide_mm


@pytest.fixture(params=[(), ("addmm",), ("mm",), ("mm", "addmm")], ids=lambda lacks: "lacks " + " and ".join(lacks))
def torch_lacks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """torch's products refuse `out_dtype`, as 2.8 and 2.9 do for addmm, and 2.7 for both."""

    def without(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            if "out_dtype" in kwargs:
                raise RuntimeError("out_dtype is not known here")
            return operator(*args, **kwargs)

        return call

    for name in request.param:
        monkeypatch.setattr(torch, name, without(getattr(torch, name)))
    wide_mm.cache_clear()
    wide_addmm.cache_clear()
    yield request.param
    wide_mm.cache_clear()
    wide_addmm.cache_clear()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_products_of_halves_hold_whatever_torch_refuses(device: str, torch_lacks: tuple[str, ...], half: torch.dtype):
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(half) for shape in ((48, 320), (320, 16)))
    start = torch.randn(48, 16, generator=generator)
    exact = a.double() @ b.double()
    # Where a GPU's torch has no wide product, sums are still fp32, but each product is rounded to a half once.
    rounds = device == "cuda" and "mm" in torch_lacks
    allowed = 2**-8 * exact.abs().amax() if rounds else 1e-5 * exact.abs().amax()
    assert (mm(a, b) - exact).abs().amax() < 1e-5 * exact.abs().amax()
    assert (product(a, b, torch.empty(48, 16)) - exact).abs().amax() < allowed
    assert (add_product(a, b, start.clone()) - (start + exact)).abs().amax() < allowed
