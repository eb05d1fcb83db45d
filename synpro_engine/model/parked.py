"""The error of a model that is asked while its weights are on the host. Who moves them is `train.parking`."""

from __future__ import annotations

from torch import Tensor


class ParkedError(RuntimeError):
    """A model was asked outside of the phases that it was said to be needed in."""

    def __init__(self) -> None:
        super().__init__("a model that is parked on the host was asked: the phase that needs it has not begun")


def check_here(weight: Tensor) -> None:
    """ParkedError where the weight's memory is on the host."""
    if not weight.numel():
        raise ParkedError
