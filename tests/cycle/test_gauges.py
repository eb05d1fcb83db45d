"""Gauges of a collapse hold like against like: texts of the same documents, and pieces of the same lengths."""

from dataclasses import asdict
from pathlib import Path

from synpro_engine.config import json_text, new_artifact
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.steps.gauges import _alike_long, _grouped
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.evaluate import measure_diversity


def test_texts_are_grouped_by_document_whichever_piece_they_are_of() -> None:
    pieces = [("a#0-25", "1"), ("b", "2"), ("a#25-40", "3"), ("a", "4")]
    assert _grouped(pieces) == [["1", "3", "4"], ["2"]]


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
