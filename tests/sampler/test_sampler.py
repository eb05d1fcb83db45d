"""The sampler against the model's own forward, and against itself in other company."""

import dataclasses
import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from synpro_engine.config import UserError, load_config
from synpro_engine.dist import Axis, Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.sampler import Completion, Sampler, SamplerConfig, SamplingConfig
from synpro_engine.sampler.cache import PagePool, pages_for
from synpro_engine.sampler.decode import Decoder
from synpro_engine.sampler.reading import PromptReader

NEVER = frozenset[int]()
GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=24)


def prompts_of(*lengths: int, vocab: int = 90) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(vocab, (length,), generator=generator).tolist() for length in lengths]


def next_logits(model: Model, ids: list[int]) -> torch.Tensor:
    """What the whole model says after `ids`, computed afresh."""
    with torch.no_grad():
        return model.hidden(torch.tensor([ids]))[0, -1] @ model.output_weight().T


def check_against_recompute(model: Model, prompt: list[int], completion: Completion) -> None:
    ids = list(prompt)
    for token, logprob in zip(completion.token_ids, completion.full_logprobs, strict=True):
        logits = next_logits(model, ids)
        assert token == int(logits.argmax())
        assert abs(float(torch.log_softmax(logits, -1)[token]) - logprob) < 1e-5
        ids.append(token)


def test_greedy_with_the_cache_equals_full_recompute_for_ragged_prompts(model: Model) -> None:
    prompts = prompts_of(3, 31, 9, 1, 70)
    groups = Sampler(model).generate(prompts, group_size=1, sampling=GREEDY, stop_ids=frozenset({5}), seeds=[0] * 5)
    for prompt, (completion,) in zip(prompts, groups, strict=True):
        check_against_recompute(model, prompt, completion)


def test_sequences_that_end_early_and_late_arrivals_do_not_disturb_the_others(model: Model) -> None:
    """A batch too small for all prompts: groups join while others are half done, rows and groups are compacted."""
    prompts = prompts_of(12, 5, 40, 8, 22, 17)
    sampling = SamplingConfig(temperature=0.7, max_new_tokens=30)
    stops = frozenset(range(0, 90, 9))

    def sample(sampler: Sampler, first: int, last: int) -> list[list[Completion]]:
        seeds = [11 + index for index in range(first, last)]
        return sampler.generate(
            prompts[first:last], group_size=3, sampling=sampling, stop_ids=stops, seeds=seeds, vocab_limit=90
        )

    together = sample(Sampler(model), 0, 6)
    crowded = sample(Sampler(model, SamplerConfig(max_batch=7, prefill_tokens=50)), 0, 6)
    assert ids_of(crowded) == ids_of(together)
    assert len({len(c.token_ids) for group in together for c in group}) > 3, "lengths must differ for this to test much"
    for index in range(6):
        assert ids_of(sample(Sampler(model), index, index + 1)) == ids_of(together[index : index + 1])


def ids_of(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.token_ids for completion in group] for group in groups]


def test_the_live_batch_shrinks_as_sequences_end(model: Model) -> None:
    sampler = Sampler(model)
    groups = sampler.generate(
        prompts_of(6, 9), group_size=4, sampling=SamplingConfig(max_new_tokens=40), stop_ids=frozenset(range(0, 96, 6)),
        seeds=[1, 2],
    )  # fmt: skip
    lengths = [len(completion.token_ids) for group in groups for completion in group]
    assert sampler.stats.steps == max(lengths) - 1  # the first token comes from reading the prompt
    assert sampler.stats.new_tokens == sum(lengths), "no token is drawn for a sequence that has ended"
    assert sampler.stats.prompt_tokens == 15, "each prompt is read once, not once per member"


def test_members_of_a_group_differ_and_stop_ids_end_them(model: Model) -> None:
    stops = frozenset({7, 40, 41, 42})
    (group,) = Sampler(model).generate(
        prompts_of(5), group_size=6, sampling=SamplingConfig(max_new_tokens=60), stop_ids=stops, seeds=[3]
    )
    assert len({tuple(completion.token_ids) for completion in group}) == 6
    for completion in group:
        assert completion.finished == (completion.token_ids[-1] in stops)
        assert not stops.intersection(completion.token_ids[:-1])
        assert completion.finished or len(completion.token_ids) == 60


def test_a_completion_ends_where_the_models_context_is_full(model: Model) -> None:
    long, short = prompts_of(126, 4)
    ((cut,), (whole,)) = Sampler(model).generate(
        [long, short], group_size=1, sampling=GREEDY, stop_ids=NEVER, seeds=[0, 0]
    )
    assert (len(cut.token_ids), cut.finished) == (2, False)
    assert len(whole.token_ids) == 24


class _Operands(TorchFunctionMode):
    """Notes the addresses of all weights that products, lookups and norms are given."""

    FUNCTIONS = (F.linear, F.embedding, F.rms_norm)

    def __init__(self) -> None:
        super().__init__()
        self.addresses: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self.FUNCTIONS or str(func) in ("synpro_csrc.skinny_linear", "synpro_csrc.rms_norm"):
            given = (*args, *(kwargs or {}).values())
            self.addresses |= {value.data_ptr() for value in given if isinstance(value, Parameter)}
        return func(*args, **(kwargs or {}))


def test_the_sampler_computes_with_the_models_own_storage(model: Model) -> None:
    with _Operands() as seen:
        Sampler(model).generate(prompts_of(4), group_size=1, sampling=GREEDY, stop_ids=NEVER, seeds=[0])
    # Norms over the full width of queries and keys are spelt out, so they do not pass through F.rms_norm.
    expected = {p.data_ptr() for name, p in model.named_parameters() if not re.search(r"[qk]_layernorm", name)}
    assert expected <= seen.addresses, "a parameter was not read, or a copy of it"


