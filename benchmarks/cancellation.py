"""How much scores lose where they are differences of a running total.

`python -m benchmarks.cancellation` prints the table of kernels/synpro_kernels/ops/grad_dot/README.md in 15 s.

Measured on one synthetic linear layer: inputs with a common mean, output gradients that share a small component, so
that the examples' gradients agree a little (cosine with their mean about 0.1 to 0.3) and the accumulator grows with its
depth. Errors are to fp64, root mean square over examples and relative to the scores' own root mean square.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.common.command import command_line
from benchmarks.common.tables import markdown, markdown_row
from synpro_kernels import grad_dot_prefix
from synpro_kernels.ops.grad_dot.definition import grad_dot_prefix_definition

HEADINGS = ("tokens each", "examples", "depth", "norm / score", "running differences", "segment's block")
_WIDTH = 128
_SHARED = 0.03


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Relative root-mean-square errors of the scores of one microbatch."""

    running: float
    """Differences of the accumulator's dot product with V at each boundary."""
    own_block: float
    """Each example's own block, as `grad_dot_prefix` does it."""
    growth: float
    """Norm of the accumulator times that of V, over the scores' root mean square: what must cancel."""


def errors(*, tokens: int, examples: int, depth: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Errors:
    """Score `examples` of `tokens` tokens each, in an accumulator that already holds `depth` microbatches like it.

    dtype is that of x and grad_out: half-precision operands are rounded before either path sees them, so what is
    measured is the accumulator's fp32 alone.
    """
    layer = _Layer(seed)
    direction = layer.direction()
    accumulator = torch.zeros(_WIDTH, _WIDTH)
    for _ in range(depth):
        x, grad = layer.draw(tokens * examples, dtype)
        accumulator.addmm_(grad.float().t(), x.float())
    x, grad = layer.draw(tokens * examples, dtype)
    boundaries = list(range(0, tokens * examples + 1, tokens))
    truth, _ = grad_dot_prefix_definition(x.double(), grad.double(), direction.double(), boundaries)
    running = _by_differences(x, grad, direction, boundaries, accumulator=accumulator)
    by_block, total = grad_dot_prefix(x, grad, direction, boundaries, accumulator=accumulator)
    growth = float(total.norm() * direction.norm() / truth.square().mean().sqrt())
    return Errors(running=_relative(running, truth), own_block=_relative(by_block, truth), growth=growth)


def _by_differences(
    x: Tensor, grad_out: Tensor, direction: Tensor, boundaries: Sequence[int], *, accumulator: Tensor
) -> Tensor:
    """<G_i, V> from differences of the running accumulator's dots with V."""
    x, grad_out, direction = x.float(), grad_out.float(), direction.float()
    total = accumulator.clone()
    dots = [(total * direction).sum((-2, -1))]
    for start, end in pairwise(boundaries):
        total += grad_out[start:end].t() @ x[start:end]
        dots.append((total * direction).sum((-2, -1)))
    return torch.stack(dots, -1).diff(dim=-1)


class _Layer:
    """Draws tokens of one layer; everything follows from the seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._mean = 0.3 * self._normal(_WIDTH)
        self._shared = self._normal(_WIDTH, _WIDTH) * _WIDTH**-0.5

    def draw(self, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = self._mean + self._normal(tokens, _WIDTH)
        return x.to(dtype), (_SHARED * x @ self._shared.t() + 0.1 * self._normal(tokens, _WIDTH)).to(dtype)

    def direction(self) -> Tensor:
        """The gradient of tokens that are not scored, at the size of a probe's displacement."""
        x, grad = self.draw(4096, torch.float32)
        return 1e-3 * (grad.t() @ x) / (grad.t() @ x).norm()

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)


def _relative(scores: Tensor, truth: Tensor) -> float:
    return float((scores.double() - truth).square().mean().sqrt() / truth.square().mean().sqrt())


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, in Markdown, a line as soon as it is known."""
    command_line("cancellation", __doc__).parse_args(argv)
    print(markdown(HEADINGS, []))
    for tokens, examples, depth in (
        (512, 8, 0), (512, 32, 0), (64, 32, 0), (64, 256, 0), (64, 2048, 0), (8, 4096, 0), (1, 16384, 0),
        (64, 32, 8), (64, 32, 64), (64, 32, 512), (8, 256, 512), (1, 2048, 512),
    ):  # fmt: skip
        lost = errors(tokens=tokens, examples=examples, depth=depth)
        cells = f"{lost.growth:,.0f}", f"{lost.running:.1e}", f"{lost.own_block:.1e}"
        print(markdown_row([f"{tokens}", f"{examples}", f"{depth}", *cells]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
