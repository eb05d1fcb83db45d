"""Ranks that share sequences: each position is on one rank, causal work is even, and attention is that of the whole."""

import gc
import itertools
import weakref
from typing import Any

import pytest
import torch

from synpro_engine.config import UserError
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.influence import DotInfluence
from synpro_engine.influence.directions import Direction
from synpro_engine.model import layers
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.context import ContextShare
from synpro_engine.model.layers import SDPAttention, scaled_dot_product
from synpro_engine.model.shared_rows import SharedRows
from synpro_engine.sampler.decode import Decoder

SHAPE = ModelConfig(layers=1, d_model=32, heads=4, kv_heads=2, ffn=48, vocab_size=64, seq_len=24)


def _places(cp: int) -> tuple[list[int], list[int], int]:
    """Of 24 positions: this rank's, all as gathered from the ranks, and a length's multiple with parts of three."""
    with launched(ParallelConfig(cp=cp)) as topology:
        share = ContextShare(topology.cp)
        whole = share.gathered(share.of(torch.arange(24)[None], 1), 1)
        return share.places(24 // cp, topology.device).tolist(), whole[0].tolist(), share.multiple(3)


@pytest.mark.parametrize("cp", [1, 2, 3])
def test_each_position_is_on_one_rank_and_each_rank_has_as_many_keys_to_see(cp: int) -> None:
    found = run_ranks(_places, cp, cp=cp)
    places = [own for own, _, _ in found]
    assert sorted(itertools.chain(*places)) == list(range(24))
    assert len({sum(place + 1 for place in own) for own in places}) == 1
    for own, whole, multiple in found:
        assert own == sorted(own) and whole == list(range(24))
        assert multiple == (3 if cp == 1 else 6 * cp)


def _attended(cp: int, apart: bool) -> list[list[torch.Tensor]]:
    """Attention's output and the gradients of queries, keys and values; of whole sequences on every rank."""
    with launched(ParallelConfig(cp=cp)) as topology:
        share = ContextShare(topology.cp)
        decoder: Any = build_model(SHAPE, topology).chunks[0].decoder
        layer = decoder.layers[0].self_attention.core_attention
        assert isinstance(layer, SDPAttention)
        generator = torch.Generator().manual_seed(1)
        given = [torch.randn(12, 3, heads, 8, generator=generator) for heads in (4, 2, 2)]
        own = [share.of(x, 0).requires_grad_() for x in given]
        documents_BS = torch.tensor([[0] * 5 + [1] * 7, [0] * 12, [2] * 11 + [3]])
        rows = SharedRows.of_documents(documents_BS) if apart else None
        out = layer(*own, None if rows is None else rows.bias(torch.float32, share))
        upstream = torch.randn(12, 3, 32, generator=generator)
        gradients = torch.autograd.grad((out * share.of(upstream, 0)).sum(), own)
        return [share.gathered(x.detach(), 0).numpy() for x in (out, *gradients)]


@pytest.mark.parametrize("apart", [False, True], ids=["rows", "documents apart"])
def test_attention_and_its_gradients_are_those_of_whole_sequences(apart: bool) -> None:
    [expected] = run_ranks(_attended, 1, cp=1, apart=apart)
    for cp in (2, 3):
        for found in run_ranks(_attended, cp, cp=cp, apart=apart):
            for ours, theirs in zip(found, expected, strict=True):
                assert abs(ours - theirs).max() <= 1e-6 * abs(theirs).max()


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "mask"])
def test_key_heads_for_each_query_head_attend_as_groups_do(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = ((7 if masked else 12, 4), (12, 2), (12, 2))
    own = [torch.randn(s, 3, heads, 8, generator=generator).requires_grad_() for s, heads in sizes]
    bias = torch.randn(3, 1, 7, 12, generator=generator) if masked else None
    found = []
    for takes in (True, False):
        monkeypatch.setattr(layers, "_kernels_take_groups", lambda q, mask, takes=takes: takes)
        out = scaled_dot_product(*own, None, bias)
        found.append([out, *torch.autograd.grad(out.square().sum(), own)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_queries_that_come_last_have_one_mask_in_all_layers() -> None:
    generator = torch.Generator().manual_seed(4)
    own = [torch.randn(s, 1, 2, 8, generator=generator).requires_grad_() for s in (4, 9, 9)]
    with torch.inference_mode():
        scaled_dot_product(*own, None)
    masks = [layers._seen_from_the_end(own[0].permute(1, 2, 0, 3), 9) for _ in range(2)]
    assert masks[0] is masks[1] and not masks[0].is_inference()
    assert torch.equal(masks[0] == 0, torch.ones(4, 9, dtype=torch.bool).tril(5))
    scaled_dot_product(*own, None).sum().backward()
    kept = weakref.ref(masks.pop())
    masks.clear()
    assert kept() is not None, "for the next pass"
    layers.forget_masks()
    gc.collect()
    assert kept() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_masks_and_fewer_key_heads_hold_no_score_on_a_gpu(dtype: torch.dtype) -> None:
    length = 4096
    own = [torch.randn(length, 1, heads, 64, device="cuda", dtype=dtype) for heads in (8, 2, 2)]
    bias = torch.zeros(1, 1, length, length, device="cuda", dtype=dtype)
    bias.masked_fill_(torch.ones(length, length, device="cuda", dtype=torch.bool).triu(1), -torch.inf)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    scaled_dot_product(*own, None, bias)
    assert torch.cuda.max_memory_allocated() - before < 8 * length * length * dtype.itemsize / 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("groups", [4, 2], ids=["as many key heads", "fewer key heads"])
def test_fused_kernels_take_fewer_queries_than_keys_for_the_last_ones(groups: int) -> None:
    generator = torch.Generator().manual_seed(2)
    sizes = ((64, 4), (256, groups), (256, groups))
    given = [torch.randn(length, 2, heads, 64, generator=generator) for length, heads in sizes]
    found = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.bfloat16)):
        own = [x.to(device, dtype).requires_grad_() for x in given]
        out = scaled_dot_product(*own, None)
        gradients = torch.autograd.grad(out.square().sum(), own)
        found.append([x.detach().double().cpu() for x in (out, *gradients)])
    for theirs, ours in zip(*found, strict=True):
        assert (ours - theirs).norm() <= 2e-2 * theirs.norm()


def _refusals() -> list[str]:
    told = []
    with launched(ParallelConfig(cp=2)) as topology:
        model = build_model(SHAPE, topology)
        direction = Direction({name: torch.ones_like(p) for name, p in model.named_parameters()})
        dot = DotInfluence(model, direction, start_id=0)
        for refused in (
            lambda: Decoder(model),
            lambda: dot.score([[1, 2, 3]]),
            lambda: build_model(SHAPE.model_copy(update={"seq_len": 18}), topology),
        ):
            with pytest.raises((UserError, ValueError)) as caught:
                refused()
            told.append(str(caught.value))
    return told


def test_what_needs_whole_sequences_says_so() -> None:
    for sampling, scoring, length in run_ranks(_refusals, 2):
        assert sampling.startswith("`parallel.cp`: sampling needs whole sequences")
        assert scoring.endswith("this layout shares them out: CP2")
        assert length.startswith("`model.seq_len`: 18 cannot be divided by 4, as `parallel.cp` = 2 needs")
