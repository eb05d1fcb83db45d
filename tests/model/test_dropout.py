"""Masks of dropout: what they are a function of, how much they drop, and that nothing else sees them."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synpro_engine.config import UserError, load_config
from synpro_engine.dist import Topology
from synpro_engine.model import masks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.dropout import Dropout, Place, dropouts
from synpro_engine.model.dropout_config import DropoutConfig
from synpro_engine.model.dropped_attention import dropped_attention
from synpro_engine.model.model import run_chunk
from synpro_engine.model.shared_rows import SharedRows

SHAPE = ModelConfig(layers=2, d_model=32, heads=4, kv_heads=2, ffn=48, vocab_size=64, seq_len=16)
ALL = DropoutConfig(embedding=0.3, attention=0.3, residual=0.3, depth=0.5, tokens=0.3, mask_token=5)


def dropout_of(
    config: DropoutConfig = ALL, rows: Any = range(4), seed: int = 1, step: int = 2, layers: int = 8
) -> Dropout:
    return Dropout.of(config, torch.tensor(list(rows)), seed=seed, step=step, layers=layers)


def test_bits_are_splitmix64_s() -> None:
    """Against its published C code's outputs from seed 0, in 64-bit words."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    found = masks.output(torch.zeros((), dtype=torch.int64), torch.arange(4))
    assert [value % 2**64 for value in found.tolist()] == expected
    assert [int(masks.output(torch.zeros(1, dtype=torch.int64), n)) % 2**64 for n in range(4)] == expected


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
def test_the_rate_is_met_and_the_mean_stays(rate: float) -> None:
    ones_SBH = torch.ones(512, 4, 130)
    found = dropout_of().entries(ones_SBH, 1, Place.MLP, rate, torch.arange(512))
    share, noise = float((found == 0).float().mean()), (rate * (1 - rate) / ones_SBH.numel()) ** 0.5
    assert abs(share - rate) < 4 * noise
    kept = found[found != 0]
    assert kept.unique().numel() == 1 and float(kept[0]) == pytest.approx(1 / (1 - rate), rel=1e-4)


def test_masks_of_other_seeds_steps_layers_places_and_rows_have_nothing_in_common() -> None:
    ones_SBH, found = torch.ones(256, 1, 64), {}
    for seed, step, row, layer, place in itertools.product(
        (0, 1), (0, 1), (0, 1), (1, 2), (Place.ATTENTION, Place.MLP)
    ):
        dropped = (
            dropout_of(rows=[row], seed=seed, step=step).entries(ones_SBH, layer, place, 0.5, torch.arange(256)) == 0
        )
        found[seed, step, row, layer, place] = dropped.double().flatten() - 0.5
    stacked = torch.stack(list(found.values()))
    correlation = stacked @ stacked.t() / (0.25 * stacked.size(1)) - torch.eye(len(stacked))
    assert float(correlation.abs().max()) < 6 / stacked.size(1) ** 0.5


def test_entries_have_no_pattern_along_positions_or_width() -> None:
    dropped = (dropout_of().entries(torch.ones(256, 4, 256), 1, Place.MLP, 0.5, torch.arange(256)) == 0).double() - 0.5
    for axis in range(3):
        for shift in (1, 2, 3, 4):
            if shift < dropped.size(axis):
                correlation = float((dropped * dropped.roll(shift, axis)).mean()) / 0.25
                assert abs(correlation) < 6 / dropped.numel() ** 0.5, (axis, shift)


@pytest.mark.parametrize("width", [1, 30, 32])
def test_a_part_of_the_positions_or_rows_has_its_part_of_the_masks(width: int) -> None:
    x_SBH, places_S = torch.randn(10, 4, width), torch.arange(10)
    whole = dropout_of().entries(x_SBH, 3, Place.ATTENTION, 0.4, places_S)
    for part_S in (places_S[:5], places_S[5:], torch.tensor([0, 1, 8, 9])):  # the last as `cp` shares sequences
        assert torch.equal(dropout_of().entries(x_SBH[part_S], 3, Place.ATTENTION, 0.4, part_S), whole[part_S])
    some = dropout_of(rows=[2, 3])
    assert torch.equal(some.entries(x_SBH[:, 2:], 3, Place.ATTENTION, 0.4, places_S), whole[:, 2:])
    assert torch.equal(some.rows(x_SBH[:, 2:], 3, Place.MLP_ROW), dropout_of().rows(x_SBH, 3, Place.MLP_ROW)[:, 2:])
    ids = torch.arange(40).view(4, 10) + 100
    assert torch.equal(some.tokens(ids[2:]), dropout_of().tokens(ids)[2:])
    assert torch.equal(dropout_of().tokens(ids)[:, :7], dropout_of().tokens(ids[:, :7]))


def test_micro_batches_of_every_size_have_the_step_s_masks() -> None:
    keys = []
    for sizes in ([8], [4, 4], [3, 3, 2]):
        found = dropouts(ALL, sizes, first_row=8, seed=1, step=2, layers=3, device=torch.device("cpu"))
        assert found is not None
        keys.append(torch.cat([one.key_LPB for one in found], -1))
    assert torch.equal(keys[0], keys[1]) and torch.equal(keys[0], keys[2])
    assert torch.equal(keys[0], dropout_of(rows=range(8, 16), layers=3).key_LPB)
    assert dropouts(DropoutConfig(), [8], first_row=0, seed=1, step=2, layers=3, device=torch.device("cpu")) is None


