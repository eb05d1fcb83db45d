"""Exports replace nothing but exports, and tell every rank when they cannot be written."""

from pathlib import Path

import pytest
import tokenizers
import torch

from synpro_engine.config import UserError, new_artifact
from synpro_engine.data.tokenizer import load_tokenizer
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.hf import export_hf, import_hf
from synpro_engine.model.state import canonical_state

SHAPE = ModelConfig(family="llama", layers=1, d_model=16, heads=2, kv_heads=2, ffn=16, vocab_size=32, seq_len=16)


@pytest.fixture
def tokenizer_path(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    vocabulary = tokenizers.models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a")
    tokenizers.Tokenizer(vocabulary).save(str(path))
    return path


def _user_directory(path: Path) -> Path:
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")
    return path


def test_only_an_export_is_replaced_by_an_export(topology: Topology, tokenizer_path: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
    with new_artifact(tmp_path / "checkpoint", "checkpoint", {}) as inside:
        (inside / "thesis.tex").write_text("years of work")
    for path in (_user_directory(tmp_path / "models"), tmp_path / "checkpoint"):
        with pytest.raises(UserError, match=f"{path}.*not replaced"):
            export_hf(build_model(SHAPE, topology), path, tokenizer)
        assert (path / "thesis.tex").read_text() == "years of work"
    for seed in (1, 2):
        model = build_model(SHAPE, topology, seed=seed)
        export_hf(model, tmp_path / "out", tokenizer)
        again = canonical_state(import_hf(tmp_path / "out", topology).model)
        assert all(torch.equal(again[name], tensor) for name, tensor in canonical_state(model).items())


def _export_on_two_ranks(directory: str, tokenizer_path: str) -> list[str]:
    faults = []
    with launched(ParallelConfig(tp=2)) as topology:
        model = build_model(SHAPE, topology)
        for name in ("models", "file/out", "out"):
            try:
                export_hf(model, Path(directory) / name, load_tokenizer(Path(tokenizer_path)))
                faults.append("")
            except UserError as error:
                faults.append(str(error))
    return faults


def test_every_rank_learns_that_an_export_failed_and_goes_on(tokenizer_path: Path, tmp_path: Path) -> None:
    _user_directory(tmp_path / "models")
    (tmp_path / "file").write_text("")
    one, other = run_ranks(
        _export_on_two_ranks, 2, timeout_s=120, directory=str(tmp_path), tokenizer_path=str(tokenizer_path)
    )
    assert one == other and one[2] == ""
    assert "models: holds files" in one[0] and "Not a directory" in one[1]
    assert (tmp_path / "out" / "model.safetensors").exists()
