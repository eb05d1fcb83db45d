"""Which layer goes where: Megatron layer specs of the families.

The one place that knows how specs differ between Megatron-Core releases. Submodules are given as classes
wherever possible, which every supported release builds the same way.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from synpro_engine.backend import platform
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.layers import (
    FlashAttention,
    FullWidthNormAttention,
    GatedMLP,
    HeadRMSNorm,
    NormAfterLayer,
    NormBeforeLayer,
    RMSNorm,
    SDPAttention,
    SharedRowsBySDPA,
)


def core_attention(dtype: torch.dtype, head_dim: int, shared: bool) -> Any:
    """What the backend chose, where its kernels take `dtype`; else torch's fused attention.

    shared: whether ranks share sequences (`context`), whose queries Transformer Engine would take for whole ones.
    """
    # flash-attn takes half precision only, and a kernel that works at one width of a head may refuse another.
    chosen = platform.attention(head_dim).uses if dtype in (torch.bfloat16, torch.float16) else None
    if chosen == "flash-attn":
        return FlashAttention
    if chosen == "transformer-engine" and not shared:
        from megatron.core.extensions.transformer_engine import TEDotProductAttention

        return type("TEAttention", (SharedRowsBySDPA, TEDotProductAttention), {})
    return SDPAttention


def _mlp_spec() -> Any:
    submodules = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    builder = getattr(GatedMLP, "as_mlp_submodule", None)
    if builder is not None:  # since 0.18 a spec here is only accepted with a warning
        return functools.partial(builder, submodules=submodules)
    return ModuleSpec(module=GatedMLP, submodules=submodules)


def layer_spec(config: ModelConfig, dtype: torch.dtype, shared: bool) -> ModuleSpec:
    """One block of the family."""
    norm: Any = IdentityOp if config.norm_after else RMSNorm
    head_norm: Any = HeadRMSNorm if config.qk_norm == "head" else None
    attention = ModuleSpec(
        module=FullWidthNormAttention if config.qk_norm == "width" else SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=core_attention(dtype, config.head_size, shared),
            linear_proj=RowParallelLinear,
            # Filled for norms by head only: Megatron would sum the gradients of a full-width
            # norm, which are split over ranks.
            q_layernorm=head_norm,
            k_layernorm=head_norm,
        ),
    )
    return ModuleSpec(
        module=NormAfterLayer if config.norm_after else NormBeforeLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,  # pyright: ignore[reportArgumentType]
            pre_mlp_layernorm=norm,
            mlp=_mlp_spec(),
            mlp_bda=get_bias_dropout_add,  # pyright: ignore[reportArgumentType]
        ),
    )


def block_spec(config: ModelConfig, layers: int, dtype: torch.dtype, shared: bool) -> TransformerBlockSubmodules:
    """`layers` blocks and the final norm (built only where the pipeline ends). shared: as in `core_attention`."""
    return TransformerBlockSubmodules(
        layer_specs=[layer_spec(config, dtype, shared)] * layers,
        layer_norm=RMSNorm,  # pyright: ignore[reportArgumentType]
    )
