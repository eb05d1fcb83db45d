"""Every family's imported model, sampled: token by token what transformers' model of the same files says."""

from pathlib import Path

import pytest
import torch

from synpro_engine.dist import Topology
from synpro_engine.model.hf import import_hf
from synpro_engine.sampler import Sampler, SamplingConfig
from tests.model.shapes import CONFIGS, transformers_model


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_and_their_log_probabilities_are_transformers(
    topology: Topology, tmp_path: Path, name: str
) -> None:
    """Prompts of several lengths; with a stretched rotation they and their answers pass pretraining's length."""
    theirs = transformers_model(CONFIGS[name])
    theirs.save_pretrained(tmp_path)
    model = import_hf(tmp_path, topology).model
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(96, (length,), generator=generator).tolist() for length in (3, 37, 11, 1)]
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=24)
    groups = Sampler(model).generate(prompts, group_size=1, sampling=sampling, stop_ids=frozenset(), seeds=[0] * 4)
    for prompt, (completion,) in zip(prompts, groups, strict=True):
        ids = torch.tensor([prompt + completion.token_ids])
        logprobs = theirs(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert logprobs.argmax(-1).tolist() == completion.token_ids
        want = logprobs.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.full_logprobs), want, rtol=0, atol=2e-5)
