"""The trainer's side of a rollout: its log-probabilities, its gradient, its reference."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.rl import policy
from synpro_engine.rl.batches import micro_batches
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.nucleus import nucleus_logprob
from synpro_engine.rl.policy import (
    PolicyLoss,
    make_reference_policy,
    prepare_policy,
    rollout_logprobs,
    sampled_logprobs,
)
from synpro_engine.rl.types import Prompt, Rollout, RolloutBatch
from synpro_engine.sampler import Nuclei, Sampler, SamplingConfig
from synpro_engine.synth import Candidate, Parsed, Slice
from synpro_engine.train.engine import Engine
from synpro_engine.train.optimizer_config import OptimizerConfig

VOCAB, LIMIT = 80, 75  # five ids of padding
PARSED = Parsed(ok=True, text="")
CANDIDATE = Candidate(operation="rephrase", source="", raw="", parsed=PARSED)


def model_of(topology: Topology, family: str = "olmo2", seed: int = 1) -> Model:
    config = ModelConfig(
        family="olmo2" if family == "olmo2" else "llama", layers=3, d_model=32, heads=4, kv_heads=2, ffn=48,
        vocab_size=VOCAB, seq_len=64, tie_embeddings=family == "llama", init_std=0.2,
    )  # fmt: skip
    return build_model(config, topology, seed=seed)


def config_of(top_p: float = 0.8, temperature: float = 1.3, **settings: object) -> TuneConfig:
    sampling = SamplingConfig(temperature=temperature, top_p=top_p, max_new_tokens=12)
    values = {"steps": 1, "prompts_per_step": 3, "group_size": 2, "micro_batch": 4, "sampling": sampling}
    return TuneConfig.model_validate(values | settings)


def rollouts_of(model: Model, config: TuneConfig) -> list[Rollout]:
    """Ragged prompts, completions of different lengths, an advantage of its own for each."""
    prompts = [[3, 9, 27], [5], [1, 2, 4, 8, 16, 32, 64]]
    sampled = Sampler(model).generate(
        prompts, group_size=config.group_size, sampling=config.sampling, stop_ids=frozenset(range(8)), seeds=[1, 2, 3],
        vocab_limit=LIMIT,
    )  # fmt: skip
    piece = Slice(doc_id="d", start=0, end=1, text="x")
    return [
        Rollout(
            prompt=Prompt(source=piece, token_ids=prompt), member=member, completion=completion, candidate=CANDIDATE,
            reward=0.0, parts={}, advantage=0.5 + index - member,
        )
        for index, (prompt, group) in enumerate(zip(prompts, sampled, strict=True))
        for member, completion in enumerate(group)
    ]  # fmt: skip


def batches_of(model: Model, config: TuneConfig) -> list[RolloutBatch]:
    rollouts = rollouts_of(model, config)
    return taught(rollouts, micro_batches(rollouts, config, torch.device("cpu")))


def taught(rollouts: list[Rollout], batches: list[RolloutBatch]) -> list[RolloutBatch]:
    """With each rollout's own advantage at all of its tokens."""
    return [
        replace(
            batch,
            advantage_N=torch.cat(
                [torch.full((len(rollouts[at].completion.token_ids),), rollouts[at].advantage) for at in batch.places]
            ),
        )
        for batch in batches
    ]


@pytest.mark.parametrize("family", ["olmo2", "llama"])
@pytest.mark.parametrize(("top_p", "temperature"), [(1.0, 1.0), (1.0, 0.6), (0.8, 1.3), (0.3, 1.0)])
def test_sampler_log_probabilities_equal_the_trainers(
    topology: Topology, family: str, top_p: float, temperature: float
) -> None:
    model, config = model_of(topology, family), config_of(top_p, temperature)
    total = 0
    for batch in batches_of(model, config):
        assert (batch.nuclei is None) == (top_p == 1.0)
        scored = sampled_logprobs(
            model, model.hidden(batch.tokens_BS, batch.rows), batch.labels_BS, batch.nuclei, temperature=temperature,
            vocab_limit=LIMIT,
        )  # fmt: skip
        torch.testing.assert_close(scored.logprob.detach(), batch.behaviour_N, rtol=0, atol=1e-5)
        total += len(batch.behaviour_N)
    assert total > 20


def nuclei_of(rows: list[list[int]]) -> Nuclei:
    counts = torch.tensor([0] + [len(row) for row in rows])
    return Nuclei(offsets=counts.cumsum(0), ids=torch.tensor([i for row in rows for i in row], dtype=torch.int32))


