"""Continuations that share a row and their beginning are read as each would be behind it in a row of its own."""

import pytest
import torch

from synpro_engine.dist import Topology
from synpro_engine.model import specs
from synpro_engine.model.build import build_model
from synpro_engine.model.layers import SDPAttention, SharedRowsBySDPA
from synpro_engine.model.model import Model
from synpro_engine.model.shared_rows import SharedRows
from tests.model.shapes import CONFIGS

ROWS = ([5, 9, 2], [[3, 7, 1, 4], [8], [6, 6]]), ([1], [[2, 3], [4, 4, 4, 4, 4]]), ([], [[7, 8, 9]])


def shared() -> tuple[torch.Tensor, SharedRows]:
    longest = max(len(beginning) + sum(map(len, ends)) for beginning, ends in ROWS)
    tokens, positions = (torch.zeros(len(ROWS), longest, dtype=torch.int64) for _ in range(2))
    parts = torch.full_like(tokens, -1)
    for row, (beginning, ends) in enumerate(ROWS):
        at = 0
        for part, piece in enumerate([beginning, *ends]):
            start = len(beginning) if part else 0
            for offset, token in enumerate(piece):
                tokens[row, at], parts[row, at], positions[row, at] = token, part, start + offset
                at += 1
    return tokens, SharedRows(position_BS=positions, part_BS=parts, longest=int(positions.max()) + 1)


def alone(model: Model) -> torch.Tensor:
    """Hidden states of all continuations' tokens, each read behind its beginning in a row of its own."""
    found = [
        model.hidden(torch.tensor([beginning + end]))[0, len(beginning) :] for beginning, ends in ROWS for end in ends
    ]
    return torch.cat(found)


@pytest.mark.parametrize("name", CONFIGS)
def test_values_and_every_gradient_are_those_of_rows_of_their_own(topology: Topology, name: str) -> None:
    model = build_model(CONFIGS[name], topology, seed=3)
    tokens, rows = shared()
    together = model.hidden(tokens, rows)[rows.part_BS > 0]
    apart = alone(model)
    torch.testing.assert_close(together, apart, rtol=0, atol=5e-6)
    scale = torch.randn(apart.shape, generator=torch.Generator().manual_seed(1))
    parameters = dict(model.named_parameters())
    found, expected = (
        torch.autograd.grad((scale * values).sum(), list(parameters.values()), allow_unused=True)
        for values in (together, apart)
    )
    for parameter, mine, theirs in zip(parameters, found, expected, strict=True):
        assert (mine is None) == (theirs is None), parameter
        if mine is not None and theirs is not None:
            assert float((mine - theirs).norm()) <= 2e-6 * float(theirs.norm()), parameter


def test_positions_of_passes_of_any_lengths_after_each_other_are_those_of_a_first_pass(topology: Topology) -> None:
    model, tokens = build_model(CONFIGS["llama tied"], topology, seed=3), torch.arange(1, 13)[None]

    def first(length: int) -> torch.Tensor:
        return build_model(CONFIGS["llama tied"], topology, seed=3).hidden(tokens[:, :length])

    with torch.no_grad():
        for length in (5, 12, 3, 9):
            assert torch.equal(model.hidden(tokens[:, :length]), first(length))
        model.hidden(*shared())
        assert torch.equal(model.hidden(tokens[:, :7]), first(7)), "what shared rows read is not kept for others"
    model.hidden(tokens).sum().backward()  # with tables that were made where no gradient was


def test_rows_may_be_longer_than_the_context_but_no_position_may(topology: Topology) -> None:
    model = build_model(CONFIGS["llama tied"].model_copy(update={"seq_len": 7}), topology, seed=3)
    tokens, rows = shared()
    assert tokens.size(1) > 7 and model.hidden(tokens, rows).isfinite().all()
    short = build_model(CONFIGS["llama tied"].model_copy(update={"seq_len": 6}), topology, seed=3)
    with pytest.raises(AssertionError, match="7 tokens exceed"):
        short.hidden(tokens, rows)


def test_plain_rows_are_read_as_before_once_shared_ones_were(topology: Topology) -> None:
    model, plain = build_model(CONFIGS["llama tied"], topology, seed=3), torch.tensor([[1, 2, 3, 4, 5, 6]])
    before = model.hidden(plain)
    tokens, rows = shared()
    model.hidden(tokens, rows)
    assert torch.equal(model.hidden(plain), before)


class _PassesOverMasks(SDPAttention):
    """As Transformer Engine's kernel does where the layer is causal."""

    reads_shared_rows = False

    def forward(self, query, key, value, attention_mask=None, attn_mask_type=None, **others):
        del attention_mask
        return super().forward(query, key, value, None, attn_mask_type, **others)


def test_a_kernel_that_passes_over_masks_leaves_shared_rows_to_torch_or_is_refused(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, rows = shared()
    monkeypatch.setattr(specs, "core_attention", lambda *_: _PassesOverMasks)
    with pytest.raises(RuntimeError, match="_PassesOverMasks may pass over the mask"):
        build_model(CONFIGS["olmo2"], topology, seed=3).hidden(tokens, rows)
    covered = type("Covered", (SharedRowsBySDPA, _PassesOverMasks), {})
    monkeypatch.setattr(specs, "core_attention", lambda *_: covered)
    model = build_model(CONFIGS["olmo2"], topology, seed=3)
    torch.testing.assert_close(model.hidden(tokens, rows)[rows.part_BS > 0], alone(model), rtol=0, atol=5e-6)
