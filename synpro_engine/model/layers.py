"""The layers that Megatron-Core lacks or cannot shard: norms, causal attention, OLMo-2's norm placement.

Shapes are Megatron's: [s, b, ...], with the sequence in front and, under sequence parallelism, split between
tensor-parallel ranks outside attention and MLP.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.nn.attention.bias import CausalBias, causal_lower_right

from synpro_engine.model.context import ContextShare
from synpro_engine.model.dropout import BlockDropping, Place
from synpro_kernels import rms_norm, swiglu

BiasDropoutAdd = Callable[[tuple[Tensor, Tensor | None], Tensor, float], Tensor]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467), replicated over tensor-parallel ranks.

    Under sequence parallelism each rank sees a part of the positions, so Megatron must sum the gradient:
    the `sequence_parallel` attribute asks it to.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        # Not Megatron's wrapper around a torch norm, which refuses sequence parallelism.
        return rms_norm(x, self.weight, self.eps)


class HeadRMSNorm(RMSNorm):
    """RMSNorm of each head alone, one weight for all heads (Qwen3, arXiv 2505.09388); [s, b, heads, hn] -> the same.

    The weight is replicated, but a tensor-parallel rank's gradient is of its own heads only: a part of the whole, as
    under sequence parallelism, and marked as such for whoever reads gradients. Megatron's trainer sums it because
    `config.qk_layernorm` is set, whatever the mark.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__(config, hidden_size, eps)
        # Not `config.sequence_parallel`: the gradient is partial under plain tensor parallelism too.
        self.weight.sequence_parallel = config.tensor_model_parallel_size > 1  # pyright: ignore[reportAttributeAccessIssue]


