"""How ops are compared with their definition: tolerances that calibrate themselves, no magic constants."""

import torch
from torch import Tensor


def assert_as_accurate(
    actual: Tensor, plain: Tensor, truth: Tensor, what: str, *, factor: float = 2.0, terms: float = 0.0
) -> None:
    """Assert that `actual` is within `factor` times the error of a plain implementation of the same dtype.

    Errors are maxima of the absolute difference to the fp64 `truth`. A floor of 4 units in the last place of the
    largest true value (16 on a GPU, whose matrix units cut off what they shift out while adding) keeps a plain path
    that happens to be exact from demanding exactness. terms: the size of what cancels in the truth, of which fp32
    knows no more digits either.
    """
    assert actual.shape == truth.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    assert bool(torch.isfinite(actual).all()), f"{what}: not finite"
    truth = truth.detach()
    if truth.numel() == 0:
        return
    error = float((actual.detach().double() - truth).abs().max())
    allowed = factor * float((plain.detach().double() - truth).abs().max())
    # The second term is the oracle's own: where terms near 1 cancel, fp64 knows no more digits either.
    units = 16.0 if actual.is_cuda else 4.0
    floor = units * torch.finfo(actual.dtype).eps * float(truth.abs().max()) + torch.finfo(torch.float64).eps
    floor += 4.0 * torch.finfo(torch.float32).eps * terms
    assert error <= allowed + floor, f"{what}: error {error:.3e} exceeds {factor} x plain {allowed:.3e} + {floor:.3e}"
