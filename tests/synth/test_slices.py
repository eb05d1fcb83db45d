import itertools
import random
import threading
from collections.abc import Callable

import pytest

from synpro_engine.data import Document, cut_spans, stable_hash
from synpro_engine.synth import GenerateConfig, SliceConfig, choose_slices, slices_of


def _text(rng: random.Random) -> str:
    pieces = ["word", "wörter", "。", ". ", "! ", "\n", "\n\n", " ", "\t", "\r\n", "x" * 30, "日本語", "\u2028", "🙂"]
    return "".join(rng.choices(pieces, k=rng.randint(1, 120)))


def words(text: str) -> int:
    """A tokenizer's count: white space alone is nothing, and long words are several tokens."""
    return sum(-(-len(word) // 4) for word in text.split())


@pytest.mark.parametrize("most", [1, 7, 60, 7000])
@pytest.mark.parametrize("size_of", [len, words])
def test_spans_tile_the_text_exactly_and_none_is_too_large(most: int, size_of: Callable[[str], int]) -> None:
    rng = random.Random(most)
    for _ in range(100):
        text = _text(rng)
        spans = cut_spans(text, most, size_of=None if size_of is len else size_of)
        assert "".join(text[start:end] for start, end in spans) == text
        assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
        assert all(start < end and size_of(text[start:end]) <= most for start, end in spans)


def test_spans_by_tokens_are_nearly_full() -> None:
    text = " ".join(f"word{n:05d}" for n in range(4000))
    sizes = [words(text[start:end]) for start, end in cut_spans(text, 500, size_of=words)]
    assert max(sizes) <= 500 and min(sizes[:-1]) >= 430


@pytest.mark.parametrize("size_of", [None, words])
def test_overlapping_slices_begin_again_at_a_sentence_and_leave_nothing_out(
    size_of: Callable[[str], int] | None,
) -> None:
    text = " ".join(f"This is sentence number {n}." for n in range(300))
    spans = cut_spans(text, 400 if size_of is None else 120, size_of=size_of, overlap=0.25)
    assert spans[0][0] == 0 and spans[-1][1] == len(text) and len(spans) > 10
    for (start, end), (following, _) in itertools.pairwise(spans):
        assert start < following < end and text[following:].startswith("This is sentence")
        assert 0.05 * (end - start) <= end - following <= 0.25 * (end - start)


def test_slices_know_their_place_and_those_of_blank_lines_are_left_out() -> None:
    rng = random.Random(3)
    for _ in range(100):
        document = Document("d", _text(rng))
        slices = list(slices_of(document, SliceConfig(max_chars=60, min_source_chars=5)))
        assert all(document.text[piece.start : piece.end] == piece.text for piece in slices)
        assert all(len(piece.text.strip()) >= 5 for piece in slices)


def test_a_slice_ends_with_a_paragraph_where_one_does() -> None:
    paragraph = "One sentence. Another sentence.\n\n"
    slices = slices_of(Document("d", paragraph * 9), SliceConfig(max_chars=100, min_source_chars=1))
    assert all(piece.text.endswith("\n\n") for piece in slices)


def test_slices_that_overlap_are_not_joined() -> None:
    with pytest.raises(ValueError, match="overlap would say things twice"):
        GenerateConfig(overlap=0.1, join=True)


def _documents() -> list[Document]:
    rng = random.Random(5)
    return [Document(f"d{n}", "".join(_text(rng) for _ in range(rng.randint(1, 60)))) for n in range(200)]


def test_slices_by_tokens_are_those_of_each_document_in_order_whichever_threads_count_them() -> None:
    counted_in, documents, config = set[str](), _documents(), SliceConfig(max_tokens=40, min_source_chars=1)

    def count(text: str) -> int:
        counted_in.add(threading.current_thread().name)
        return words(text)

    found = list(choose_slices(lambda: documents, config, 0, count))
    assert found == [piece for document in documents for piece in slices_of(document, config, words)]
    assert threading.current_thread().name not in counted_in


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_the_chosen_slices_are_those_of_smallest_hash_and_other_documents_are_cut_once(share: float) -> None:
    counted, documents = list[int](), _documents()
    config = SliceConfig(max_tokens=40, min_source_chars=1, max_slices=10)

    def count(text: str) -> int:
        counted.append(len(text))
        return words(text)

    every = list(choose_slices(lambda: documents, config.model_copy(update={"max_slices": None}), 7, count))
    once = sum(counted)
    counted.clear()
    chosen = list(choose_slices(lambda: documents, config, 7, count, share=share))
    by_hash = sorted(every, key=lambda piece: stable_hash(7, "synth.select", piece.key))
    smallest = by_hash[: round(10 * share)]
    assert chosen == [piece for piece in every if piece in smallest]
    assert sum(counted) < 1.3 * once
