"""The families against transformers, and files in and out."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from synpro_engine.data.tokenizer import Tokenizer, load_tokenizer
from synpro_engine.dist import Topology
from synpro_engine.model import tensor_files
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.hf import export_hf, import_hf
from synpro_engine.model.hf_config import read_hf_config
from synpro_engine.model.state import canonical_state
from tests.model.shapes import CONFIGS, transformers_model


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    vocabulary = tokenizers.models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a")
    tokenizers.Tokenizer(vocabulary).save(str(tmp_path / "tokenizer.json"))
    return load_tokenizer(tmp_path / "tokenizer.json")


@torch.no_grad()
def test_logits_equal_transformers(topology: Topology, config: ModelConfig, tmp_path: Path) -> None:
    theirs = transformers_model(config)
    theirs.save_pretrained(tmp_path / "model")
    model, _ = import_hf(tmp_path / "model", topology)
    tokens_BS = torch.randint(config.vocab_size, (3, 61))
    logits = model.hidden(tokens_BS) @ model.output_weight().T
    assert model.config == config.model_copy(update={"norm_eps": 1e-5, "init_std": 0.2})
    assert (logits - theirs(tokens_BS).logits).abs().max() <= 1e-4


@torch.no_grad()
def test_transformers_reads_what_is_exported(
    topology: Topology, config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = transformers_model(config)
    source.save_pretrained(tmp_path / "source")
    tokens_BS = torch.randint(config.vocab_size, (2, 61))
    for dtype in (torch.bfloat16, torch.float32):
        model, _ = import_hf(tmp_path / "source", topology, dtype=dtype)
        export_hf(model, tmp_path / "out", tokenizer)
        theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
        assert type(theirs) is type(source) and theirs.dtype == dtype and theirs.config.eos_token_id == 0
        theirs = theirs.float()
        model32, _ = import_hf(tmp_path / "out", topology)
        logits = model32.hidden(tokens_BS) @ model32.output_weight().T
        assert (logits - theirs(tokens_BS).logits).abs().max() <= 1e-4
    assert torch.equal(theirs(tokens_BS).logits, source(tokens_BS).logits)  # the last was fp32: what went in came out
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
    before, after = canonical_state(model), canonical_state(again)
    assert again.config == config
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert load_tokenizer(tokens).fingerprint == tokenizer.fingerprint
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (file_bytes < 2**30)


def test_seq_len_may_replace_the_file_s(
    topology: Topology, config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    export_hf(build_model(config, topology), tmp_path / "out", tokenizer)
    assert read_hf_config(tmp_path / "out").seq_len == config.seq_len
    model = import_hf(tmp_path / "out", topology, seq_len=16).model
    assert model.config.seq_len == 16
    export_hf(model, tmp_path / "again", tokenizer)
    assert read_hf_config(tmp_path / "again") == config


def test_an_export_states_no_length_beyond_a_window_that_it_has_not(
    topology: Topology, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    export_hf(build_model(CONFIGS["mistral"], topology), tmp_path / "out", tokenizer)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(settings | {"sliding_window": 32}))
    export_hf(import_hf(tmp_path / "out", topology, seq_len=16).model, tmp_path / "again", tokenizer)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["max_position_embeddings"] == 32


@torch.no_grad()
def test_a_shape_that_transformers_refuses_of_llama_is_exported_as_what_computes_the_same(
    topology: Topology, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    config = CONFIGS["llama 3"].model_copy(update={"heads": 5, "kv_heads": 5, "head_dim": 8})
    model = build_model(config, topology, seed=3)
    export_hf(model, tmp_path / "out", tokenizer)
    tokens_BS = torch.randint(config.vocab_size, (2, 61))
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert (model.hidden(tokens_BS) @ model.output_weight().T - theirs(tokens_BS).logits).abs().max() <= 1e-4
    assert read_hf_config(tmp_path / "out") == config.model_copy(update={"family": "mistral"})
