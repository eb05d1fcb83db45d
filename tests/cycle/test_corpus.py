"""The corpus stage: duplicates share a split, bad records are counted and listed, the overlap is measured and shown."""

import itertools
import json
import random
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.config import UserError
from synpro_engine.cycle.recipe_files import load_recipe
from synpro_engine.cycle.run_layout import ACCOUNT, LEFT_OUT, documents_path
from synpro_engine.cycle.sections import CorpusConfig, TokenizerConfig
from synpro_engine.cycle.settings import TokenizeSettings
from synpro_engine.cycle.steps import stream, tokens
from synpro_engine.cycle.steps.accepted import Provenance
from synpro_engine.cycle.steps.corpus import build_corpus, open_split
from synpro_engine.cycle.steps.intake import SPLITS
from synpro_engine.cycle.steps.text_influence import slice_of, source_texts
from synpro_engine.data import SplitConfig, load_tokenizer, ngrams, read_documents, text_key, train_sentencepiece
from synpro_engine.data.sentencepiece_tokenizer import SentencePieceTokenizer
from synpro_engine.evaluate import overlap

SHARES = SplitConfig(train=0.6, reference=0.2, validation=0.2)


def _texts(count: int, words: int = 60) -> list[str]:
    rng = random.Random(0)
    return [
        " ".join(f"{rng.choice('bcdfgl')}{rng.choice('aeiou')}{rng.randrange(50)}" for _ in range(words))
        for _ in range(count)
    ]


def _write(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _build(into: Path, source: Path, **settings: object) -> tuple[dict[str, Any], list[str]]:
    told: list[str] = []
    into.mkdir(exist_ok=True)
    config = CorpusConfig(source=str(source), split=SHARES, **settings)
    tokenizer = TokenizerConfig(vocab_size=300)
    build_corpus(into, TokenizeSettings(corpus=config, tokenizer=tokenizer, vocab_size=300, seed=0), told.append)
    return json.loads((into / ACCOUNT).read_text()), told


def _split_texts(into: Path) -> dict[str, list[str]]:
    return {split: [d.text for d in read_documents(documents_path(into, split))] for split in SPLITS}


def test_the_same_text_under_several_ids_never_stands_in_two_splits(tmp_path: Path) -> None:
    texts = _texts(30)
    records = [{"id": f"{n}-{copy}", "text": text + " " * copy} for copy in range(5) for n, text in enumerate(texts)]
    source = _write(tmp_path / "docs.jsonl", records)
    account, _ = _build(tmp_path, source, deduplicate="none")
    found = _split_texts(tmp_path)
    keys = {split: {text_key(text) for text in texts} for split, texts in found.items()}
    assert not keys["train"] & keys["validation"] and not keys["train"] & keys["reference"]
    assert sum(map(len, found.values())) == 150 and sum(map(len, keys.values())) == 30
    assert account["left_out"] == {}


def test_duplicates_are_taken_once_counted_and_listed(tmp_path: Path) -> None:
    texts = _texts(30)
    records = [{"id": f"{copy}-{n}", "text": text + "\n" * copy} for copy in range(3) for n, text in enumerate(texts)]
    account, told = _build(tmp_path, _write(tmp_path / "docs.jsonl", records))
    assert sorted(itertools.chain(*_split_texts(tmp_path).values())) == sorted(texts)
    assert account["left_out"] == {"repeated text": 60} and sum(account["documents"].values()) == 30
    listed = [json.loads(line) for line in (tmp_path / LEFT_OUT).read_text().splitlines()]
    assert [(bad["reason"], bad["file"], bad["line"]) for bad in listed] == [
        ("repeated text", "docs.jsonl", line) for line in range(31, 91)
    ]
    assert all(repr(record["id"]) in bad["why"] for record, bad in zip(records[30:], listed, strict=True))
    assert told == [f"{tmp_path}/docs.jsonl: records left out: 60 repeated text; listed in left_out.jsonl of the stage"]


def test_parts_of_a_document_share_its_split(tmp_path: Path) -> None:
    source = _write(tmp_path / "docs.jsonl", [{"text": text} for text in _texts(40, words=150)])
    _build(tmp_path, source, piece_chars=100)
    ids = {split: {d.id.split("#")[0] for d in read_documents(documents_path(tmp_path, split))} for split in SPLITS}
    assert sum(map(len, ids.values())) == len(set().union(*ids.values())) == 40


BAD = {
    "empty": '{"text": ""}',
    "empty ": '{"text": " \\n"}',
    "half a surrogate pair": '{"text": "a \\ud800"}',
    "wrong type": '{"text": 7}',
    "malformed JSON": '{"text": ',
    "missing field": '{"content": "x"}',
    "not an object": '["x"]',
}


def test_bad_records_stop_or_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in _texts(30)]
    folder = tmp_path / "corpus" / "sub"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text("\n".join([*lines[:3], *BAD.values(), *lines[3:]]) + "\n")
    (folder / "b.jsonl").write_bytes(b'{"text": "\xff"}\n')
    (folder / "notes.txt").touch()
    with pytest.raises(UserError, match=r"sub/a\.jsonl:4: `text` is empty"):
        _build(tmp_path / "stops", tmp_path / "corpus")
    account, told = _build(tmp_path, tmp_path / "corpus", on_bad="skip")
    assert account["left_out"] == {
        reason: 1 + (reason == "empty") for reason in sorted([*map(str.strip, BAD), "not UTF-8"])
    }
    assert account["files"] == 2 and account["files_not_read"] == ["sub/notes.txt"]
    listed = [json.loads(line) for line in (tmp_path / LEFT_OUT).read_text().splitlines()]
    wanted = [("sub/a.jsonl", 4 + at, reason.strip()) for at, reason in enumerate(BAD)]
    assert [(bad["file"], bad["line"], bad["reason"]) for bad in listed] == [*wanted, ("sub/b.jsonl", 1, "not UTF-8")]
    assert all(bad["why"] for bad in listed)
    assert len(told) == 2 and told[0].endswith("not read: sub/notes.txt") and "1 malformed JSON" in told[1]


