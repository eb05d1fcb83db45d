"""One job in several layouts, one after the other: Megatron goes by the newest, and groups are made once."""

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from synpro_engine.config import UserError
from synpro_engine.dist import Layout, LayoutConfig, ParallelConfig, Topology, launched, sum_over
from synpro_engine.dist.testing import run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig

SHAPE = ModelConfig(layers=4, d_model=16, heads=2, kv_heads=2, ffn=16, vocab_size=32, seq_len=8)
LAYOUTS = {
    "PP2": LayoutConfig(pp=2),
    "TP2": LayoutConfig(tp=2, sequence_parallel=True),
    "DP2": LayoutConfig(),
    "CP2": LayoutConfig(cp=2),
    "PP2 VPP2": LayoutConfig(pp=2, vpp=2),
}


def _as_megatron_sees_it() -> tuple[int | None, ...]:
    state = parallel_state
    vpp = state.get_virtual_pipeline_model_parallel_world_size()
    sizes = state.get_tensor_model_parallel_world_size(), state.get_pipeline_model_parallel_world_size()
    return *sizes, state.get_data_parallel_world_size(), state.get_context_parallel_world_size(), vpp


def _sums(place: Topology) -> list[float]:
    """1 for each rank of an axis."""
    return [sum_over(axis, torch.ones(1)).item() for axis in (place.tp, place.pp, place.dp, place.cp)]


def _refused(place: Topology) -> bool:
    """Whether a model for a layout that is not in force is refused."""
    with pytest.raises(AssertionError, match="another layout"):
        build_model(SHAPE, place)
    return True


def _divided() -> list[tuple[object, ...]]:
    seen = []
    with launched(ParallelConfig()) as job:
        for _ in range(2):
            for name, config in LAYOUTS.items():
                place = job.divided(Layout.of(config, 2, "pretrain.parallel"))
                assert place.in_force and place.key == "pretrain.parallel" and str(place.layout) == name
                # A rank takes the shape that its layout gives it, and refuses the others.
                weights = sum(parameter.numel() for parameter in build_model(SHAPE, place).parameters())
                assert job.in_force == (name == "DP2") and (name == "DP2" or _refused(job))
                groups = len(dist.distributed_c10d._world.pg_map)
                seen.append((name, _as_megatron_sees_it(), _sums(place), _sums(job), groups, weights))
    return seen


def test_a_job_goes_from_layout_to_layout_and_back_without_making_groups_again() -> None:
    for seen in run_ranks(_divided, 2):
        first, second = seen[: len(LAYOUTS)], seen[len(LAYOUTS) :]
        for (name, sizes, sums, of_job, _, weights), again in zip(first, second, strict=True):
            axes = [2 if axis in name.split() else 1 for axis in ("TP2", "PP2", "DP2", "CP2")]
            assert sizes == (*axes, 2 if "VPP2" in name else None)
            assert sums == axes and of_job == [1, 1, 2, 1]
            assert again[:4] == (name, sizes, sums, of_job) and again[5] == weights
        assert {again[4] for again in second} == {first[-1][4]}, "groups were made a second time"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LayoutConfig(tp=2), "`generator.parallel`: tp 2 x pp 1 does not divide the 1 process"),
        (LayoutConfig(vpp=2), "`generator.parallel.vpp`: an interleaved schedule needs pp >= 2"),
        (LayoutConfig(sequence_parallel=True), "`generator.parallel.sequence_parallel`: needs tp >= 2"),
    ],
)
def test_a_later_layout_that_does_not_fit_is_refused_before_the_job_begins(config: LayoutConfig, message: str) -> None:
    with pytest.raises(UserError, match=message), launched(ParallelConfig(), layouts={"generator.parallel": config}):
        pass
