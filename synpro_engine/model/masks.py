"""Random bits that are a function of a key and a counter, and what is dropped by them.

They are SplitMix64's (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): its n-th
output is one function of key and n. All is arithmetic of integers, so that CPUs and GPUs make the same bits. Sixteen of
them decide an entry: a rate is taken to the nearest 1/65536, and what is kept is divided by the share that is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
LANES = 4
"""Entries that one output decides."""
_ONE = 2**16


def output(key: Tensor, number: Tensor | int) -> Tensor:
    """The generator's output by its number, int64; a key is itself such an output. Shapes broadcast.

    Numbers lie in [0, 2^63).
    """
    # Tensors of int64 wrap around, Python's integers are made to.
    step = (number + 1) * _signed(_GAMMA) if isinstance(number, Tensor) else _signed((number + 1) * _GAMMA)
    return _mixed((key + step).contiguous())


def lanes(key: Tensor, counter: Tensor, count: int) -> Tensor:
    """int16 [..., count], uniform over its range: those of the outputs by `counter` [..., ceil(count / 4)].

    key [..., 1].
    """
    return output(key, counter).view(torch.int16)[..., :count]


def words(count: int, device: torch.device) -> Tensor:
    """Counters, from 0, of the outputs that so many entries take: int64 [ceil(count / 4)]."""
    return torch.arange(-(-count // LANES), device=device)


def falls(lanes_: Tensor, rate: float) -> Tensor:
    """Which entries are dropped at this rate, bool of the lanes' shape."""
    return lanes_ < _of(rate) - _ONE // 2


def without(x: Tensor, dropped: Tensor, rate: float) -> Tensor:
    """x with 0 where it is dropped at this rate, the rest divided by the share that is kept. Shapes broadcast."""
    return x.masked_fill(dropped, 0.0) * (_ONE / (_ONE - _of(rate)))


def _of(rate: float) -> int:
    """How many of 65536 values drop an entry."""
    assert 0 <= rate < 1, rate
    return min(_ONE - 1, round(rate * _ONE))


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's output function of each entry, in place."""
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        x.bitwise_xor_(_shifted(x, shift)).mul_(_signed(factor))
    return x.bitwise_xor_(_shifted(x, 31))


def _shifted(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << 64 - by) - 1)  # torch shifts the sign in, the generator zeros


def _signed(value: int) -> int:
    """The int64 of a value's low 64 bits."""
    value &= 2**64 - 1
    return value - 2**64 if value >> 63 else value