def test_the_overlap_of_held_out_with_training_text_stands_in_the_account(tmp_path: Path) -> None:
    texts = _texts(60)
    account, _ = _build(tmp_path / "a", _write(tmp_path / "a.jsonl", [{"text": text} for text in texts]))
    assert [account["overlap"][split]["found"] for split in ("reference", "validation")] == [0, 0]
    # A boilerplate that half of each document is: no document is another's copy, and yet half of it is.
    mixed = [{"text": f"{text} {texts[0]}"} for text in texts[1:]]
    account, _ = _build(tmp_path / "b", _write(tmp_path / "b.jsonl", mixed))
    overlap = account["overlap"]["validation"]
    assert overlap["n"] == 13 and overlap["ngrams"] == overlap["documents"] * (120 - 12)
    assert overlap["found"] == overlap["documents"] * (60 - 12)


def test_the_stage_is_the_same_wherever_the_corpus_lies(tmp_path: Path) -> None:
    """What is listed of it is named below the given directory, so a copy elsewhere gives the same artifact."""
    for place in ("here", "there"):
        (tmp_path / place / "in").mkdir(parents=True)
        (tmp_path / place / "out").mkdir()
        _write(tmp_path / place / "in" / "docs.jsonl", [{"text": text} for text in ["", *_texts(30)]])
        _build(tmp_path / place / "out", tmp_path / place / "in", on_bad="skip")
    for name in (ACCOUNT, LEFT_OUT, "documents/train.jsonl.zst", "shards/validation/ids.jsonl"):
        assert (tmp_path / "here" / "out" / name).read_bytes() == (tmp_path / "there" / "out" / name).read_bytes()


