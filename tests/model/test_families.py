"""The two families against transformers, and files in and out."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from synpro_engine.config import UserError
from synpro_engine.data.tokenizer import Tokenizer, load_tokenizer
from synpro_engine.dist import Topology
from synpro_engine.model import tensor_files
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.hf import export_hf, import_hf, read_hf_config


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    words = tokenizers.models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a")
    tokenizers.Tokenizer(words).save(str(tmp_path / "words.json"))
    return load_tokenizer(tmp_path / "words.json")


def _theirs(config: ModelConfig) -> Any:
    """A transformers model of this shape, norms away from one so that each of them matters."""
    from transformers import LlamaConfig, LlamaForCausalLM, Olmo2Config, Olmo2ForCausalLM

    torch.manual_seed(5)
    make, settings = {"llama": (LlamaForCausalLM, LlamaConfig), "olmo2": (Olmo2ForCausalLM, Olmo2Config)}[config.family]
    model = make(
        settings(
            hidden_size=config.d_model, intermediate_size=config.ffn, num_hidden_layers=config.layers,
            num_attention_heads=config.heads, num_key_value_heads=config.kv_heads, vocab_size=config.vocab_size,
            rope_theta=config.rope_theta, rms_norm_eps=1e-5, tie_word_embeddings=config.tie_embeddings,
            initializer_range=0.2, pad_token_id=None, bos_token_id=None, eos_token_id=None,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    return model


@torch.no_grad()
def test_logits_equal_transformers(topology: Topology, config: ModelConfig, tmp_path: Path) -> None:
    theirs = _theirs(config)
    theirs.save_pretrained(tmp_path / "model")
    model, _ = import_hf(tmp_path / "model", topology)
    tokens_BS = torch.randint(config.vocab_size, (3, 40))
    logits = model.hidden(tokens_BS) @ model.output_weight().T
    assert model.config.rope_theta == config.rope_theta and model.config.norm_eps == 1e-5
    assert (logits - theirs(tokens_BS).logits).abs().max() <= 1e-4


@torch.no_grad()
def test_transformers_reads_what_is_exported(
    topology: Topology, config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = build_model(config, topology, dtype=torch.bfloat16, seed=3)
    export_hf(model, tmp_path / "out", tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert theirs.dtype == torch.bfloat16 and theirs.config.eos_token_id == 0
    theirs = theirs.float()
    tokens_BS = torch.randint(config.vocab_size, (2, 33))
    model32, _ = import_hf(tmp_path / "out", topology)
    logits = model32.hidden(tokens_BS) @ model32.output_weight().T
    assert (logits - theirs(tokens_BS).logits).abs().max() <= 1e-4
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|endoftext|>"


@pytest.mark.parametrize("file_bytes", [2**30, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_then_import_is_bitwise(
    topology: Topology, config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, file_bytes: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(tensor_files, "FILE_BYTES", file_bytes)
    model = build_model(config, topology, dtype=dtype)
    export_hf(model, tmp_path / "out", tokenizer)
    again, tokens = import_hf(tmp_path / "out", topology, dtype=dtype)
    before, after = model.canonical_state(), again.canonical_state()
    assert again.config == config
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert load_tokenizer(tokens).fingerprint == tokenizer.fingerprint
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (file_bytes < 2**30)


def test_seq_len_may_replace_the_file_s(
    topology: Topology, config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    export_hf(build_model(config, topology), tmp_path / "out", tokenizer)
    assert read_hf_config(tmp_path / "out").seq_len == config.seq_len
    assert import_hf(tmp_path / "out", topology, seq_len=16).model.config.seq_len == 16


@pytest.fixture
def exported(topology: Topology, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    shape = ModelConfig(
        family="llama", layers=1, d_model=16, heads=2, kv_heads=2, ffn=16, vocab_size=32, seq_len=16
    )  # fmt: skip
    export_hf(build_model(shape, topology), tmp_path / "out", tokenizer)
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "`rope_scaling` is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "`rope_scaling` is not supported"),
        ({"attention_bias": True}, "`attention_bias` is not supported"),
        ({"hidden_act": "gelu"}, "`hidden_act` 'gelu'"),
        ({"model_type": "mistral"}, "`model_type` 'mistral' is not one of llama, olmo2"),
        ({"num_hidden_layers": None}, "`layers`"),
        ({"num_hidden_layers": 2}, r"tensor `model.layers.1.self_attn.q_proj.weight` is missing"),
        ({"intermediate_size": 32}, r"tensor `model.layers.0.mlp.gate_proj.weight` has shape \(16, 16\), .*\(32, 16\)"),
    ],
)
def test_what_cannot_be_computed_alike_is_refused(
    topology: Topology, exported: Path, changes: dict[str, Any], message: str
) -> None:
    file = exported / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=message) as error:
        import_hf(exported, topology)
    assert str(exported) in str(error.value) and "\n" not in str(error.value)


def test_damaged_or_foreign_files_are_named(topology: Topology, exported: Path) -> None:
    weights = exported / "model.safetensors"
    save_file(load_file(weights) | {"model.layers.0.extra": torch.ones(1)}, weights)
    with pytest.raises(UserError, match=r"tensor `model.layers.0.extra` is not part of the model"):
        import_hf(exported, topology)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"model.safetensors: not a readable safetensors file"):
        import_hf(exported, topology)
    weights.unlink()
    with pytest.raises(UserError, match=r"neither model.safetensors nor"):
        import_hf(exported, topology)
    (exported / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: not readable as JSON"):
        import_hf(exported, topology)
