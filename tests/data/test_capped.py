"""Caps of a stream: the documents and the order of `cap_documents`, held nowhere; and the same after a kill."""

import random
from pathlib import Path

import numpy as np
import pytest

from synpro_engine.config import UserError
from synpro_engine.config.journal import Journal
from synpro_engine.data import Document, cap_documents, capped
from synpro_engine.data.capped import Cap, Spool, kept_of
from synpro_engine.data.encoding import Encoded
from synpro_engine.data.writer import document_line

DTYPE = np.dtype(np.uint16)


def _documents(count: int) -> list[tuple[Document, list[int]]]:
    rng = random.Random(0)
    return [
        (Document(f"d{n}", f"Text é {n}"), [rng.randrange(300) for _ in range(rng.randrange(1, 60))])
        for n in range(count)
    ]


def _fill(journal: Journal, path: Path, documents: list[tuple[Document, list[int]]], budget: int) -> int:
    """Put documents through a spool as a pass does; how many it wanted."""
    spool, wanted = Spool(journal.open(path), Cap(budget, 5), DTYPE), 0
    for start in range(0, len(documents), 7):
        batch = [(document, ids) for document, ids in documents[start : start + 7] if spool.wants(document.id)]
        wanted += len(batch)
        tokens = np.array([id for _, ids in batch for id in ids], dtype=np.int32)
        lengths = np.array([len(ids) for _, ids in batch], dtype=np.int64)
        spool.add([document for document, _ in batch], Encoded(tokens, lengths, 0))
    spool.end_frame()
    journal.commit({})
    return wanted


@pytest.mark.parametrize("budget", [61, 500, 2000, 100_000])
@pytest.mark.parametrize("buckets", [1 << 26, 400])
def test_a_streamed_cap_keeps_what_a_cap_in_memory_keeps_in_its_order(
    tmp_path: Path, budget: int, buckets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capped, "_BUCKET_BYTES", buckets)
    documents = _documents(300)
    size_of = {document.id: len(ids) for document, ids in documents}
    expected = cap_documents((document for document, _ in documents), budget, 5, lambda d: size_of[d.id])
    with Journal(tmp_path / "a.ledger", tmp_path) as journal:
        wanted = _fill(journal, tmp_path / "spool", documents, budget)
    assert wanted < 150 or budget > 500  # what cannot stay is not even encoded
    kept = list(kept_of(tmp_path / "spool", budget, 5, DTYPE, tmp_path / "sorting", "`k`"))
    assert [document.id for document in kept] == [document.id for document in expected]
    assert [document.line for document in kept] == [document_line(document) for document in expected]
    ids_of = {document.id: ids for document, ids in documents}
    assert all(np.frombuffer(document.tokens, DTYPE).tolist() == ids_of[document.id] for document in kept)
    assert [document.text_bytes for document in kept] == [len(document.text.encode()) for document in expected]
    assert not (tmp_path / "sorting").exists()


def test_a_spool_that_is_gone_on_with_keeps_the_same(tmp_path: Path) -> None:
    documents = _documents(300)
    with Journal(tmp_path / "whole.ledger", tmp_path) as journal:
        _fill(journal, tmp_path / "whole", documents, 700)
    with Journal(tmp_path / "halves.ledger", tmp_path) as journal:
        _fill(journal, tmp_path / "halves", documents[:150], 700)
    with (tmp_path / "halves").open("ab") as file:
        file.write(b"a torn end")
    with Journal(tmp_path / "halves.ledger", tmp_path) as journal:
        _fill(journal, tmp_path / "halves", documents[150:], 700)
    halves, whole = (
        list(kept_of(tmp_path / name, 700, 5, DTYPE, tmp_path / "s", "`k`")) for name in ("halves", "whole")
    )
    assert halves == whole


def test_a_cap_smaller_than_the_first_document_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.ledger", tmp_path) as journal:
        _fill(journal, tmp_path / "spool", [(Document("a", "x"), [1, 2, 3])], 2)
    with pytest.raises(UserError, match=r"`corpus.max`: a budget of 2 holds not one document"):
        list(kept_of(tmp_path / "spool", 2, 5, DTYPE, tmp_path / "sorting", "`corpus.max`"))