def test_probabilities_within_a_nucleus_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(1, 16, generator=generator), torch.randn(40, 16, generator=generator)
    ids = [2, 3, 17, 39]
    rows = hidden.expand(4, -1)
    scored = nucleus_logprob(rows, weight, torch.tensor(ids), nuclei_of([ids] * 4), temperature=0.7)
    assert abs(float(scored.logprob.exp().sum()) - 1.0) < 1e-6
    assert scored.entropy is not None
    torch.testing.assert_close(scored.entropy[0], -(scored.logprob.exp() * scored.logprob).sum())


def test_log_probabilities_within_a_nucleus_and_gradients_equal_masked_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [[1, 5], [7], list(range(30)), [0, 29, 3]]
    target = torch.tensor([5, 7, 11, 0])
    hidden, weight = (torch.randn(n, 24, generator=generator, requires_grad=True) for n in (4, 30))
    scored = nucleus_logprob(hidden, weight, target, nuclei_of(rows), temperature=1.7)
    outer = torch.tensor([1.0, -2.0, 0.5, 3.0])
    others = torch.tensor([0.7, 1.0, -1.0, 0.2])
    assert scored.entropy is not None
    actual = torch.autograd.grad((outer * scored.logprob).sum() + (others * scored.entropy).sum(), (hidden, weight))
    mask = torch.full((4, 30), float("-inf"))
    for row, ids in enumerate(rows):
        mask[row, ids] = 0.0
    logprobs = torch.log_softmax(hidden.double() @ weight.double().T / 1.7 + mask, -1)
    plain = logprobs[torch.arange(4), target]
    entropy = -(logprobs.exp() * logprobs.masked_fill(mask.isinf(), 0.0)).sum(-1)
    expected = torch.autograd.grad((outer * plain).sum() + (others * entropy).sum(), (hidden, weight))
    torch.testing.assert_close(scored.logprob, plain.float(), rtol=0, atol=2e-6)
    torch.testing.assert_close(scored.entropy, entropy.float(), rtol=0, atol=2e-6)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


ROWS = [[3, 9, -100, 29, 1], [0, 5, 7, 11, 2]]


def limited(tp: int) -> list[tuple[list[float], bool, int]]:
    """Under each limit log-probabilities, entropy and gradients, and how the op was asked: a bias? how many rows?"""
    found = []
    with launched(ParallelConfig(tp=tp)) as topology:
        for limit in (LIMIT, 30, VOCAB):
            model = model_of(topology)
            hidden = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
            asked = policy._limited(model, limit, None)
            scored = sampled_logprobs(
                model, hidden, torch.tensor(ROWS), None, temperature=1.3, vocab_limit=limit, entropy=True
            )
            assert scored.entropy is not None
            (scored.logprob.sum() + 0.1 * scored.entropy.sum()).backward()
            weight = model.output_weight()
            assert hidden.grad is not None and weight.grad is not None
            of_weight = torch.zeros(VOCAB)
            of_weight[model.vocab_start :][: len(weight)] = weight.grad.sum(1)
            torch.distributed.all_reduce(of_weight)
            numbers = [scored.logprob, scored.entropy, hidden.grad.sum(-1).flatten(), of_weight]
            found.append((torch.cat(numbers).tolist(), asked.get("bias") is not None, len(asked["weight"])))
    return found


def test_a_vocabulary_is_limited_by_leaving_rows_out_and_by_a_bias_where_a_rank_would_have_none(
    topology: Topology,
) -> None:
    (alone,), split = run_ranks(limited, 1, tp=1), run_ranks(limited, 2, tp=2)
    hidden = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    logits = hidden @ model_of(topology).output_weight().detach().T / 1.3
    assert [how for _, *how in alone] == [[False, LIMIT], [False, 30], [False, VOCAB]]
    assert [how for _, *how in split[0]] == [[False, 40], [True, 40], [False, 40]]
    assert [how for _, *how in split[1]] == [[False, LIMIT - 40], [True, 40], [False, 40]]
    for at, limit in enumerate((LIMIT, 30, VOCAB)):
        found = alone[at][0]
        assert all(part[at][0] == pytest.approx(found, abs=1e-5) for part in split)
        assert found[-VOCAB:][limit:] == [0.0] * (VOCAB - limit), "what is never drawn has no gradient"
        logprobs = logits[..., :limit].log_softmax(-1)
        kept = [float(logprobs[b, s, one]) for b, row in enumerate(ROWS) for s, one in enumerate(row) if one >= 0]
        assert found[: len(kept)] == pytest.approx(kept, abs=1e-5)


def test_ids_with_a_bias_of_their_own_are_limited_by_it_too(topology: Topology) -> None:
    model = model_of(topology)
    asked = policy._limited(model, LIMIT, {3: 2.0})
    assert len(asked["weight"]) == VOCAB and asked["bias"][3] == 2.0
    assert asked["bias"].isinf().nonzero().flatten().tolist() == list(range(LIMIT, VOCAB))