class FullWidthRMSNorm(nn.Module):
    """RMSNorm over all heads of all tensor-parallel ranks at once (OLMo-2, arXiv 2501.00656).

    The weight is split with the heads, so its gradient is complete on its rank; only the sum of squares is
    reduced. Its module must not sit behind `config.qk_layernorm`, which would sum the split gradients.
    """

    def __init__(self, config: TransformerConfig, width: int, group: torch.distributed.ProcessGroup) -> None:
        super().__init__()
        self.width, self.eps, self.group = width, config.layernorm_epsilon, group
        self.weight = nn.Parameter(torch.ones(width // group.size(), dtype=config.params_dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[s, b, heads on this rank, head_dim] -> the same; computed in fp32."""
        if self.group.size() == 1:
            return rms_norm(x.flatten(-2), self.weight, self.eps).view_as(x)
        # Squares of bf16 values in bf16 keep 8 bits, and this sum runs over all heads and over ranks.
        flat = x.flatten(-2).float()
        squares = flat.square().sum(-1, keepdim=True)
        if self.group.size() > 1:
            # Forward sums the ranks' squares; backward sums what each rank's heads send back to that sum.
            squares = tensor_parallel.reduce_from_tensor_model_parallel_region(squares, group=self.group)
            squares = tensor_parallel.copy_to_tensor_model_parallel_region(squares, group=self.group)
        normed = flat * torch.rsqrt(squares / self.width + self.eps) * self.weight.float()
        return normed.to(x.dtype).view_as(x)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Tell distributed checkpoints that the weight is split along its only dimension."""
        assert metadata is not None, "Megatron fills in the metadata before it asks a layer"
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=self.group,
            dp_cp_group=metadata["dp_cp_group"],
        )


class GatedMLP(MLP):
    """Megatron's gated feed-forward layer; its activation as one op, where Megatron makes several."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """[s, b, H] -> ([s, b, H], None), as Megatron's."""
        # What Megatron may hand over for experts or padding would be passed over.
        assert all(value is None for value in (*args, *kwargs.values())), "a dense layer takes hidden states alone"
        gate_up, bias = self.linear_fc1(hidden_states)
        assert bias is None, "these models have no biases"
        return self.linear_fc2(swiglu(gate_up))


class CausalAttention(MegatronModule):
    """Causal softmax attention: what both kernels below share.

    It sees the whole sequence of its rank's heads; under context parallelism its rank's queries see all keys.
    """

    reads_shared_rows = True
    """Whether it heeds a mask; some kernels pass over one where they are told to be causal."""
    dropping: BlockDropping | None = None
    share: ContextShare | None = None
    """Set when the model is built."""

    def __init__(
        self, config: TransformerConfig, layer_number: int, softmax_scale: float | None = None, **_unused: Any
    ) -> None:
        super().__init__(config=config)
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """query [s, b, np, hn], key and value [s, b, ng, hn] -> [s, b, np hn]; position i sees 0..i.

        attention_mask: [b, 1, s, s], added to the scores in place of that (`SharedRows.bias`). Under context
        parallelism s is this rank's share but for the mask's last dimension, which is the whole sequence.
        """
        assert attention_bias is None and packed_seq_params is None
        # With a cache in front, queries would see the wrong keys without an error.
        assert query.size(0) == key.size(0), "queries and keys must cover the same positions"
        # A share looks exactly like a whole sequence: attended to by itself it would give no error.
        share = self.share
        assert share is not None, "`build_model` says which positions this rank has"
        key, value = share.whole(key, value)
        dropped = self.dropping and self.dropping.attended(query, key, value, attention_mask, self.softmax_scale)
        if dropped is not None:
            return dropped
        if attention_mask is not None:
            return scaled_dot_product(query, key, value, self.softmax_scale, bias=attention_mask)
        return share.attended(query, key, value, self.attend)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The kernel; as `Attend` says."""
        raise AssertionError("a subclass brings the kernel")


class SDPAttention(CausalAttention):
    """torch's fused scaled_dot_product_attention."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As `Attend` says."""
        return scaled_dot_product(query, key, value, self.softmax_scale)


class SharedRowsBySDPA:
    """Before a kernel of Megatron's among a class's bases: torch's attention takes the rows that come with a mask.

    Transformer Engine's reads no mask where the layer is causal, and would let each continuation see the others. Its
    dropout is not ours either.
    """

    reads_shared_rows = True
    dropping: BlockDropping | None = None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Shapes and mask as in `CausalAttention.forward`."""
        dropped = self.dropping and self.dropping.attended(query, key, value, attention_mask, None)
        if dropped is not None:
            return dropped
        if attention_mask is not None:
            return scaled_dot_product(query, key, value, None, bias=attention_mask)
        kernel: Any = super()
        return kernel.forward(query, key, value, attention_mask, *args, **kwargs)


def scaled_dot_product(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, bias: Tensor | None = None
) -> Tensor:
    """torch's attention, as `Attend` says; or of any queries, bias: [b, 1, q, k], -inf for what each does not see."""
    q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
    mask = bias
    if mask is None and q.size(2) < k.size(2):
        mask = _seen_from_the_end(q, k.size(2))
    return attention_of_groups(q, k, v, mask, scale).permute(2, 0, 1, 3).flatten(-2)


def attention_of_groups(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """torch's attention of queries [b, np, q, hn] over keys and values [b, ng, k, hn]; [b, np, q, hn].

    mask: as torch takes it; None: causal, of as many queries as keys.
    """
    grouped = q.size(1) != k.size(1)
    if grouped and not _kernels_take_groups(q, mask):
        k, v = (x.repeat_interleave(q.size(1) // k.size(1), 1) for x in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


def _kernels_take_groups(q: Tensor, mask: Tensor | None) -> bool:
    """Whether a fused kernel of torch's takes fewer key heads than query heads; else it would hold every score."""
    # On a GPU that is FlashAttention's alone, which has no fp32 and no mask but the causal ones. The other one with
    # masks wants as many key heads, and copies of keys are small beside [b, np, q, k] scores.
    causal = mask is None or isinstance(mask, CausalBias)
    return causal and q.dtype != torch.float32 if q.is_cuda else _cpu_kernel_takes_groups()


@functools.cache
def _cpu_kernel_takes_groups() -> bool:
    """Whether this torch's does; that of 2.6 does not."""
    q, k = torch.empty(1, 2, 2, 8), torch.empty(1, 1, 2, 8)
    return torch._fused_sdp_choice(q, k, k, is_causal=True, enable_gqa=True) != SDPBackend.MATH.value


def _seen_from_the_end(q: Tensor, keys: int) -> Tensor:
    """What the queries [b, np, s, hn] see of so many keys, of which they are the last."""
    # `is_causal` aligns the mask at the top left. This tensor is none to torch's fused kernels in half precision, that
    # align it so themselves.
    if q.is_cuda and q.dtype != torch.float32:
        return causal_lower_right(q.size(2), keys)
    return _bias_from_the_end(q.size(2), keys, q.dtype, q.device)


def forget_masks() -> None:
    """Free the masks that are kept for the next pass, when no further one is to come."""
    _bias_from_the_end.cache_clear()


# Both parts of a context-parallel share ask for one in each layer; of a mask of bools torch makes such a one each time,
# and every layer's would be kept for the backward pass.
@functools.lru_cache(maxsize=2)
def _bias_from_the_end(queries: int, keys: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a later backward pass may keep it
        seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
        return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)


class FlashAttention(CausalAttention):
    """The flash-attn package's kernel (CUDA, bf16 or fp16)."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As `Attend` says."""
        # Here, since importing it anywhere else would make a broken wheel break models that do not use it.
        from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]

        q, k, v = (x.transpose(0, 1) for x in (query, key, value))
        # Fewer queries than keys are the last ones to it, since flash-attn 2.1.
        out = flash_attn_func(q, k, v, causal=True, softmax_scale=self.softmax_scale)
        return out.transpose(0, 1).flatten(-2)


class FullWidthNormAttention(SelfAttention):
    """Megatron's self-attention with queries and keys normalised over their full width."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert self.q_layernorm is None and self.k_layernorm is None, "the spec must leave these slots empty"
        group = self.pg_collection.tp
        self.q_layernorm = FullWidthRMSNorm(self.config, self.query_projection_size, group)
        self.k_layernorm = FullWidthRMSNorm(self.config, self.kv_projection_size, group)


class NormBeforeLayer(TransformerLayer):
    """x + f(norm(x)), as in Llama: Megatron's own order."""

    norm_after = False
    dropping: BlockDropping | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Megatron enables gradients around the residual add for an old compiler's sake; under no_grad that
        # would build a graph through the norms that nobody frees.
        self.bias_dropout_add_exec_handler = contextlib.nullcontext
        self.self_attn_bda = functools.partial(self._adding, Place.ATTENTION, None)
        self.mlp_bda = functools.partial(self._adding, Place.MLP, None)

    def forward(self, *args: Any, attention_bias: Any = None, **kwargs: Any) -> Any:
        """As Megatron's; `attention_bias` is what the chunk hands over for dropout (`Dropping`)."""
        if self.dropping is None:
            return super().forward(*args, attention_bias=attention_bias, **kwargs)
        with self.dropping.taking(attention_bias) as rest:
            return super().forward(*args, attention_bias=rest, **kwargs)

    def _adding(self, place: Place, norm: nn.Module | None, training: bool, fused: bool) -> BiasDropoutAdd:
        """What Megatron asks for before each residual add: a function that norms and drops first."""
        # Fused or not as Megatron asks; norm and dropout stay outside of what it compiles.
        add = get_bias_dropout_add(training, fused)

        def normed_add(output_and_bias: tuple[Tensor, Tensor | None], residual: Tensor, p: float) -> Tensor:
            output, bias = output_and_bias
            assert bias is None and not p, "these models have no biases, and masks of their own"
            output = output if norm is None else norm(output)
            output = output if self.dropping is None else self.dropping.branch(output, place)
            return add((output, None), residual, p)

        return normed_add


class NormAfterLayer(NormBeforeLayer):
    """x + norm(f(x)), as in OLMo-2. Build it with identity norms on the sublayers' inputs.

    The norm stands between the row-parallel reduction and the residual add, a place for which layer specs
    have no slot; so it goes into the function that adds.
    """

    norm_after = True

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.post_self_attn_layernorm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)
        self.post_mlp_layernorm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)
        self.self_attn_bda = functools.partial(self._adding, Place.ATTENTION, self.post_self_attn_layernorm)
        self.mlp_bda = functools.partial(self._adding, Place.MLP, self.post_mlp_layernorm)
