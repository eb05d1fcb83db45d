"""Steps of static shape draw what ordinary ones do, over tensors that stay where they are: what a CUDA graph wants."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from synpro_engine.config import UserError, load_config
from synpro_engine.dist import Axis, Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.lora import add_adapters, merge_adapters
from synpro_engine.model.model import Model
from synpro_engine.sampler import Completion, Sampler, SamplerConfig, SamplingConfig, static
from synpro_engine.sampler.cache import PagePool
from synpro_engine.sampler.graphs import recorder
from synpro_engine.sampler.static import Prepare, Program, Replay, StaticSteps, eagerly, filled_up
from synpro_engine.train.engine import Engine
from synpro_engine.train.optimizer_config import OptimizerConfig
from synpro_kernels.common.extension import csrc_loaded

bitwise = pytest.mark.skipif(not csrc_loaded(), reason="in the definitions a row's sums hang on the tables' width")
WAYS = [
    {}, {"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9}, {"temperature": 0.9, "top_k": 7, "loop_tokens": 12},
    {"temperature": 1.2, "min_p": 0.05, "logit_bias": {"3": 4.0, "70": -3.0}}, {"temperature": 5.0, "top_p": 0.999},
]  # fmt: skip
STOPS = frozenset({5, 50})
SHARED = list(range(1, 41))
"""More than a page that prompts begin with."""


def small(topology: Topology, family: str = "qwen3") -> Model:
    config = ModelConfig(
        family=family, layers=2, d_model=48, heads=6, kv_heads=2, ffn=80, vocab_size=96, seq_len=128, rope_theta=1e4,
        init_std=0.2,
    )  # fmt: skip
    return build_model(config, topology, seed=3)


@pytest.fixture(params=["llama", "olmo2", "qwen3"])
def each(request: pytest.FixtureRequest, topology: Topology) -> Model:
    return small(topology, request.param)


def static_sampler(model: Model, config: SamplerConfig, prepare: Prepare = eagerly) -> tuple[Sampler, StaticSteps]:
    """As on CUDA with `graphs`, but for what `prepare` does."""
    sampler = Sampler(model, config)
    steps = sampler._static = StaticSteps(sampler._decoder, config, prepare)
    return sampler, steps


def sample(
    sampler: Sampler, way: dict[str, Any] | None = None, size: int = 3, room: int = 40, few: int = 0
) -> list[Completion]:
    """Prompts of all lengths, some of which begin alike; completions end one after the other."""
    rng = random.Random(4)
    prompts = [[rng.randrange(90) for _ in range(length)] for length in (3, 33, 1, 60, 9)]
    prompts = [*prompts, [*SHARED, 7], [*SHARED, 8, 9]][few:]
    sampling = SamplingConfig.model_validate({"max_new_tokens": room, **(way or {"temperature": 0.8, "top_p": 0.9})})
    groups = sampler.generate(
        prompts, group_size=size, sampling=sampling, stop_ids=STOPS, seeds=range(len(prompts)), vocab_limit=90,
        max_new_tokens=[(room, 1, room, 13, room // 2, 9, room)[at] for at in range(len(prompts))],
    )  # fmt: skip
    return [completion for group in groups for completion in group]


def assert_same_bits(ours: list[Completion], theirs: list[Completion]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for name in ("token_ids", "logprobs", "full_logprobs", "finished", "looped"):
            assert getattr(one, name) == getattr(other, name), name
        assert (one.nuclei is None) == (other.nuclei is None)
        if one.nuclei is not None and other.nuclei is not None:
            assert torch.equal(one.nuclei.offsets, other.nuclei.offsets)
            assert torch.equal(one.nuclei.ids, other.nuclei.ids)


@bitwise
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_static_steps_draw_the_same_bits(each: Model, way: dict[str, Any]) -> None:
    expected = sample(Sampler(each), way)
    assert len({len(one.token_ids) for one in expected}) > 4, "they must end at different times"
    for stride in (1, 8):
        sampler, steps = static_sampler(each, SamplerConfig(stride=stride))
        assert_same_bits(sample(sampler, way), expected)
        assert steps.made > 1, "rows leave, and smaller buckets take over"


@bitwise
def test_a_call_of_like_lengths_meets_the_programs_of_the_one_before(each: Model) -> None:
    sampler, steps = static_sampler(each, SamplerConfig(stride=8))
    first = sample(sampler)
    made = steps.made
    assert_same_bits(sample(sampler), first)
    assert steps.made == made
    # Fewer prompts, another way of drawing, and back.
    for few, way in ((3, None), (0, WAYS[0]), (0, None)):
        assert_same_bits(sample(sampler, way, few=few), sample(Sampler(each), way, few=few))


class _Seen(TorchDispatchMode):
    """What operations are given: numbers and shapes of all, and the place of what none of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.made, self.given = set[int](), list[Any]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = tree_leaves((args, kwargs or {}))
        self.given.append((str(func), *map(self._described, given)))
        before = {one.untyped_storage().data_ptr() for one in given if isinstance(one, Tensor)}
        after = {one.untyped_storage().data_ptr() for one in tree_leaves(found) if isinstance(one, Tensor)}
        self.made |= after - before
        return found

    def _described(self, one: Any) -> Any:
        if not isinstance(one, Tensor):
            return one
        outside = one.untyped_storage().data_ptr() not in self.made
        return one.shape, one.stride(), one.dtype, one.data_ptr() if outside else None


