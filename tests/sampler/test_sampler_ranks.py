"""Sampling on tensor-parallel ranks: the same tokens as one process."""

from typing import Any

import pytest
import torch

from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.state import canonical_state, load_canonical
from synpro_engine.rl.policy import sampled_logprobs
from synpro_engine.sampler import Nuclei, Sampler, SamplerConfig, SamplingConfig
from synpro_engine.sampler.static import StaticSteps, eagerly


def _sampler(model: Any, config: SamplerConfig, static: bool) -> Sampler:
    """With steps of static shape as a graph has them, or ordinary ones."""
    sampler = Sampler(model, config)
    sampler._static = StaticSteps(sampler._decoder, config, eagerly) if static else None
    return sampler


def _sample(parallel: ParallelConfig, speculate: int = 0, stride: int = 1, static: bool = False) -> dict[str, Any]:
    """Token ids, log-probabilities and the trainer's log-probabilities with their gradient, for all families."""
    found: dict[str, Any] = {}
    with launched(parallel) as topology:
        for family in ("olmo2", "llama", "qwen2", "qwen3"):
            config = ModelConfig(
                family=family, layers=2, d_model=48, heads=8, kv_heads=4, ffn=64, vocab_size=96, seq_len=64,
                tie_embeddings=family == "llama", init_std=0.2,
            )  # fmt: skip
            model = build_model(config, topology, seed=2)
            _shake_vectors(model)
            prompts = [list(range(1, 14)), [30, 2, 5], [88, 89, 1, 4, 61]]
            sampling = SamplingConfig(temperature=0.9, top_p=0.8, max_new_tokens=12)
            sampler = _sampler(model, SamplerConfig(speculate=speculate, stride=stride), static)
            groups = sampler.generate(
                prompts, group_size=2, sampling=sampling, stop_ids=frozenset({5, 6}), seeds=[4, 5, 6], vocab_limit=90
            )
            found[family] = {
                "ids": [[c.token_ids for c in group] for group in groups],
                "logprobs": [c.logprobs for group in groups for c in group],
                "full": [c.full_logprobs for group in groups for c in group],
            }
            for name, nuclei in (("nucleus", groups[0][0].nuclei), ("all", None)):
                found[family][name] = _trainer_side(model, prompts[0], groups[0][0].token_ids, nuclei)
            # Cold, so that it repeats itself, which can be guessed.
            cold = sampling.model_copy(update={"temperature": 0.1, "max_new_tokens": 40})
            groups = sampler.generate(
                prompts, group_size=2, sampling=cold, stop_ids=frozenset(), seeds=[1, 2, 3], vocab_limit=90
            )
            found[family]["cold"] = [c.token_ids for group in groups for c in group]
            found[family]["guesses"] = [sampler.drafted, sampler.kept]
            found[family]["apart"] = _sample_apart(model, topology.rank, stride, static)
    return found


def _sample_apart(model: Any, rank: int, stride: int, static: bool) -> list[Any]:
    """Everything that was drawn where the ranks' logits part, as sums on a GPU may; at top_p 0.8 and at 1."""
    sampler = _sampler(model, SamplerConfig(stride=stride), static)
    decoder: Any = sampler._decoder
    step = decoder.step
    decoder.step = lambda *inputs: step(*inputs) * (1 + 0.5 * rank)
    found = []
    for top_p in (0.8, 1.0):
        sampling = SamplingConfig(temperature=1.0, top_p=top_p, max_new_tokens=9)
        for completion in sampler.generate(
            [[1, 2, 3], [7, 8]], group_size=1, sampling=sampling, stop_ids=frozenset({5}), seeds=[1, 2]
        ):
            nuclei = completion[0].nuclei
            found.append([completion[0].token_ids, completion[0].logprobs, completion[0].full_logprobs])
            found.append(None if nuclei is None else [nuclei.offsets.tolist(), nuclei.ids.tolist()])
    return found


def _shake_vectors(model: Any) -> None:
    """Norms away from one and biases from zero, so that each of them matters."""
    generator = torch.Generator().manual_seed(7)
    load_canonical(
        model,
        {
            name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator) if tensor.dim() == 1 else tensor
            for name, tensor in canonical_state(model).items()
        },
    )


def _trainer_side(model: Any, prompt: list[int], answer: list[int], nuclei: Nuclei | None) -> dict[str, Any]:
    device = model.topology.device
    tokens = torch.tensor([prompt + answer[:-1]], device=device)
    labels = torch.tensor([[-100] * (len(prompt) - 1) + answer], device=device)
    hidden = model.hidden(tokens).detach().requires_grad_()
    scored = sampled_logprobs(model, hidden, labels, nuclei, temperature=0.9, vocab_limit=90, entropy=True)
    scored.logprob.mul(torch.linspace(1, 2, len(answer), device=device)).sum().backward()
    assert scored.entropy is not None and hidden.grad is not None
    weight = model.output_weight()
    full = [torch.zeros_like(weight) for _ in range(model.topology.tp.size)]
    full[model.topology.tp.rank] = weight.grad
    for rank, shard in enumerate(full):
        torch.distributed.broadcast(shard, group_src=rank, group=model.topology.tp.group)
    weight.grad = None
    return {
        "logprob": scored.logprob.tolist(), "entropy": scored.entropy.tolist(), "hidden_grad": hidden.grad.tolist(),
        "weight_grad": torch.cat(full).tolist(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """One process, a step at a time, without guesses."""
    return _sample(ParallelConfig())


@pytest.mark.parametrize(
    "way",
    [{"speculate": 3}, pytest.param({"stride": 5}, marks=pytest.mark.slow), {"stride": 5, "static": True}],
    ids=str,
)
def test_two_tensor_parallel_ranks_sample_and_score_as_one_process_does_token_by_token(
    alone: dict[str, Any], way: dict[str, int]
) -> None:
    ranks = run_ranks(_sample, 2, parallel=ParallelConfig(tp=2, sequence_parallel=False), **way)
    for family in alone:
        drafted, kept = ranks[0][family]["guesses"]
        assert ranks[1][family]["guesses"] == [drafted, kept]
        assert drafted > kept > 0 if "speculate" in way else drafted == kept == 0
    for family in alone:
        apart = [rank[family]["apart"] for rank in ranks]
        assert apart[0] == apart[1] and apart[0][1] is not None and apart[0][-1] is None
    for rank in ranks:
        for family, expected in alone.items():
            assert rank[family]["ids"] == expected["ids"] and rank[family]["cold"] == expected["cold"]
            for key in ("logprobs", "full"):
                for ours, theirs in zip(rank[family][key], expected[key], strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
            for key in ("nucleus", "all"):
                for name, value in expected[key].items():
                    actual = torch.tensor(rank[family][key][name])
                    torch.testing.assert_close(actual, torch.tensor(value), rtol=1e-4, atol=2e-5, msg=f"{key} {name}")
