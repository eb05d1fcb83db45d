"""A generator made elsewhere, from its files through tuning to files that its own library reads."""

import functools
import runpy
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from synpro_engine.data.tokenizer import load_tokenizer
from synpro_engine.dist import Topology
from synpro_engine.model.build import freeze_but_last
from synpro_engine.model.hf import export_hf, import_hf
from synpro_engine.model.state import canonical_state
from tests.model.shapes import CONFIGS, transformers_model

FIRST, LAST = "model.layers.0.self_attn", "model.layers.2.self_attn"


@functools.cache
def toy() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).with_name("toy.py")))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "vectors"),
    [("llama 3", []), ("qwen2 tied", ["q_proj.bias", "v_proj.bias"]), ("qwen3", ["q_norm.weight", "k_norm.weight"])],
)
def test_a_tuned_model_computes_in_transformers_what_it_computes_here(
    topology: Topology, tmp_path: Path, name: str, vectors: list[str]
) -> None:
    config = CONFIGS[name].model_copy(update={"vocab_size": 36})
    transformers_model(config).save_pretrained(tmp_path / "source")
    policy = import_hf(tmp_path / "source", topology).model
    freeze_but_last(policy, 2)
    before = canonical_state(policy)
    tuning = toy()["CONFIG"].model_copy(update={"steps": 2})
    with torch.enable_grad():
        toy()["run"](topology, tmp_path / "run", tuning, policy=policy)
    after = canonical_state(policy)
    for part in ["q_proj.weight", *vectors]:
        assert torch.equal(after[f"{FIRST}.{part}"], before[f"{FIRST}.{part}"])
        assert not torch.equal(after[f"{LAST}.{part}"], before[f"{LAST}.{part}"])

    words = tokenizers.models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a")
    tokenizers.Tokenizer(words).save(str(tmp_path / "words.json"))
    export_hf(policy, tmp_path / "out", load_tokenizer(tmp_path / "words.json"))
    from transformers import AutoModelForCausalLM

    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    tokens_BS = torch.randint(36, (2, 61))
    logits = policy.hidden(tokens_BS) @ policy.output_weight().T
    assert (logits - theirs(tokens_BS).logits).abs().max() <= 1e-4
