"""Layout settings that train wrongly without any error in Megatron: refused here before the first step.

`model.build_model` never sets them so; this guards models built or edited elsewhere. Measured with megatron-core 0.16.1
over gloo: each of these ends with exit code 0 and wrong gradients.
"""

from __future__ import annotations

from typing import Any

from synpro_engine.backend.shim import shim_active
from synpro_engine.model.model import Model


def refuse_traps(model: Model) -> None:
    """Raise RuntimeError for Megatron settings of a model that are known to give wrong gradients."""
    for fault in _faults(model):
        raise RuntimeError(f"refused, for it trains wrongly without an error: {fault}")


def _faults(model: Model) -> list[str]:
    settings: Any = model.megatron_config
    stages = settings.pipeline_model_parallel_size
    interleaved = (settings.virtual_pipeline_model_parallel_size or 1) > 1
    faults = []
    if shim_active() and stages > 1 and settings.deallocate_pipeline_outputs:
        faults.append("deallocate_pipeline_outputs frees tensors that gloo is still sending")
    if interleaved and (settings.batch_p2p_comm or not settings.overlap_p2p_comm):
        faults.append(
            "an interleaved pipeline needs overlap_p2p_comm and no batch_p2p_comm: with two stages the previous rank "
            "is the next one, and batched messages are mistaken for each other"
        )
    if settings.context_parallel_size > 1:
        faults.append("context parallelism with this attention attends to the local part of the sequence only")
    by_head = model.config.qk_norm == "head"
    if settings.qk_layernorm and not by_head:
        faults.append("qk_layernorm sums the gradients of query and key norms that are already split over ranks")
    if by_head and not settings.qk_layernorm:
        faults.append("without qk_layernorm each rank trains the norm of every head by the gradients of its own heads")
    return faults