@pytest.mark.parametrize("way", [WAYS[0], WAYS[2], WAYS[4]], ids=str)
def test_every_step_of_a_bucket_is_the_same_operations_on_the_same_places(each: Model, way: dict[str, Any]) -> None:
    """Through two calls of a sampler, between which an optimizer would step: nothing that changes is part of a step."""
    seen = dict[int, list[Any]]()
    steps = list[int]()

    def watched(program: Program, pool: PagePool) -> Replay:
        def step() -> None:
            with _Seen() as mode:
                program.step(pool)
            steps.append(id(program))
            assert seen.setdefault(id(program), mode.given) == mode.given

        return step

    sampler, _ = static_sampler(each, SamplerConfig(stride=8), watched)
    first = sample(sampler, way)
    with torch.no_grad():
        for parameter in each.parameters():
            parameter.mul_(1.01)
    assert sample(sampler, way) != first
    assert len(seen) > 3 and len(steps) > 5 * len(seen)


def make_an_engine(model: Model) -> None:
    """Its buffers are where the weights lie from then on."""
    Engine(model, OptimizerConfig(lr=1e-3))


def put_adapters(model: Model) -> None:
    add_adapters(model, rank=4, alpha=8.0, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():  # they begin as nothing
            parameter.add_(0.01)


@bitwise
@pytest.mark.parametrize("ways", [[make_an_engine], [put_adapters, merge_adapters]], ids=["engine", "adapters"])
def test_programs_are_dropped_when_weights_move(topology: Topology, ways: list[Callable[[Model], None]]) -> None:
    model = small(topology)
    sampler, steps = static_sampler(model, SamplerConfig(stride=8))
    assert_same_bits(sample(sampler), sample(Sampler(model)))
    for move in ways:
        made = steps.made
        move(model)
        assert_same_bits(sample(sampler), sample(Sampler(model)))
        assert steps.made > made


@bitwise
def test_where_a_lone_completion_outgrows_the_pages_it_goes_on_without_programs(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next call has pages and programs of its own."""
    model = small(topology)
    sampler, steps = static_sampler(model, SamplerConfig(stride=4, max_batch=1))
    begin, most = steps.begin, itertools.chain([3, 3], itertools.repeat(999))
    monkeypatch.setattr(steps, "begin", lambda request, _: begin(request, next(most)))
    way = {"temperature": 0.8, "top_p": 0.9, "logit_bias": {"5": -100.0, "50": -100.0}}  # none ends early

    def same() -> int:
        expected = sample(Sampler(model, SamplerConfig(max_batch=1)), way, size=1, room=70)
        assert_same_bits(sample(sampler, way, size=1, room=70), expected)
        return steps.made

    made = [same() for _ in range(4)]
    assert 0 < made[0] < made[1] < made[2] == made[3]


def test_those_that_are_put_aside_draw_the_same_tokens(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(topology)
    sampler, steps = static_sampler(model, SamplerConfig(stride=4))
    begin = steps.begin
    monkeypatch.setattr(steps, "begin", lambda request, _: begin(request, 8))
    found, expected = sample(sampler, room=70), sample(Sampler(model), room=70)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert sampler.stats.put_aside > 0 and steps.made > 1


@bitwise
def test_few_programs_are_kept(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "MOST_PROGRAMS", 2)
    model = small(topology)
    sampler, steps = static_sampler(model, SamplerConfig(stride=8))
    for _ in range(2):
        assert_same_bits(sample(sampler), sample(Sampler(model)))
        assert len(steps._programs) == 2


def test_rows_are_filled_up_to_few_sizes_and_groups_have_places_for_them() -> None:
    sizes = {filled_up(rows) for rows in range(1, 257)}
    assert sizes == {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256}
    power = static._power_of_2
    for groups, members in itertools.product(range(1, 34), range(1, 34)):
        for rows in range(groups, groups * members + 1):
            assert rows <= filled_up(rows) <= min(1.5 * rows, power(groups) * power(members))


def test_what_cannot_be_recorded_is_refused(topology: Topology) -> None:
    with pytest.raises(UserError, match="speculate"):
        load_config(SamplerConfig, {"graphs": True, "speculate": 2})
    with pytest.raises(UserError, match="gloo"):
        recorder(Axis(size=2, rank=0, group=topology.tp.group))
