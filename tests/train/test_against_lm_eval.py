"""Likelihoods of answers against lm-eval's own, of the same model as it is exported (extra `oracles`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from synpro_engine.config import json_text
from synpro_engine.data import PromptedConfig, load_tokenizer, read_tasks, train_sentencepiece
from synpro_engine.data.choices import QuestionSet, with_questions
from synpro_engine.data.tokenizer import PublishedTokenizer, start_id
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.hf import export_hf
from synpro_engine.train.questions import answer_nats, ask

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is an oracle that `make test-all` installs")
pytestmark = pytest.mark.slow
SEQ_LEN = 48
TEXT = ["Question: who was it?\nAnswer: darwin and the dog\n", "the dog was late so the mill was far, not old.\n"] * 40
ASKED = [
    {"prompt": "Question: who was it?\nAnswer:", "choices": ["darwin", "the dog", "a mill of old"], "gold": 1},
    {"prompt": "Question: what was late? " + "the mill was far and " * 9 + "\nAnswer:",  # longer than a window
     "choices": ["the dog", "naïve mills"], "gold": 0},
    {"prompt": "the mill was", "choices": ["old.", "far, not late.", "darwin", "it"], "gold": 3},
]  # fmt: skip
WAYS = [
    {
        "prompts": ["the dog was late so the dog", "the dog was late so the mill"],
        "choices": ["was far."] * 2,
        "gold": 1,
    },
    {"prompts": ["darwin was it, not darwin", "darwin was it, not the mill"], "choices": ["was old."] * 2, "gold": 0},
]


def _gpt2_like(path: Path) -> PublishedTokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer, made.decoder = level, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=level.alphabet(), show_progress=False
    )
    made.train_from_iterator(TEXT, trainer)
    path.mkdir()
    made.save(str(path / "tokenizer.json"))
    return load_tokenizer(path / "tokenizer.json")


@pytest.fixture(params=["SentencePiece", "bytes as GPT-2"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> PublishedTokenizer:
    if request.param == "bytes as GPT-2":
        return _gpt2_like(tmp_path / "gpt2")
    return train_sentencepiece(TEXT, 310, tmp_path / "t.model")


def _theirs(export: Path, records: list[dict[str, Any]], begin: str) -> tuple[list[float], list[dict[str, float]]]:
    """-log p of each answer in their order, and what lm-eval makes of each question."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    # As its WinoGrande has it where an answer has its own prompt: these are the choices, behind which one text stands.
    ways = "prompts" in records[0]
    forms: dict[str, Any] = {
        "doc_to_text": (lambda doc: doc["gold"]) if ways else (lambda doc: begin + doc["prompt"]),
        "doc_to_choice": (lambda doc: [begin + text for text in doc["prompts"]]) if ways else "{{choices}}",
        "doc_to_target": (lambda doc: doc["choices"][0]) if ways else "{{gold}}",
    }
    task = ConfigurableTask(
        config={
            "task": "quiz", "output_type": "multiple_choice", "test_split": "test", "num_fewshot": 0, **forms,
            "custom_dataset": lambda **_: {"test": Dataset.from_list(records)},
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
    )  # fmt: skip
    task.build_all_requests()
    harness = HFLM(pretrained=str(export), device="cpu", dtype="float32", batch_size=2, max_length=SEQ_LEN)
    answered = harness.loglikelihood(task.instances, disable_tqdm=True)
    made, at = [], 0
    for record in records:
        size = len(record["choices"])
        made.append(task.process_results(record, answered[at : at + size]))
        at += size
    return [-float(value) for value, _ in answered], made


@pytest.mark.parametrize("records", [ASKED, WAYS], ids=["one prompt", "a prompt for each"])
def test_each_answer_has_the_likelihood_that_lm_eval_finds_on_the_export(
    tokenizer: PublishedTokenizer, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "quiz.jsonl").write_text("".join(json_text(record) + "\n" for record in records))
    tasks = read_tasks(tmp_path / "quiz.jsonl", PromptedConfig(choices_field="choices", joiner=" "))
    questions = tuple(question for _, question in with_questions(tasks, tokenizer, SEQ_LEN, None))
    shape = ModelConfig(
        family="llama", layers=2, d_model=32, heads=2, kv_heads=2, ffn=64, seq_len=SEQ_LEN, init_std=0.3,
        vocab_size=tokenizer.vocab_size,
    )  # fmt: skip
    asked = QuestionSet(questions, start_id(tokenizer))
    with launched(ParallelConfig()) as topology:
        model = build_model(shape, topology, seed=5)
        export_hf(model, tmp_path / "out", tokenizer)
        ours = answer_nats(model, asked, seq_len=SEQ_LEN, micro_batch=2)
        accuracy = ask(model, asked, seq_len=SEQ_LEN, micro_batch=2).accuracy
    # What stands before a text that has no token to begin with is the end of the one before, which lm-eval leaves out.
    begin = "" if tokenizer.bos_id is not None else tokenizer.spell([tokenizer.eos_id])
    theirs, answers = _theirs(tmp_path / "out", records, begin)
    assert [ours[key] for key in sorted(ours)] == pytest.approx(theirs, abs=1e-4)
    assert accuracy == sum(answer["acc"] for answer in answers) / len(answers)