def test_stochastic_depth_rises_linearly_to_the_last_block() -> None:
    layers, rows = 8, 20_000
    dropout, ones = dropout_of(rows=range(rows), layers=layers), torch.ones(2, rows, 3)
    for layer in range(1, layers + 1):
        kept = dropout.rows(ones, layer, Place.MLP_ROW)
        rate = 0.5 * layer / layers
        assert torch.equal(kept, kept[:1, :, :1].expand_as(kept))  # a row goes whole
        assert float((kept == 0).float().mean()) == pytest.approx(rate, abs=4 * (rate * (1 - rate) / rows) ** 0.5)
        assert float(kept.max()) == pytest.approx(1 / (1 - rate), rel=1e-4)


def test_masked_tokens_are_as_many_as_asked_for_and_the_rest_stays() -> None:
    ids = torch.randint(100, 200, (64, 500), generator=torch.Generator().manual_seed(0))
    found = dropout_of(rows=range(64)).tokens(ids)
    masked = found == 5
    assert torch.equal(found[~masked], ids[~masked])
    assert float(masked.float().mean()) == pytest.approx(0.3, abs=4 * (0.21 / ids.numel()) ** 0.5)


def heads(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(9, 3, n, 8, generator=generator).requires_grad_() for n in (4, 2, 2))


def test_attention_that_drops_nothing_is_attention() -> None:
    ours, theirs = heads(0), heads(0)
    found = dropped_attention(*ours, torch.arange(9), None, lambda row, weights: weights)
    q, k, v = (x.permute(1, 2, 0, 3) for x in theirs)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).permute(2, 0, 1, 3).flatten(-2)
    torch.testing.assert_close(found, expected)
    for out in (found, expected):
        (out * torch.arange(32)).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_weights_of_attention_are_dropped_alike_forward_and_backward_and_head_by_head() -> None:
    dropout, scale = dropout_of(rows=range(3)), 8**-0.5
    ours, theirs = heads(0), heads(0)
    places_S = torch.arange(9)
    found = dropped_attention(*ours, places_S, scale, lambda row, w: dropout.weights(row, w, 2, 0, places_S))
    outs = []
    for row in range(3):  # the definition: softmax, then the mask, with autograd all through
        q, k, v = (x[:, row].transpose(0, 1) for x in theirs)
        k, v = k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)
        unseen = torch.ones(9, 9, dtype=torch.bool).triu(1)
        weights = (q @ k.mT * scale).masked_fill(unseen, -torch.inf).softmax(-1)
        outs.append((dropout.weights(row, weights, 2, 0, places_S) @ v).transpose(0, 1).flatten(1))
    expected = torch.stack(outs, 1)
    torch.testing.assert_close(found, expected)
    for out in (found, expected):
        (out * torch.arange(32)).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)
    ones = torch.ones(4, 9, 9)
    whole = dropout.weights(1, ones, 2, 0, places_S)
    assert torch.equal(dropout.weights(1, ones[:2], 2, 2, places_S), whole[2:])  # another rank's heads
    assert torch.equal(dropout.weights(1, ones[:, 3:5], 2, 0, places_S[3:5]), whole[:, 3:5])  # another's queries
    assert torch.equal(dropout.weights(1, ones[:, :7, :7], 2, 0, places_S[:7]), whole[:, :7, :7])  # without padding
    assert 0.15 < float((whole == 0).float().mean()) < 0.45


@pytest.mark.parametrize("name", ["embedding", "attention", "residual", "depth", "tokens"])
@pytest.mark.parametrize("family", ["olmo2", "llama", "qwen3"])
def test_each_rate_changes_the_pass_that_it_is_handed_to_and_no_other(
    topology: Topology, name: str, family: Any
) -> None:
    model = build_model(SHAPE.model_copy(update={"family": family}), topology)
    ids = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(3))
    config = DropoutConfig.model_validate({name: 0.5, "mask_token": 5})
    chunk = model.chunks[0]
    before = run_chunk(chunk, ids)
    first, again, other = (run_chunk(chunk, ids, dropout=dropout_of(config, step=step, layers=2)) for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, before) and not torch.equal(other, first) and not torch.equal(other, before)
    assert torch.equal(run_chunk(chunk, ids), before)


def test_documents_that_are_kept_apart_stay_so_under_masks(topology: Topology) -> None:
    model = build_model(SHAPE, topology)
    ids = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(3))
    document_BS = (torch.arange(16) >= 7).long().expand(4, 16)
    rows, dropout = SharedRows.of_documents(document_BS), dropout_of(layers=2)
    chunk, others = model.chunks[0], torch.where(document_BS == 0, (ids + 1) % 64, ids)
    found, changed = (run_chunk(chunk, tokens, rows, dropout=dropout) for tokens in (ids, others))
    assert torch.equal(found[:, 7:], changed[:, 7:]) and not torch.equal(found[:, :7], changed[:, :7])
    assert not torch.equal(found[:, 7:], run_chunk(chunk, ids, rows)[:, 7:])
    assert not torch.equal(found[:, 7:], run_chunk(chunk, ids, dropout=dropout)[:, 7:])


def test_a_pass_that_fails_leaves_nothing_dropped(topology: Topology) -> None:
    model = build_model(SHAPE, topology)
    chunk, ids = model.chunks[0], torch.zeros(4, 16, dtype=torch.int64)
    before = run_chunk(chunk, ids)
    with pytest.raises(IndexError):
        run_chunk(chunk, ids + 64, dropout=dropout_of(DropoutConfig(residual=0.5), layers=2))
    assert torch.equal(run_chunk(chunk, ids), before)


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"tokens": 0.1}, "mask_token"), ({"residual": 0.95}, "residual"), ({"depth": -0.1}, "depth")],
)
def test_rates_that_cannot_be_meant_are_refused_by_name(settings: Any, word: str) -> None:
    with pytest.raises(UserError, match=word):
        load_config(DropoutConfig, settings)
