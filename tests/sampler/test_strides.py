"""Strides: several steps that are queued before the host sees what they drew, and in which nothing reads a number."""

import dataclasses
import itertools
import random
from typing import Any, cast

import pytest
import torch

from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.sampler import Completion, Sampler, SamplerConfig, SamplingConfig
from synpro_engine.sampler.batch import LiveBatch, LiveSequence
from synpro_engine.sampler.cache import pages_for
from synpro_engine.sampler.decode import Decoder
from synpro_engine.sampler.drawing import Drawer, worth
from synpro_engine.sampler.endings import Endings
from synpro_engine.sampler.sampling import Draw, bias_vector
from synpro_engine.sampler.static import StaticSteps, eagerly
from synpro_engine.sampler.work import Request
from synpro_kernels.common.extension import csrc_loaded

WAYS = [
    {}, {"temperature": 0.0}, {"temperature": 0.6, "top_p": 0.9}, {"temperature": 0.9, "top_k": 7},
    {"temperature": 1.2, "min_p": 0.05, "loop_tokens": 12}, {"temperature": 5.0, "top_p": 0.999},
    {"temperature": 2.0, "top_k": 50, "top_p": 0.9, "logit_bias": {"3": 4.0, "70": -3.0}},
]  # fmt: skip
LENGTHS = (3, 31, 33, 64, 1, 9, 100, 126)
STOPS = frozenset({5, 50})
ROOM = (45, 1, 2, 13, 45, 8, 9, 45)


def sample(
    model: Model, config: SamplerConfig, way: dict[str, Any], room: tuple[int, ...] | None = ROOM,
    stops: frozenset[int] = STOPS,
) -> tuple[Sampler, list[Completion]]:  # fmt: skip
    rng = random.Random(4)
    sampler = Sampler(model, config)
    groups = sampler.generate(
        [[rng.randrange(90) for _ in range(length)] for length in LENGTHS], group_size=3,
        sampling=SamplingConfig.model_validate({"max_new_tokens": 45, **way}), stop_ids=stops,
        seeds=range(8), vocab_limit=90, max_new_tokens=room,
    )  # fmt: skip
    return sampler, [completion for group in groups for completion in group]


def assert_same(ours: list[Completion], theirs: list[Completion], to_the_bit: bool) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one.token_ids, one.finished, one.looped) == (other.token_ids, other.finished, other.looped)
        for name in ("logprobs", "full_logprobs"):
            if to_the_bit:
                assert getattr(one, name) == getattr(other, name)
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=2e-5)
        if other.nuclei is None:
            assert one.nuclei is None
        else:
            assert one.nuclei is not None and torch.equal(one.nuclei.offsets, other.nuclei.offsets)
            assert torch.equal(one.nuclei.ids, other.nuclei.ids)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_stride_changes_no_bit_of_tokens_probabilities_and_nuclei(model: Model, way: dict[str, Any]) -> None:
    """Where the same prompts are read together; completions end in all places of a stride, one with its first token."""
    plain, expected = sample(model, SamplerConfig(stride=1), way)
    for stride in (2, 5, 8, 16):
        sampler, found = sample(model, SamplerConfig(stride=stride), way)
        assert_same(found, expected, to_the_bit=csrc_loaded())
        assert sampler.stats.new_tokens == plain.stats.new_tokens == sum(len(one.token_ids) for one in expected)
        assert plain.stats.steps <= sampler.stats.steps < plain.stats.steps + stride


def test_completions_that_end_within_a_stride_make_room_for_others_behind_it(model: Model) -> None:
    _, expected = sample(model, SamplerConfig(stride=1), WAYS[2], room=None)
    for stride in (3, 8):
        sampler, found = sample(model, SamplerConfig(stride=stride, max_batch=7), WAYS[2], room=None)
        assert_same(found, expected, to_the_bit=False)
        assert sampler.stats.steps > 45, "groups wait for others"