def test_an_end_of_documents_may_be_chosen_and_a_stage_without_one_is_what_it_was(tmp_path: Path) -> None:
    train_sentencepiece(_texts(40), 300, tmp_path / "t.model")
    source = _write(tmp_path / "docs.jsonl", [{"text": text} for text in _texts(20)])
    chosen = TokenizerConfig(path=str(tmp_path / "t.model"), eos="<pad>")
    assert chosen.recorded() == {"eos": "<pad>", "vocab_size": 4096}
    assert chosen.model_copy(update={"eos": None}).recorded() == {"vocab_size": 4096}
    corpus = CorpusConfig(source=str(source), split=SHARES)
    (tmp_path / "out").mkdir()
    build_corpus(tmp_path / "out", TokenizeSettings(corpus=corpus, tokenizer=chosen, vocab_size=300, seed=0))
    tokenizer = load_tokenizer(tmp_path / "out" / "tokenizer")
    assert tokenizer.eos_id == 2 and open_split(tmp_path / "out", "train", tokenizer).document_tokens(0)[-1] == 2
    with pytest.raises(UserError, match="`tokenizer`: `eos` names a token of `path`, which is not given"):
        load_recipe("smoke", ["tokenizer.eos=<pad>"])


def test_no_documents_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, size in ((stream, "BATCH_CHARS"), (overlap, "_BATCH_CHARS"), (ngrams, "_BLOCK_CHARS")):
        monkeypatch.setattr(module, size, 8000)
    ngrams.words_of(["the table of characters is made once"])
    train_sentencepiece(_texts(40), 300, tmp_path / "t.model")
    tokenizer = TokenizerConfig(path=str(tmp_path / "t.model"), threads=1)

    def peak(count: int, **settings: object) -> int:
        into = tmp_path / f"{count}-{len(settings)}"
        into.mkdir()
        source = _write(into / "docs.jsonl", [{"text": f"{n} " + "word " * 800} for n in range(count)])
        config = CorpusConfig(source=str(source), split=SHARES, piece_chars=1000, **settings)
        tracemalloc.start()
        build_corpus(into, TokenizeSettings(corpus=config, tokenizer=tokenizer, vocab_size=300, seed=0))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(400) < 1.3 * peak(80)
    assert peak(400, max_train_tokens=9000) < 1.3 * peak(80, max_train_tokens=9000)


def test_a_vocabulary_is_trained_on_text_however_long_the_first_document_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 5_000
    monkeypatch.setattr(tokens, "_VOCABULARY_CHARS", limit)
    seen: list[str] = []

    def train(texts: Iterable[str], *settings: Any) -> SentencePieceTokenizer:
        seen.extend(texts)
        return train_sentencepiece(seen, *settings)

    monkeypatch.setattr(tokens, "train_sentencepiece", train)
    texts = [" ".join(_texts(30, words=60)[n:]) for n in range(8)]  # all of them are longer
    source = _write(tmp_path / "docs.jsonl", [{"text": text} for text in texts])
    _build(tmp_path, source)
    train_texts = [document.text for document in read_documents(documents_path(tmp_path, "train"))]
    assert len(seen) == 1 and len(seen[0]) == limit and any(text.startswith(seen[0]) for text in train_texts)


def test_a_capped_split_is_within_its_budget_and_others_are_whole(tmp_path: Path) -> None:
    source = _write(tmp_path / "docs.jsonl", [{"text": text} for text in _texts(60)])
    _build(tmp_path, source, max_train_tokens=3000)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert 2000 < open_split(tmp_path, "train", tokenizer).num_tokens <= 3000
    assert {d.id for d in read_documents(documents_path(tmp_path, "train"))} < {
        f"docs.jsonl:{n + 1}" for n in range(60)
    }


def test_sources_of_slices_are_read_past_but_for_those_wanted(tmp_path: Path) -> None:
    _build(tmp_path, _write(tmp_path / "docs.jsonl", [{"id": str(n), "text": t} for n, t in enumerate(_texts(40))]))
    all_ = {document.id: document.text for document in read_documents(documents_path(tmp_path, "train"))}
    wanted = set(list(all_)[3:5])
    assert source_texts(tmp_path, wanted | {"not there"}) == {id: all_[id] for id in wanted}


def test_a_joined_text_is_held_to_its_own_slices_and_not_to_those_between() -> None:
    text = "kept one. refused. kept two."
    joined = Provenance(source="a", start=0, end=len(text), slices=((0, 9), (19, 28)))
    assert slice_of(joined, {"a": text}, Path("stage")) == "kept one.\n\nkept two."
    assert slice_of(Provenance(source="a", start=10, end=18), {"a": text}, Path("stage")) == "refused."
