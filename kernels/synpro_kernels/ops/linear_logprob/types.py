"""The types that the parts of the op pass to each other, and those that it returns.

Shapes: T tokens, H width, V rows of this rank's weight (columns of its logits); C tokens and B columns of a block.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import operand, precise_dtype

IGNORE = -100
"""The label of a token that carries no loss, unless `ignore_index` says otherwise; PyTorch's default too."""
LOG_FLOOR = -1e4
"""Stands for log 0 where it meets a probability of 0 (0 * -inf would be NaN)."""


class LogProbs(NamedTuple):
    """Per-token results in nats, fp32 (fp64 for fp64 inputs), shaped like `target`; 0 where the target is ignored."""

    logprob: Tensor
    """log p(target)."""
    logsumexp: Tensor
    """log of the sum of exp(logit) over the vocabulary."""
    entropy: Tensor | None
    """-sum p log p; None unless asked for."""


class CrossEntropy(NamedTuple):
    """Losses in nats, fp32 (fp64 for fp64 inputs); scalars, or shaped like the target under reduction "none"."""

    loss: Tensor
    """What is minimised: cross-entropy plus z-loss; differentiable (but under "none", once)."""
    cross_entropy: Tensor
    """The part to report; no gradient."""
    z_loss: Tensor
    """z_loss times the squared log-sum-exp; no gradient."""
    along: Tensor | None = None
    """d loss / d weight along given directions; no gradient. Under a group this shard's part of it."""


@dataclass(frozen=True, kw_only=True)
class LogitSettings:
    """How products become logits, and which targets count: logit = softcap * tanh(product / softcap) / temperature."""

    temperature: float
    softcap: float | None
    ignore_index: int
    vocab_start: int
    """Global id of the weight's first row."""

    @property
    def scale(self) -> float:
        """Factor from tanh(product / softcap), or from the product where there is no cap, to the logit."""
        return (self.softcap or 1.0) / self.temperature

    @property
    def scale_in_bits(self) -> float:
        """The same to log2 e times the logit: what GPUs raise to a power is 2."""
        return self.scale * math.log2(math.e)


class Stats(NamedTuple):
    """What has been seen of each token's logits: m = max z, s = sum e^(z-m), u = sum e^(z-m) (z-m), z of the target."""

    maximum: Tensor
    sumexp: Tensor
    weighted: Tensor
    target_logit: Tensor

    @classmethod
    def empty(cls, tokens: int, like: Tensor, dtype: torch.dtype) -> "Stats":
        """Statistics of no logit at all."""
        # Three tensors, not one expanded: each is written in place.
        zeros = [like.new_zeros(tokens, dtype=dtype) for _ in range(3)]
        return cls(like.new_full((tokens,), -torch.inf, dtype=dtype), *zeros)

    def relative_to(self, top: Tensor) -> tuple[Tensor, Tensor]:
        """(sumexp, weighted) around another maximum `top`, not below this one; what is masked whole adds nothing."""
        # -inf minus -inf is NaN: such a part is empty, and any finite shift of a sum of 0 is right.
        shift = (self.maximum - top).nan_to_num(nan=0.0, neginf=LOG_FLOOR)
        decay = shift.exp()
        return decay * self.sumexp, decay * (self.weighted + self.sumexp * shift)

    def rows(self, tokens: slice) -> "Stats":
        """Views of some tokens' statistics."""
        return Stats(*(part[tokens] for part in self))


class FusedKernels(NamedTuple):
    """Kernels that make the products themselves, so that logits never leave the registers."""

    stats: Callable[..., Stats]
    """(shard, *, entropy): what the shard knows of each token's logits."""
    differentiate: Callable[["Shard", Tensor, Tensor | None, Tensor, int, Tensor], Tensor]
    """(shard, weight_BH, bias_B, coefficients_C5, start, out_CB): dL/dproduct of a block, its logits made again."""


class Kernels(NamedTuple):
    """One backend: what is done to a block between the matrix products, and how large its blocks are.

    A block [C, B] holds f(hidden weight^T + bias) in fp32 (fp64), f being tanh(. / softcap) or the identity; logits are
    `settings.scale` times it. `column_C` is the target's column in this rank's shard and `start` the block's first one
    there; a target outside the block belongs to another block or shard.
    """

    merge_: Callable[[Tensor, Stats, Tensor, int, LogitSettings], None]
    """(block_CB, stats, column_C, start, settings): fold a block's logits into `stats`; the block stays as it is."""
    differentiate: Callable[[Tensor, Tensor, Tensor, int, LogitSettings, torch.dtype], Tensor]
    """(block_CB, coefficients_C5, column_C, start, settings, dtype): dL/dproduct of a block as `dtype`, in the block's
    own memory where that is its dtype already."""
    block_shape: Callable[["Shard"], tuple[int, int]]
    """(C, B) of the blocks that are used once and made again when they are needed again."""
    fused: FusedKernels | None = None


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The output layer as one rank sees it: labelled tokens [T] against this rank's rows of the vocabulary [V]."""

    hidden_TH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    column_T: Tensor
    """int64: the target's column in this shard; outside [0, V) where another shard holds it."""
    settings: LogitSettings
    kernels: Kernels

    @property
    def tokens(self) -> int:
        """Number of tokens T."""
        return self.hidden_TH.shape[0]

    @property
    def vocab(self) -> int:
        """Number of columns V."""
        return self.weight_VH.shape[0]

    @property
    def precise(self) -> torch.dtype:
        """Dtype of logits, statistics and sums."""
        return precise_dtype(self.hidden_TH.dtype)

    def rows(self, tokens: slice | Tensor) -> "Shard":
        """Return the shard with some of the tokens only."""
        return replace(self, hidden_TH=self.hidden_TH[tokens], column_T=self.column_T[tokens])

    def columns(self, columns: slice) -> tuple[Tensor, Tensor | None]:
        """Weight [B, H] and bias [B] of some columns, as the products want them."""
        bias = self.bias_V
        # The slice first: widening all of a bf16 vocabulary matrix on a CPU would cost 4 V H bytes.
        return self.operand(self.weight_VH[columns]), None if bias is None else self.operand(bias[columns])

    def operand(self, tensor: Tensor) -> Tensor:
        """What the products multiply; fused kernels, which may be interpreted on a CPU, take halves as they are."""
        return tensor if self.kernels.fused is not None else operand(tensor)


class Gradients(NamedTuple):
    """Gradients of hidden [T, H], weight [V, H] and bias [V]; None where none was asked for."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class Needed(NamedTuple):
    """Which gradients are asked for; bias's only where there is a bias."""

    hidden: bool
    weight: bool
    bias: bool