@pytest.mark.parametrize("pages", [19, 9, 6])
def test_where_pages_run_out_within_a_stride_it_is_shorter_and_then_fewer_are_live(
    model: Model, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    way = {"temperature": 0.6, "top_p": 0.9, "max_new_tokens": 90}  # up to three pages
    _, expected = sample(model, SamplerConfig(stride=1), way, room=None, stops=frozenset())
    monkeypatch.setattr("synpro_engine.sampler.sampler.LiveBatch", lambda shape, _: LiveBatch(shape, pages))
    taken, stride = list[int](), LiveBatch.stride

    def counted(self: LiveBatch, drafts: Any, steps: int) -> Any:
        taken.append(steps)
        return stride(self, drafts, steps)

    monkeypatch.setattr(LiveBatch, "stride", counted)
    sampler, found = sample(model, SamplerConfig(stride=8), way, room=None, stops=frozenset())
    assert_same(found, expected, to_the_bit=False)
    assert max(taken) == 8 and min(taken) == 1
    assert sampler.stats.cache_bytes <= pages * sampler._decoder.cache_shape.bytes_per_page
    assert sampler.stats.put_aside > 0


@pytest.mark.parametrize("way", [way for way in WAYS if {"top_p", "min_p"}.intersection(way)], ids=str)
def test_a_row_whose_nucleus_was_looked_for_among_too_few_is_drawn_again(
    model: Model, monkeypatch: pytest.MonkeyPatch, way: dict[str, Any]
) -> None:
    _, expected = sample(model, SamplerConfig(stride=1), way)
    few = way.get("top_k", 0) + 3
    widths, take, short = itertools.cycle((few, few, 128, 128)), Drawer.take, list[int]()

    def counted(*given: Any) -> Any:
        drawn = take(*given)
        short.append(int(drawn.short_N.sum()))
        return drawn

    monkeypatch.setattr(Drawer, "take", counted)
    monkeypatch.setattr(Drawer, "_room_for", lambda *_: next(widths))
    _, found = sample(model, SamplerConfig(stride=8), way)
    assert_same(found, expected, to_the_bit=csrc_loaded())
    assert sum(short) > 0 or "top_k" in way


def test_logits_that_are_not_finite_are_an_error_but_for_what_is_drawn_behind_an_end(model: Model) -> None:
    def run(room: int) -> list[list[Completion]]:
        sampler = Sampler(model, SamplerConfig(stride=8))
        decoder: Any = sampler._decoder
        step, taken = decoder.step, list[int]()

        def diverging(*given: Any) -> torch.Tensor:
            taken.append(1)
            logits_BV = step(*given)
            return torch.cat((logits_BV[:2] * (float("nan") if len(taken) == 3 else 1.0), logits_BV[2:]))

        decoder.step = diverging
        return sampler.generate(
            [[1, 2, 3], [7]], group_size=2, sampling=SamplingConfig(top_p=0.9), stop_ids=frozenset(), seeds=[1, 2],
            max_new_tokens=[room, 9],
        )  # fmt: skip

    with pytest.raises(FloatingPointError, match="not finite"):
        run(room=4)
    assert [len(completion.token_ids) for group in run(room=3) for completion in group] == [3, 3, 9, 9]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("family", ["llama", "olmo2", "qwen2", "qwen3"])
def test_no_step_of_a_stride_reads_what_the_device_computes(
    topology: Topology, monkeypatch: pytest.MonkeyPatch, family: str, way: dict[str, Any]
) -> None:
    """On a device that holds shapes and no numbers: whoever reads one gets an error, as bringing draws over does."""
    config = ModelConfig(
        family=family, layers=2, d_model=48, heads=6, kv_heads=2, ffn=80, vocab_size=96, seq_len=128, rope_theta=1e4
    )
    model, meta = build_model(config, topology, seed=3), torch.device("meta")
    chunks = [chunk.to(meta) for chunk in model.chunks]
    decoder = Decoder(dataclasses.replace(model, chunks=chunks, topology=dataclasses.replace(topology, device=meta)))
    static = StaticSteps(decoder, SamplerConfig(stride=4), eagerly)
    request = Request(prompts=[[1] * 40, [2] * 3], seeds=[1, 1], group_size=2, endings=Endings(), most=[50, 50])
    batch = LiveBatch(decoder.cache_shape, 99, static.begin(request, 99))
    for index, length in enumerate((40, 3)):
        group = batch.open_group(index, length, batch.pool.take(pages_for(length)))
        for member in range(1 + index):
            batch.add(LiveSequence(prompt=index, member=member, seed=1, room=50, token_ids=[4] * (30 + member)), group)
    sampling = SamplingConfig.model_validate(way)
    bias_V = bias_vector(sampling.biases, 90, torch.float32)
    drawer = Drawer(sampling, 90, None if bias_V is None else bias_V.to(meta), decoder.tp)
    stride, uniform_NB = batch.stride([[]] * 3, 4), torch.zeros(4, 3, dtype=torch.float64, device=meta)
    with torch.no_grad():
        draws = drawer.queue(stride, uniform_NB, decoder, batch.pool)
        assert [(draw.token_B.shape, draw.token_B.dtype) for draw in draws] == [((3,), torch.int64)] * 4
        with pytest.raises(NotImplementedError):
            drawer.take(stride, uniform_NB, decoder, batch.pool)
        monkeypatch.setattr(drawer, "bring", list)
        draws = static.take(*batch.feed([[]] * 3, 4), uniform_NB, drawer, batch.pool)
        assert [draw.token_B.shape for draw in cast("list[Draw]", draws)] == [(3,)] * 4
        assert static.made == 1


def test_longer_completions_are_worth_longer_strides() -> None:
    assert [worth(0, 0, most) for most in (1, 16, 64, 256, 4096)] == [1, 2, 4, 8, 16]
    assert worth(64 * 6, 64, 512) < worth(64 * 200, 64, 512) <= 16