def test_an_optimizer_step_shows_in_the_next_token(model: Model) -> None:
    sampler, (prompt,) = Sampler(model), prompts_of(8)

    def greedy() -> Completion:
        return sampler.generate([prompt], group_size=1, sampling=GREEDY, stop_ids=NEVER, seeds=[0])[0][0]

    before, saved = greedy(), [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.arange(parameter.numel(), device=parameter.device).view_as(parameter) % 3 - 1.0
    torch.optim.SGD(model.parameters(), lr=0.05).step()
    after = greedy()
    assert after.token_ids != before.token_ids
    check_against_recompute(model, prompt, after)
    with torch.no_grad():
        for parameter, old in zip(model.parameters(), saved, strict=True):
            parameter.copy_(old)
            parameter.grad = None
    assert greedy() == before


def test_a_model_in_bf16_samples_within_its_precision(topology: Topology) -> None:
    """Log-probabilities off from fp32's by no more than twice what the model's own bf16 forward is."""
    config = ModelConfig(
        family="olmo2", layers=2, d_model=64, heads=4, kv_heads=2, ffn=96, vocab_size=96, seq_len=64, init_std=0.1
    )
    low, high = (build_model(config, topology, dtype=dtype, seed=1) for dtype in (torch.bfloat16, torch.float32))
    with torch.no_grad():
        for p, q in zip(low.parameters(), high.parameters(), strict=True):
            q.copy_(p)
    (prompt,) = prompts_of(12)
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=40)
    ((completion,),) = Sampler(low).generate([prompt], group_size=1, sampling=sampling, stop_ids=NEVER, seeds=[4])
    ids = torch.tensor([prompt + completion.token_ids], device=topology.device)
    with torch.no_grad():
        scores = [
            m.logprobs_from_hidden(m.hidden(ids[:, :-1]), ids[:, 1:]).logprob[0, len(prompt) - 1 :] for m in (low, high)
        ]
    allowed = (scores[0] - scores[1]).abs().max()
    assert (torch.tensor(completion.logprobs, device=topology.device) - scores[1]).abs().max() <= 2 * allowed


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_keys_of_a_prompt_in_bf16_are_the_trainers_to_the_last_bit(topology: Topology, family: Any) -> None:
    """In the first layer, whose input is the same; at positions whose angles bf16 does not hold."""
    config = ModelConfig(
        family=family, layers=1, d_model=64, heads=4, kv_heads=2, ffn=96, vocab_size=96, seq_len=1280, init_std=0.1
    )
    model = build_model(config, topology, dtype=torch.bfloat16, seed=1)
    (prompt,) = prompts_of(1200)
    seen = list[torch.Tensor]()
    layer: Any = model.chunks[0].decoder.layers[0]
    with layer.self_attention.core_attention.register_forward_pre_hook(lambda module, args: seen.append(args[1])):
        model.hidden(torch.tensor([prompt], device=topology.device))
    decoder = Decoder(model)
    pool = PagePool(decoder.cache_shape, pages_for(len(prompt)))
    (pages,), _ = PromptReader(decoder, pool).read([prompt])
    key_Snh = pool.of_layer(0)[0][pages].transpose(1, 2).flatten(0, 1)
    assert torch.equal(key_Snh[: len(prompt)], seen[0][:, 0])


def test_prompts_that_leave_no_room_are_a_user_error(model: Model) -> None:
    sampler = Sampler(model)
    for prompts, words in (
        ([[1] * 128], "prompt 0 has 128 tokens.*`model.seq_len` = 128"),
        ([[1], []], "prompt 1 is empty"),
    ):
        with pytest.raises(UserError, match=words):
            sampler.generate(prompts, group_size=1, sampling=GREEDY, stop_ids=NEVER, seeds=[0] * len(prompts))


def test_the_longest_prompt_it_names_is_the_longest_it_takes(model: Model) -> None:
    sampler = Sampler(model)
    longest = sampler.max_prompt_tokens

    def sample(length: int) -> Completion:
        ((completion,),) = sampler.generate(
            prompts_of(length), group_size=1, sampling=GREEDY, stop_ids=NEVER, seeds=[0]
        )
        return completion

    assert len(sample(longest).token_ids) == 1
    with pytest.raises(UserError, match=f"has {longest + 1} tokens"):
        sample(longest + 1)


@pytest.mark.parametrize("temperature", [-1.0, 1e-300, 1e300, math.nan])
def test_a_temperature_that_makes_no_distribution_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match="`temperature`"):
        load_config(SamplingConfig, {"temperature": temperature})


def test_no_prompts_give_no_completions(model: Model) -> None:
    assert Sampler(model).generate([], group_size=2, sampling=GREEDY, stop_ids=NEVER, seeds=[]) == []


def test_a_pipeline_is_refused(model: Model) -> None:
    here = model.topology
    stages = dataclasses.replace(here, pp=Axis(size=2, rank=0, group=here.pp.group))
    with pytest.raises(UserError, match=r"`parallel.pp`"):
        Sampler(dataclasses.replace(model, topology=stages))


def test_diverged_weights_are_named_instead_of_sampled(model: Model) -> None:
    weight = model.output_weight()
    saved = weight[3, 0].item()
    with torch.no_grad():
        weight[3, 0] = float("nan")
        try:
            with pytest.raises(FloatingPointError, match="not finite"):
                Sampler(model).generate(prompts_of(4), group_size=1, sampling=GREEDY, stop_ids=NEVER, seeds=[0])
        finally:
            weight[3, 0] = saved
