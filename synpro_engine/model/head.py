"""The output layer that is no product: it holds the sharded vocabulary matrix and hands hidden states on.

Losses and log-probabilities come from one fused operation over (hidden, weight), so logits are never built.
"""

from __future__ import annotations

from typing import Any

from megatron.core import tensor_parallel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from torch import Tensor


class HiddenHead(ColumnParallelLinear):
    """Takes the place of GPTModel's output layer: same weight, same checkpoint entry, returns hidden states.

    Under sequence parallelism it gathers the sequence. The consumer's gradient of the hidden states is
    already summed over tensor-parallel ranks (the log-prob operation does that), so the way back only cuts
    out this rank's positions; summing again would count it tp times.
    """

    @classmethod
    def replacing(cls, layer: ColumnParallelLinear) -> HiddenHead:
        """A head that owns `layer`'s weight Parameter, attributes included (None when it is tied)."""
        head = cls(
            layer.input_size,
            layer.output_size,
            config=layer.config,
            init_method=layer.config.init_method,  # pyright: ignore[reportAttributeAccessIssue] - Megatron's own
            bias=False,
            # Else a second [V/tp, H] matrix would be allocated only to be thrown away:
            # 0.5 GB at 128,000 x 2048 in bf16.
            skip_weight_param_allocation=True,
            tp_group=layer.tp_group,  # pyright: ignore[reportArgumentType]
        )
        # The very Parameter: tied weights, attributes for gradient norms and checkpoint keys hang on its identity.
        head.weight = layer.weight
        return head

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, Any]:
        """[s or s/tp, b, H] -> ([s, b, H], None)."""
        if self.sequence_parallel:
            input_ = tensor_parallel.gather_from_sequence_parallel_region(
                input_, tensor_parallel_output_grad=False, group=self.tp_group
            )
        if input_.requires_grad:
            # Losses work batch-first, so their gradient arrives transposed. Below, torch would multiply a transposed
            # one by a weight as a batch of products with copies of that weight.
            input_.register_hook(lambda gradient: gradient.contiguous())
        return input_, None
