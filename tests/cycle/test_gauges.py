"""Gauges of a collapse hold like against like: texts of the same documents, and pieces of the same lengths."""

from dataclasses import asdict
from pathlib import Path

import pytest

from synpro_engine.config import json_text, new_artifact
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.run_layout import documents_path
from synpro_engine.cycle.steps import gauges
from synpro_engine.cycle.steps.gauges import _alike_long, _grouped, diversities
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.data import Document, write_documents
from synpro_engine.evaluate import measure_diversity


def test_texts_are_grouped_by_document_whichever_piece_they_are_of() -> None:
    pieces = [("a#0-25", "1"), ("b", "2"), ("a#25-40", "3"), ("a", "4")]
    assert _grouped(pieces) == [["1", "3", "4"], ["2"]]


def _tokenized(directory: Path, train: list[str], validation: list[str]) -> Path:
    with new_artifact(directory / "tokenize", "tokenize", {}) as stage:
        for split, texts in (("train", train), ("validation", validation)):
            path = documents_path(stage, split)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_documents(path, [Document(id=f"{split}-{n}", text=text) for n, text in enumerate(texts)])
    return directory / "tokenize"


def test_rare_words_of_the_organic_text_are_those_of_documents_that_the_common_ones_were_not_counted_on(
    tmp_path: Path,
) -> None:
    tokens = _tokenized(tmp_path, ["the river rose high"] * 20, ["the moon rose", "a moon set"])
    organic = diversities(tokens, {})["organic"]
    assert organic["texts"] == 20 and organic["rare_words"] == pytest.approx(4 / 6)  # moon, a, moon, set


def test_of_a_document_no_more_is_measured_than_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "_MOST_CHARS", 19)
    long, short = "the river rose high and fell", "the river rose high"
    whole = diversities(_tokenized(tmp_path / "long", [long] * 20, [f"{short} moon"]), {})["organic"]
    assert whole == diversities(_tokenized(tmp_path / "short", [short] * 20, [short]), {})["organic"]
    assert whole["utf8_bytes"] == 20 * len(short) and whole["rare_words"] == 0.0


def test_both_sides_of_a_perplexity_are_cut_to_the_shorter_of_each_pair() -> None:
    own, others = [[1, 2, 3], [4, 5], [6, 7, 8, 9]], [[10], [11, 12, 13, 14]]
    mine, theirs = _alike_long(own, others, 3)
    assert mine == [[1], [4, 5], [6]] and theirs == [[10], [11, 12], [10]]
    assert _alike_long([[1, 2, 3, 4]], [[5, 6, 7, 8]], 3) == ([[1, 2, 3]], [[5, 6, 7]])
    assert _alike_long(own, [], 3) == ([], [])


def test_an_evaluation_that_lacks_a_gauge_is_one_of_an_earlier_version(tmp_path: Path) -> None:
    now = asdict(measure_diversity(["The river rose."]))  # some of it null, for want of text to compare with
    earlier = {name: value for name, value in now.items() if not name.startswith("kl_")}
    for run, rows in (("now", {"organic": now}), ("earlier", {"organic": now, "rephrase": earlier})):
        with new_artifact(tmp_path / run / "evaluate", "evaluate", {}) as folder:
            (folder / "results.json").write_text(json_text({"diversity": rows}))
    recipe = load_recipe("smoke")
    assert FinishedRun(tmp_path / "now", recipe, ["evaluate"]).with_fewer_gauges == []
    assert FinishedRun(tmp_path / "earlier", recipe, ["evaluate"]).with_fewer_gauges == ["evaluate"]
