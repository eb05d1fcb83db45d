"""Scoring, views of the weights, frozen blocks: one process."""

import pytest
import torch
import torch.nn.functional as F

from synpro_engine.config import UserError
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model, freeze_but_last
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.scoring import score_tokens
from synpro_engine.model.state import canonical_state


def _batch(config: ModelConfig, rows: int = 5, length: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(config.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(7))
    return ids[:, :-1], ids[:, 1:].clone()


def test_scores_are_the_log_softmax_of_the_full_product(topology: Topology, config: ModelConfig) -> None:
    model = build_model(config, topology)
    tokens_BS, labels_BS = _batch(config)
    scores = score_tokens(model, tokens_BS, labels_BS, temperature=0.7, entropy=True)
    with torch.no_grad():
        logits = (model.hidden(tokens_BS) @ model.output_weight().T).double() / 0.7
    full = logits.log_softmax(-1)
    assert scores.entropy is not None
    torch.testing.assert_close(
        scores.logprob.double(), full.gather(-1, labels_BS[..., None])[..., 0], rtol=0, atol=1e-5
    )  # fmt: skip
    torch.testing.assert_close(scores.entropy.double(), -(full.exp() * full).sum(-1), rtol=0, atol=1e-5)


def test_scores_do_not_depend_on_batch_mates_padding_or_microbatches(topology: Topology, config: ModelConfig) -> None:
    model = build_model(config, topology)
    tokens_BS, labels_BS = _batch(config)
    alone = score_tokens(model, tokens_BS[2:3], labels_BS[2:3]).logprob
    for micro_batch in (1, 2, 5):
        together = score_tokens(model, tokens_BS, labels_BS, micro_batch=micro_batch).logprob
        assert (together[2:3] - alone).abs().max() <= 1e-5
    for filler in (0, 95):
        padded = F.pad(tokens_BS[2:3], (0, 30), value=filler)
        other = torch.full_like(padded, filler)  # a longer batch mate keeps the padding in the computation
        labels = torch.cat([F.pad(labels_BS[2:3], (0, 30), value=-100), other])
        scored = score_tokens(model, torch.cat([padded, other]), labels).logprob
        assert (scored[0, :24] - alone[0]).abs().max() <= 1e-5
        assert (scored[0, 24:] == 0).all()


def test_ignored_labels_score_zero_and_nothing_to_score_is_no_error(topology: Topology, config: ModelConfig) -> None:
    model = build_model(config, topology)
    tokens_BS, labels_BS = _batch(config)
    full = score_tokens(model, tokens_BS, labels_BS).logprob
    labels_BS[1, :10] = -100
    labels_BS[:, 20:] = -100
    scores = score_tokens(model, tokens_BS, labels_BS)
    kept = labels_BS != -100
    assert (scores.logprob[~kept] == 0).all() and scores.logprob.shape == labels_BS.shape
    torch.testing.assert_close(scores.logprob[kept], full[kept], rtol=0, atol=1e-5)
    assert (score_tokens(model, tokens_BS, torch.full_like(labels_BS, -100)).logprob == 0).all()


def test_scoring_leaves_no_graph_and_the_training_mode_as_it_was(topology: Topology, config: ModelConfig) -> None:
    model = build_model(config, topology)
    model.train()
    assert not score_tokens(model, *_batch(config)).logprob.requires_grad
    assert all(module.training for module in model.chunks[0].modules())
    with torch.no_grad():
        assert not model.hidden(_batch(config)[0]).requires_grad


def test_views_share_storage_and_see_an_update_at_once(topology: Topology, config: ModelConfig) -> None:
    model = build_model(config, topology)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    blocks = model.blocks()
    assert [block.layer for block in blocks] == list(range(config.layers))
    views = [value for block in blocks for value in vars(block).values() if isinstance(value, torch.nn.Parameter)]
    top = [model.embedding_weight(), model.final_norm_weight(), model.output_weight()]
    assert {view.data_ptr() for view in views + [weight for weight in top if weight is not None]} == own
    assert (model.output_weight() is model.embedding_weight()) == config.tie_embeddings
    tokens_BS, labels_BS = _batch(config)
    before = score_tokens(model, tokens_BS, labels_BS).logprob
    with torch.no_grad():
        blocks[0].qkv.mul_(1.5)
    assert not torch.equal(before, score_tokens(model, tokens_BS, labels_BS).logprob)


@pytest.mark.parametrize("blocks", [1, 2])
def test_only_the_last_blocks_train_and_nothing_before_them_is_kept_for_a_backward(
    topology: Topology, config: ModelConfig, blocks: int
) -> None:
    model = build_model(config, topology)
    freeze_but_last(model, blocks)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    last = [f"decoder.layers.{i}." for i in range(config.layers - blocks, config.layers)]
    assert trainable == {name for name, _ in model.named_parameters() if name.startswith(tuple(last))}
    needs_graph = []
    for layer in model.chunks[0].decoder.layers:
        layer.register_forward_pre_hook(
            lambda _, __, inputs: needs_graph.append(inputs["hidden_states"].requires_grad), with_kwargs=True
        )
    tokens_BS, labels_BS = _batch(config)
    model.logprobs_from_hidden(model.hidden(tokens_BS), labels_BS).logprob.sum().backward()
    assert needs_graph == [i > config.layers - blocks for i in range(config.layers)]
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable


def test_freezing_more_blocks_than_there_are_is_a_user_error(topology: Topology, config: ModelConfig) -> None:
    with pytest.raises(UserError, match="`train_last_blocks`: 4 "):
        freeze_but_last(build_model(config, topology), 4)


def test_the_seed_decides_the_weights_and_each_tensor_has_its_own_draw(topology: Topology, config: ModelConfig) -> None:
    state, same, other = (canonical_state(build_model(config, topology, seed=seed)) for seed in (1, 1, 2))
    q = "model.layers.{}.self_attn.q_proj.weight"
    assert all(torch.equal(state[name], same[name]) for name in state)
    assert not torch.equal(state[q.format(0)], other[q.format(0)])
    assert not torch.equal(state[q.format(0)], state[q.format(1)])
    weight = state["model.embed_tokens.weight"]
    assert weight.abs().max() <= 3 * config.init_std + 1e-6
    assert abs(weight.std().item() / config.init_std - 0.9866) < 0.03  # a normal cut at three sigma
