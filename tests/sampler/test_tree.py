"""Trees of prompts: each prompt's hidden state is that of the prompt alone, whatever it is read beside."""

from pathlib import Path

import pytest
import torch

from synpro_engine.dist import Topology
from synpro_engine.model.hf import import_hf
from synpro_engine.sampler.tree import TreeReader, passes, prompt_tree
from tests.model.shapes import CONFIGS, transformers_model


def _prompts() -> list[list[int]]:
    """Beginnings within beginnings, a prompt that is another's beginning, one twice, and one that stands alone."""
    generator = torch.Generator().manual_seed(5)

    def ids(length: int) -> list[int]:
        return torch.randint(96, (length,), generator=generator).tolist()

    source, text = ids(20), ids(9)
    entries = [ids(length) for length in (1, 5, 12, 7)]
    return [*(source + text + entry for entry in entries), source + ids(6), source, source, ids(17), ids(1)]


def test_a_tree_holds_each_beginning_once_and_each_token_sees_its_own() -> None:
    prompts = _prompts()
    tree = prompt_tree(prompts)
    beginnings = {tuple(prompt[: length + 1]) for prompt in prompts for length in range(len(prompt))}
    assert len(tree.token_N) == len(beginnings)
    seen = {place: [] for place in range(len(tree.token_N))}
    for block in tree.blocks():
        for query, row in zip(range(block.queries.start, block.queries.stop), block.seen_QK, strict=True):
            seen[query] = block.key_K[row].tolist()
    for prompt, row in zip(prompts, tree.row_R.tolist(), strict=True):
        assert tree.token_N[seen[row]].tolist() == prompt
        assert tree.position_N[seen[row]].tolist() == list(range(len(prompt)))


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_behind_each_prompt_of_a_tree_are_transformers(
    topology: Topology, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = transformers_model(CONFIGS[name])
    theirs.save_pretrained(tmp_path)
    reader = TreeReader(import_hf(tmp_path, topology).model)
    prompts = _prompts()
    ids = torch.randint(96, (len(prompts),))
    want = torch.stack(
        [theirs(torch.tensor([prompt])).logits[0, -1, id] for prompt, id in zip(prompts, ids, strict=True)]
    )
    whole = reader.logits(reader.hidden(prompt_tree(prompts)), ids)
    torch.testing.assert_close(whole, want, rtol=0, atol=2e-5)
    monkeypatch.setattr("synpro_engine.sampler.tree._QUERIES", 7)  # blocks begin within a prompt
    torch.testing.assert_close(reader.logits(reader.hidden(prompt_tree(prompts)), ids), want, rtol=0, atol=2e-5)


def test_passes_hold_no_more_tokens_than_they_may_and_every_prompt_once() -> None:
    prompts = _prompts()
    for most in (1, 30, 45, 1000):
        parts = list(passes(prompts, most))
        assert sorted(index for part in parts for index in part) == list(range(len(prompts)))
        for part in parts:
            tokens = len(prompt_tree([prompts[index] for index in part]).token_N)
            assert tokens <= most or len(part) == 1
    assert len(list(passes(prompts, 1000))) == 1