def test_a_target_outside_its_nucleus_is_refused() -> None:
    with pytest.raises(ValueError, match="nucleus"):
        nucleus_logprob(
            torch.ones(2, 4), torch.ones(9, 4), torch.tensor([1, 2]), nuclei_of([[1], [3]]), temperature=1.0
        )


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_grpo_with_one_update_is_plain_policy_gradient(topology: Topology, aggregation: str) -> None:
    """The engine's gradient against -A log p by hand, over logits written out, mean by tokens or by sequences."""
    model = model_of(topology)
    config = config_of(kl_beta=0.0, aggregation=aggregation)
    rollouts = rollouts_of(model, config)
    tokens = sum(len(rollout.completion.token_ids) for rollout in rollouts)
    denominator = float(tokens if aggregation == "token" else len(rollouts))
    by_hand = torch.zeros(())
    for rollout in rollouts:
        prompt, completion = rollout.prompt.token_ids, rollout.completion
        hidden = model.hidden(torch.tensor([prompt + completion.token_ids[:-1]]))[0, len(prompt) - 1 :]
        logits = hidden @ model.output_weight().T / config.sampling.temperature
        assert completion.nuclei is not None
        sets = completion.nuclei.ids.long().split(completion.nuclei.offsets.diff().tolist())
        logprobs = [
            row[ids].log_softmax(-1)[ids.tolist().index(token)]
            for row, ids, token in zip(logits, sets, completion.token_ids, strict=True)
        ]
        share = 1.0 if aggregation == "token" else 1.0 / len(logprobs)
        by_hand = by_hand - rollout.advantage * share * torch.stack(logprobs).sum() / denominator
    expected = torch.autograd.grad(by_hand, list(model.parameters()))
    norm = torch.stack([gradient.square().sum() for gradient in expected]).sum().sqrt()

    engine = Engine(model, OptimizerConfig(lr=1e-30, weight_decay=0.0, clip=0.0))
    batches = taught(rollouts, micro_batches(rollouts, config, topology.device))
    result = engine.step(batches, PolicyLoss(config, LIMIT), denominator=denominator, rows_of=lambda batch: batch.rows)
    assert abs(result.grad_norm / float(norm) - 1.0) < 1e-4
    accumulated: Any
    for (name, accumulated), gradient in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(accumulated.main_grad, gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_the_reference_agrees_with_the_policy_at_the_start_so_kl_and_its_gradient_are_zero(topology: Topology) -> None:
    model = model_of(topology)
    config = config_of(kl_beta=1.0)
    reference_policy = prepare_policy(model, config)
    assert reference_policy is not None
    for batch in batches_of(model, config):
        reference_N = rollout_logprobs(batch, reference_policy, config, LIMIT)
        still = replace(batch, reference_N=reference_N, advantage_N=torch.zeros_like(reference_N))
        terms = PolicyLoss(config, LIMIT)(model, model.hidden(batch.tokens_BS, batch.rows), still)
        assert float(terms.extras["kl"]) == 0.0
        gradients = torch.autograd.grad(terms.objective, list(model.parameters()), allow_unused=True)
        assert all(gradient is None or not gradient.any() for gradient in gradients)


def test_the_reference_shares_frozen_storage_and_never_moves(topology: Topology) -> None:
    model = model_of(topology, "llama")
    config = config_of(train_last_blocks=1)
    reference_policy = prepare_policy(model, config)
    assert reference_policy is not None
    engine = Engine(model, OptimizerConfig(lr=0.1))
    batches = batches_of(model, config)
    before = [rollout_logprobs(batch, reference_policy, config, LIMIT) for batch in batches]
    engine.step(batches, PolicyLoss(config, LIMIT), denominator=1.0, rows_of=lambda batch: batch.rows)

    shared = {name for name, p in model.named_parameters() if not p.requires_grad}
    own = dict(reference_policy.named_parameters())
    assert 0 < len(shared) < len(own)
    for name, parameter in model.named_parameters():
        assert (parameter.data_ptr() == own[name].data_ptr()) == (name in shared)
        assert torch.equal(parameter, own[name]) == (name in shared), "the trained block must have moved, nothing else"
    for batch, old in zip(batches, before, strict=True):
        assert torch.equal(rollout_logprobs(batch, reference_policy, config, LIMIT), old)


def test_a_reference_of_a_wholly_trainable_model_shares_nothing(topology: Topology) -> None:
    model = model_of(topology)
    reference_policy = make_reference_policy(model)
    ours, theirs = ({p.data_ptr() for p in m.parameters()} for m in (model, reference_policy))
    assert not ours & theirs
