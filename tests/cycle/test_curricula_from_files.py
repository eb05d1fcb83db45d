"""Curricula from files: the same in every layout; and those that a run has not the text or the scores for end it."""

import json
from pathlib import Path

import numpy as np
import pytest

from synpro_engine.cli.main import main
from synpro_engine.config import new_artifact
from synpro_engine.cycle.run_layout import TOKENIZE, USED_SCORES
from synpro_engine.cycle.sections import OrganicCurriculum
from synpro_engine.cycle.steps.curricula import write_scores
from synpro_engine.data import TokenCorpus, read_documents
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.train.metrics import METRICS, read_metrics

SETTINGS = [
    "pretrain.max_steps=9", "pretrain.plateau=null", "pretrain.in_run=null", "pretrain.eval_every=0",
    "pretrain.tensorboard=false",
]  # fmt: skip


def _pretrain(directory: str, settings: list[str]) -> list[float]:
    """The losses of all steps."""
    assert main(["pretrain", "smoke", "--dir", directory, *SETTINGS, *settings]) == 0
    records = read_metrics(Path(directory) / "pretrain" / METRICS)
    return [record["loss"] for record in records if record["kind"] == "train"]


def test_ranks_read_by_scores_what_one_process_reads(tmp_path: Path) -> None:
    # By the ids of whole documents, which the pieces of the corpus have their scores from.
    lines = [json.dumps({"id": one.id, "value": float(len(one.text))}) for one in read_documents("embedded:sotu")]
    (tmp_path / "scores.jsonl").write_text("".join(line + "\n" for line in lines))
    mix = f"mix.organic={{scores: {tmp_path / 'scores.jsonl'}, repeats: [0.0, 2.5], order: sorted}}"
    alone = _pretrain(str(tmp_path / "one"), [mix])
    both = run_ranks(_pretrain, 2, directory=str(tmp_path / "two"), settings=[mix])
    plain = _pretrain(str(tmp_path / "plain"), [])
    assert all(losses == pytest.approx(alone, abs=1e-4) for losses in both)
    assert plain != pytest.approx(alone, abs=1e-3)


@pytest.mark.parametrize("piece_chars", [None, 1000])
def test_an_id_with_a_mark_in_it_is_that_of_a_piece_only_where_documents_were_cut(
    tmp_path: Path, piece_chars: int | None
) -> None:
    ids, scores = ["p", "p#1", "q#1"], {"p": 1.0, "p#1": 3.0, "q": 5.0}
    (tmp_path / "scores.jsonl").write_text(
        "".join(json.dumps({"id": id, "value": v}) + "\n" for id, v in scores.items())
    )
    with new_artifact(tmp_path / TOKENIZE, TOKENIZE, {"corpus": {"piece_chars": piece_chars}}):
        pass
    corpus = TokenCorpus(
        tokens=np.zeros(3, np.int32),
        offsets=np.arange(4),
        eos_id=0,
        text_bytes=1,
        fingerprint="f",
        read_ids=lambda: ids,
    )
    config = OrganicCurriculum(scores=str(tmp_path / "scores.jsonl"), order="sorted")
    with launched(ParallelConfig()) as topology:
        write_scores(tmp_path, {"organic": config}, {"organic": corpus}, {}, {}, tmp_path / "pretrain", topology)
    kept = np.load(tmp_path / USED_SCORES / "organic.npy")
    assert np.array_equal(kept, [1.0, 3.0, np.nan] if piece_chars is None else [1.0, 2.0, 5.0], equal_nan=True)


def test_pretraining_that_would_read_documents_too_often_does_not_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["pretrain", "smoke", "--dir", str(tmp_path / "run"), "pretrain.in_run=null", "mix.organic={max_epochs: 1}"]
    assert main(told) == 2
    assert "source `organic`: has text for" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("metrics.jsonl"))


def test_a_file_without_scores_of_these_documents_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scores.jsonl").write_text('{"id": "elsewhere", "value": 1.0}\n')
    mix = f"mix.organic={{scores: {tmp_path / 'scores.jsonl'}, order: sorted}}"
    assert main(["pretrain", "smoke", "--dir", str(tmp_path / "run"), "pretrain.in_run=null", mix]) == 2
    assert "scores.jsonl: no document of the train split has a score `influence`" in capsys.readouterr().err
