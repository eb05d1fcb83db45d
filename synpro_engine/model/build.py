"""Building a model on this rank: the one place that meets GPTModel and the flags that keep it right.

Each of Megatron's settings that would go wrong without an error is forced or refused here.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig

from synpro_engine.backend import platform
from synpro_engine.backend.shim import shim_active
from synpro_engine.backend.spans import megatron_timers
from synpro_engine.config import UserError
from synpro_engine.dist import Topology
from synpro_engine.model.config import ModelConfig, Recompute, check_layout
from synpro_engine.model.context import ContextShare
from synpro_engine.model.dropout import Dropping
from synpro_engine.model.head import HiddenHead
from synpro_engine.model.model import Model
from synpro_engine.model.offload import Offload
from synpro_engine.model.rotary import inverse_frequencies
from synpro_engine.model.shared_rows import RowRotary
from synpro_engine.model.specs import block_spec
from synpro_engine.model.state import init_weights, local_slots

_PARTITION_DIM = {"rows": 0, "qkv": 0, "gate_up": 0, "columns": 1}
_RECOMPUTE: dict[Recompute, dict[str, Any]] = {
    "none": {},
    "mlp": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}
"""Megatron's settings for each."""


def build_model(
    config: ModelConfig,
    topology: Topology,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int | None = 0,
    recompute: Recompute = "none",
    offload_layers: int = 0,
) -> Model:
    """Build this rank's part of the model.

    seed: initial weights, the same in every layout; None leaves them undefined, for a loader to fill. recompute: what
    training makes again in its backward pass (arXiv 2205.05198). offload_layers: of the whole model, whose activations
    wait on the host for theirs; every chunk has its share of them, rounded up, its first.
    Raises UserError when the layout does not divide the model, or a rank's share is larger than its memory.
    """
    # Before Megatron, which asserts on the same without a setting's name.
    check_layout(config, topology.layout)
    _check_room(config, topology, dtype)
    assert topology.in_force, f"Megatron goes by another layout than {topology.layout}; see `Topology.divided`"
    logging.getLogger("megatron.core.models.gpt.gpt_model").setLevel(logging.ERROR)  # its deprecation notice
    settings = megatron_config(config, topology, dtype, recompute)
    if offload_layers > config.layers:
        raise UserError(f"`pretrain.offload_layers`: {offload_layers} are more than the model's {config.layers} layers")
    if offload_layers:  # a weight that autograd's hooks have seen has no attributes, by which this finds its buffer
        settings.gradient_accumulation_fusion = False
    # One settings object for all chunks: schedules read the hooks of the first, and they must be those of every chunk.
    chunks = [_build_chunk(config, topology, settings, stage, dtype) for stage in range(topology.vpp)]
    for chunk in chunks if offload_layers else ():
        share = -(-offload_layers // (topology.pp.size * topology.vpp))
        chunk.offload = Offload(chunk, share, inputs_alone=recompute == "full")  # pyright: ignore[reportArgumentType]
    model = Model(config=config, topology=topology, chunks=chunks, dtype=dtype)
    # Older releases set the attributes by which Megatron counts a split parameter on every rank in gradient norms only
    # while initialising weights; without them clipping is wrong without an error.
    for slot in local_slots(model):
        # A "whole" parameter has no entry: it is replicated, and counts in a norm on the
        # first tensor-parallel rank only.
        dim = _PARTITION_DIM.get(slot.kind)
        if dim is not None and not hasattr(slot.parameter, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(slot.parameter, True, dim, 2 if slot.kind == "gate_up" else 1)
    if seed is not None:
        init_weights(model, seed)
    return model


def _check_room(config: ModelConfig, topology: Topology, dtype: torch.dtype) -> None:
    """A slip in a size would otherwise end, after minutes, in an allocator's words."""
    on_gpu = topology.device.type == "cuda"
    memory = (
        torch.cuda.get_device_properties(topology.device).total_memory
        if on_gpu
        else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    # The weights alone, at their least: what passes this may still not fit, what fails it certainly does not.
    needed = config.parameter_count() * dtype.itemsize // (topology.tp.size * topology.pp.size)
    if needed > memory:
        raise UserError(
            f"`model`: its weights need {needed / 2**30:,.0f} GiB on each rank, which has {memory / 2**30:,.0f} GiB"
        )


def megatron_config(
    config: ModelConfig, topology: Topology, dtype: torch.dtype, recompute: Recompute = "none"
) -> TransformerConfig:
    """Megatron's settings for this model on this machine and layout."""
    interleaved = topology.vpp > 1
    flags: dict[str, Any] = platform.megatron_flags()
    return TransformerConfig(
        num_layers=config.layers,
        hidden_size=config.d_model,
        num_attention_heads=config.heads,
        num_query_groups=config.kv_heads,
        kv_channels=config.head_size,
        ffn_hidden_size=config.ffn,
        tensor_model_parallel_size=topology.tp.size,
        pipeline_model_parallel_size=topology.pp.size,
        virtual_pipeline_model_parallel_size=topology.vpp if interleaved else None,
        context_parallel_size=topology.cp.size,  # by which a pipeline's messages are of shares
        sequence_parallel=topology.sequence_parallel,
        apply_rope_fusion=True,  # by one op of ours, for rows with positions of their own as well
        normalization="RMSNorm",
        layernorm_epsilon=config.norm_eps,
        gated_linear_unit=True,
        # Gated with SiLU is SwiGLU; Megatron's default activation is GELU, whatever the gate.
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=config.qkv_bias,
        qk_layernorm=config.qk_norm == "head",  # sums these norms' gradients over tensor-parallel ranks
        # Megatron's defaults are 0.1, with masks from a generator's state. Ours (`dropout`) are functions of the place:
        # no step draws a random number, on which exact resuming and equal layouts rest.
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        # What stages receive into: left out, a pipeline in bf16 has no type for its buffers.
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        perform_initialization=False,  # `init_weights` draws them, alike in every layout
        # Two stages have the same neighbour on both sides: batched sends then pair up wrongly, without an
        # error, in the interleaved schedule.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=False,
        batch_p2p_sync=False,
        timers=megatron_timers,
        **_RECOMPUTE[recompute],
        **flags,
    )


def _build_chunk(
    config: ModelConfig, topology: Topology, settings: TransformerConfig, vp_stage: int, dtype: torch.dtype
) -> GPTModel:
    first = topology.is_first_stage and vp_stage == 0
    last = topology.is_last_stage and vp_stage == topology.vpp - 1
    # Equal stages, as `check_layout` has made sure: Megatron numbers its layers by the same division.
    layers = config.layers // (topology.pp.size * topology.vpp)
    with topology.device:  # whatever Megatron allocates without naming a device
        chunk = GPTModel(
            config=settings,
            transformer_layer_spec=block_spec(config, layers, dtype, topology.cp.size > 1),  # pyright: ignore[reportArgumentType]
            # As it is, where Megatron's own training pads it: a tensor has the shape that its
            # file says, so tp must divide it.
            vocab_size=config.vocab_size,
            max_sequence_length=config.seq_len,
            pre_process=first,
            post_process=last,
            share_embeddings_and_output_weights=config.tie_embeddings,
            position_embedding_type="rope",
            rotary_base=config.rope_theta,  # pyright: ignore[reportArgumentType] - only raised to a power
            vp_stage=vp_stage if topology.vpp > 1 else None,
        )
    # Megatron's own stretch has Llama 3.1's lengths built in, and its table is made where the model is.
    frequency = inverse_frequencies(config, topology.device)
    share = ContextShare(topology.cp)
    chunk.rotary_pos_emb = RowRotary.replacing(chunk.rotary_pos_emb, frequency, share)
    chunk.share = share  # pyright: ignore[reportArgumentType]
    for layer in chunk.decoder.layers:
        layer.self_attention.core_attention.share = share  # pyright: ignore
    chunk.dropping = Dropping.attached(chunk, topology)  # pyright: ignore[reportArgumentType]
    if last:
        # After the constructor, which has made the weight (or not, where it is tied) and set up what tying needs.
        chunk.output_layer = HiddenHead.replacing(chunk.output_layer)
    return chunk


def freeze_but_last(model: Model, blocks: int) -> None:
    """Leave only the last `blocks` blocks trainable: embedding, final norm and output layer are frozen too.

    To be called before an engine is made, which wraps what trains. UserError when the model has fewer blocks.
    """
    if not 1 <= blocks <= model.config.layers:
        raise UserError(f"`train_last_blocks`: {blocks} is not between 1 and the model's {model.config.layers}")
    # Everything first: embedding, final norm and output layer belong to no block.
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for block in model.blocks():
        if block.layer >= model.config.layers - blocks:
            for parameter in vars(block).values():
                if isinstance(parameter, torch.nn.Parameter):
                    parameter.requires_grad_(True)


def refuse_traps(model: Model) -> None:
    """Raise RuntimeError for Megatron settings of a model that are known to give wrong gradients.

    `build_model` never sets them so; this guards training of models that were built or edited elsewhere. Measured with
    megatron-core 0.16.1 over gloo: each of these ends with exit code 0 and wrong gradients.
    """
    for fault in _faults(model):
        raise RuntimeError(f"refused, for it trains wrongly without an error: {fault}")


def _faults(model: Model) -> list[str]:
    settings: Any = model.megatron_config
    stages = settings.pipeline_model_parallel_size
    interleaved = (settings.virtual_pipeline_model_parallel_size or 1) > 1
    faults = []
    # On CUDA the same flag is right and saves the memory of every output that was sent on.
    if shim_active() and stages > 1 and settings.deallocate_pipeline_outputs:
        faults.append("deallocate_pipeline_outputs frees tensors that gloo is still sending")
    if interleaved and (settings.batch_p2p_comm or not settings.overlap_p2p_comm):
        faults.append(
            "an interleaved pipeline needs overlap_p2p_comm and no batch_p2p_comm: with two stages the previous rank "
            "is the next one, and batched messages are mistaken for each other"
        )
    ranks = model.topology.cp.size
    if settings.context_parallel_size != ranks:
        faults.append(f"context parallelism of another size than {ranks} has ranks attend to parts of a sequence alone")
    by_head = model.config.qk_norm == "head"
    if settings.qk_layernorm and not by_head:
        faults.append("qk_layernorm sums the gradients of query and key norms that are already split over ranks")
    if by_head and not settings.qk_layernorm:
        faults.append("without qk_layernorm each rank trains the norm of every head by the gradients of its own heads")
    return faults
