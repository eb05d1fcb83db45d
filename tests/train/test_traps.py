"""Settings that Megatron runs wrongly without an error are refused before the first step."""

import pytest

from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model, refuse_traps
from synpro_engine.model.config import ModelConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.optimizer_config import OptimizerConfig

INTERLEAVED = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2, "overlap_p2p_comm": True}


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"pipeline_model_parallel_size": 2, "deallocate_pipeline_outputs": True}, "deallocate_pipeline_outputs"),
        (INTERLEAVED | {"batch_p2p_comm": True}, "batch_p2p_comm"),
        (INTERLEAVED | {"overlap_p2p_comm": False}, "overlap_p2p_comm"),
        ({"context_parallel_size": 2}, "context parallelism"),
        ({"qk_layernorm": True}, "qk_layernorm"),
    ],
)
def test_each_silent_trap_is_refused(topology: Topology, shape: ModelConfig, settings: dict, word: str) -> None:
    model = build_model(shape, topology)
    refuse_traps(model)
    for name, value in settings.items():
        setattr(model.megatron_config, name, value)
    with pytest.raises(RuntimeError, match=word):
        Engine(model, OptimizerConfig())


def test_norms_by_head_are_refused_where_ranks_would_not_sum_their_gradients(
    topology: Topology, shape: ModelConfig
) -> None:
    model = build_model(shape.model_copy(update={"family": "qwen3"}), topology)
    refuse_traps(model)
    model.megatron_config.qk_layernorm = False
    with pytest.raises(RuntimeError, match="without qk_layernorm"):
        refuse_traps(model)


def test_parameters_are_never_gathered_behind_the_next_forward(topology: Topology, shape: ModelConfig) -> None:
    """With that overlap the sampler and evaluation would read weights of the step before."""
    for overlap in (False, True):
        engine = Engine(build_model(shape, topology), OptimizerConfig(), overlap_gradients=overlap)
        for chunk in engine.wrapped:
            assert not chunk.ddp_config.overlap_param_gather and not chunk.use_forward_hook


def test_gradients_are_summed_and_never_averaged(topology: Topology, shape: ModelConfig) -> None:
    engine = Engine(build_model(shape, topology), OptimizerConfig())
    buckets = [bucket for chunk in engine.wrapped for group in chunk.bucket_groups for bucket in group.buckets]
    assert buckets and all(bucket.gradient_scaling_factor == 1.0 for bucket in buckets)
    assert not any(chunk.ddp_config.average_in_collective for chunk in engine.wrapped)
