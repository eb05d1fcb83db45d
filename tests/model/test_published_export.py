"""What went in comes out: an exported model answers to the prompts that it was tuned with."""

import json
import os
import runpy
import stat
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from synpro_engine.data import HFTokenizer, load_tokenizer, train_sentencepiece
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.gguf_tokenizer import write_tokenizer
from synpro_engine.model.hf import export_hf
from synpro_engine.sampler import Sampler, SamplingConfig
from synpro_engine.synth import ChatMessage, render_chat, stop_ids

PUBLISHED: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "synth" / "published.py"))
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The mill."}]
TURNS += [{"role": "user", "content": "Be brief 1871 é"}]


def _shape(rows: int) -> ModelConfig:
    return ModelConfig(
        family="llama", layers=1, d_model=16, heads=2, kv_heads=2, ffn=16, vocab_size=rows, seq_len=128, init_std=0.5
    )


def _auto(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


@pytest.fixture(scope="module", params=list(PUBLISHED["FAMILIES"]))
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, topology: Topology
) -> tuple[str, Path, Path]:
    """A family's name, its files as published, and an export that went through a stored copy, as a run's does."""
    place = tmp_path_factory.mktemp(request.param)
    source = PUBLISHED["write"](place / "source", request.param)
    load_tokenizer(source).save(place / "stored")
    tokenizer = load_tokenizer(place / "stored")
    export_hf(build_model(_shape(tokenizer.vocab_size + 3), topology, seed=4), place / "out", tokenizer)
    return request.param, source, place / "out"


def test_an_export_renders_conversations_as_its_source_does(exported: tuple[str, Path, Path]) -> None:
    name, source, out = exported
    before, after = _auto(source), _auto(out)
    assert type(before) is type(after) and len(before) == len(after)
    assert before.chat_template == after.chat_template
    assert [getattr(before, key) for key in NAMED] == [getattr(after, key) for key in NAMED]
    assert before.added_tokens_encoder == after.added_tokens_encoder
    assert before("The mill")["input_ids"] == after("The mill")["input_ids"]
    asked = {"add_generation_prompt": True, "return_dict": False, "enable_thinking": False}
    asked["date_string"] = "26 Jul 2024"
    ids = after.apply_chat_template(TURNS, **asked)
    assert ids == before.apply_chat_template(TURNS, **asked)
    assert ids == render_chat([ChatMessage(**turn) for turn in TURNS], "", load_tokenizer(out)), name
    assert load_tokenizer(out).fingerprint == load_tokenizer(source).fingerprint
    assert stop_ids(load_tokenizer(out)) == stop_ids(load_tokenizer(source))


def test_an_export_keeps_settings_and_its_config_agrees_with_them(exported: tuple[str, Path, Path]) -> None:
    name, source, out = exported
    for file in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        if (source / file).exists():
            assert json.loads((out / file).read_text()) == json.loads((source / file).read_text()), (name, file)
    for file in PUBLISHED["FAMILIES"][name].get("files", {}):
        assert (out / file).read_text() == (source / file).read_text()
    config, tokenizer = json.loads((out / "config.json").read_text()), _auto(out)
    generation = PUBLISHED["FAMILIES"][name].get("generation", {})
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert config[key] == generation.get(key, getattr(tokenizer, key)), key


def test_files_of_an_export_may_be_read_by_the_same_people(exported: tuple[str, Path, Path]) -> None:
    _, _, out = exported
    umask = os.umask(0)
    os.umask(umask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in out.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o666 & ~umask}, modes


@pytest.mark.parametrize("exported", ["llama3", "smollm2"], indirect=True)
def test_transformers_generates_from_an_export_what_our_sampler_does(
    topology: Topology, exported: tuple[str, Path, Path]
) -> None:
    from transformers import AutoModelForCausalLM

    from synpro_engine.model.hf import import_hf

    _, _, out = exported
    tokenizer = load_tokenizer(out)
    prompt = render_chat([ChatMessage(**turn) for turn in TURNS[:1]], "Here", tokenizer)
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=24)
    [[ours]] = Sampler(import_hf(out, topology).model).generate(
        [prompt], group_size=1, sampling=sampling, stop_ids=stop_ids(tokenizer), seeds=[1]
    )
    model: Any = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    theirs = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0, len(prompt) :].tolist()
    assert ours.token_ids == theirs
    ends = model.generation_config.eos_token_id
    assert ({*ends} if isinstance(ends, list) else {ends}) == stop_ids(tokenizer)


def test_a_sentencepiece_export_is_whole_and_reads_text_as_we_do(topology: Topology, tmp_path: Path) -> None:
    tokenizer = train_sentencepiece([PUBLISHED["TEXT"] * 9], 400, tmp_path / "t.model")
    export_hf(build_model(_shape(400), topology), tmp_path / "out", tokenizer)
    theirs, config = _auto(tmp_path / "out"), json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (None, 1, 2)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (None, 1, 2)
    for text in ("The mill", " two  spaces\n\n1871 é漢 ", "", "\tx"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text) and theirs.decode(tokenizer.encode(text)) == text
    assert load_tokenizer(tmp_path / "out").fingerprint == tokenizer.fingerprint


def test_an_export_whose_text_transformers_reads_otherwise_says_so(
    topology: Topology, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = iter([PUBLISHED["TEXT"]] * 40)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_prefix=str(tmp_path / "t"), vocab_size=50, minloglevel=2
    )
    tokenizer = load_tokenizer(tmp_path / "t.model")
    export_hf(build_model(_shape(50), topology), tmp_path / "out", tokenizer)
    [told] = [line for line in capfd.readouterr().err.splitlines() if "transformers will read text otherwise" in line]
    assert str(tmp_path / "out") in told and "unigram" in told and "nmt_nfkc" in told
    assert load_tokenizer(tmp_path / "out").unlike_transformers == tokenizer.unlike_transformers
    assert load_tokenizer(tmp_path / "out").fingerprint == tokenizer.fingerprint


def test_a_begin_of_text_in_a_gguf_file_is_kept(tmp_path: Path) -> None:
    """The metadata of a file by llama.cpp; `eot` is what ends a turn of a chat there."""
    made = HFTokenizer.from_file(PUBLISHED["write"](tmp_path / "t", "smollm2") / "tokenizer.json")
    data = json.loads((tmp_path / "t" / "tokenizer.json").read_text())
    words = sorted(data["model"]["vocab"], key=data["model"]["vocab"].__getitem__)
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in data["model"]["merges"]],
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(words) - 3),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": PUBLISHED["FAMILIES"]["smollm2"]["settings"]["chat_template"],
    }  # fmt: skip
    write_tokenizer(tmp_path / "x.gguf", metadata.get, tmp_path / "out")
    tokenizer, theirs = load_tokenizer(tmp_path / "out"), _auto(tmp_path / "out")
    assert tokenizer.bos_id == theirs.bos_token_id == 1 and stop_ids(tokenizer) == {0, 2}
    assert theirs("The mill")["input_ids"] == [1, *tokenizer.encode("The mill")] == [1, *made.encode("The mill")]
    asked = theirs.apply_chat_template(TURNS, add_generation_prompt=True, return_dict=False)
    assert asked == render_chat([ChatMessage(**turn) for turn in TURNS], "", tokenizer)
