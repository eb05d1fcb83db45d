"""Gauges of a collapse hold like against like: texts of the same documents, and pieces of the same lengths."""

from synpro_engine.cycle.steps.gauges import _alike_long, _grouped


def test_texts_are_grouped_by_document_whichever_piece_they_are_of() -> None:
    pieces = [("a#0-25", "1"), ("b", "2"), ("a#25-40", "3"), ("a", "4")]
    assert _grouped(pieces) == [["1", "3", "4"], ["2"]]


def test_both_sides_of_a_perplexity_are_cut_to_the_shorter_of_each_pair() -> None:
    own, others = [[1, 2, 3], [4, 5], [6, 7, 8, 9]], [[10], [11, 12, 13, 14]]
    mine, theirs = _alike_long(own, others, 3)
    assert mine == [[1], [4, 5], [6]] and theirs == [[10], [11, 12], [10]]
    assert _alike_long([[1, 2, 3, 4]], [[5, 6, 7, 8]], 3) == ([[1, 2, 3]], [[5, 6, 7]])
    assert _alike_long(own, [], 3) == ([], [])
