"""Documents keep what they are from, and the held-out loss by source adds up to the one of all."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synpro_engine.config import UserError
from synpro_engine.cycle.run_layout import documents_path
from synpro_engine.cycle.sections import CorpusConfig
from synpro_engine.cycle.steps.by_source import MOST_SOURCES, OTHERS, UNNAMED, Sources, sources_of
from synpro_engine.cycle.steps.corpus import open_split
from synpro_engine.cycle.steps.intake import SPLITS
from synpro_engine.data import Document, DocumentWriter, eval_windows, load_tokenizer
from synpro_engine.data.writer import written_documents
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.train.evaluation import held_out_loss
from tests.cycle.test_corpus import _build, _texts, _write
from tests.train.test_separate_documents import S, corpus, shape

KINDS = np.array([0, 2, 1, 0, 2, 2, 0, 1, 0, 0, 2, 1])
LAYOUTS: list[dict[str, Any]] = [{"tp": 2}, {"pp": 2}, {}]


def _written(path: Path, documents: list[Document]) -> Path:
    with DocumentWriter(path) as writer:
        for document in documents:
            writer.write(document)
    return path


@pytest.mark.parametrize("settings", [{}, {"piece_chars": 100}, {"max_train_tokens": 1500, "max_held_out_tokens": 400}])
def test_a_document_is_from_its_folder_below_the_root_in_every_split(tmp_path: Path, settings: dict[str, int]) -> None:
    of = {}
    for folder, texts in zip(("web", "books/old", "."), np.array_split(np.array(_texts(90)), 3), strict=True):
        (tmp_path / "corpus" / folder).mkdir(parents=True, exist_ok=True)
        records = [{"text": str(text)} for text in texts]
        _write(tmp_path / "corpus" / folder / "a.jsonl", [*records])
        of |= {str(text): {"web": "web", "books/old": "books"}.get(folder) for text in texts}
    _build(tmp_path / "made", tmp_path / "corpus", **settings)
    for split in SPLITS:
        documents = [document for _, document in written_documents(documents_path(tmp_path / "made", split))]
        assert documents and all(
            document.source == next(source for text, source in of.items() if document.text in text)
            for document in documents
        )
        shards = open_split(tmp_path / "made", split, load_tokenizer(tmp_path / "made" / "tokenizer"))
        assert list(shards.read_ids()) == [document.id for document in documents]  # the order that losses go by


def test_a_field_names_the_source_and_a_record_without_it_is_refused(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [
        {"text": text, "meta": {"subset": f"s{at % 2}"}} for at, text in enumerate(_texts(30))
    ]
    (tmp_path / "sub").mkdir()
    source = _write(tmp_path / "sub" / "docs.jsonl", records)
    _build(tmp_path / "made", source, source_field="meta.subset")
    documents = [document for s in SPLITS for _, document in written_documents(documents_path(tmp_path / "made", s))]
    assert Counter(document.source for document in documents) == {"s0": 15, "s1": 15}
    _write(source, [*records, {"text": "of nowhere"}])
    with pytest.raises(UserError, match=r"docs\.jsonl:31: `meta\.subset` is missing; `source_field` names another"):
        _build(tmp_path / "again", source, source_field="meta.subset")
    with pytest.raises(ValueError, match="source_field: is of records"):
        CorpusConfig(shards="a", source_field="x")


def test_sources_with_the_most_text_are_told_apart_and_the_others_are_one(tmp_path: Path) -> None:
    path = tmp_path / "validation.jsonl"
    assert sources_of(_written(path, [Document("a", "x", "web"), Document("b", "y", "web")]), 2) is None
    two = sources_of(_written(path, [Document("a", "x"), Document("b", "éé", "web"), Document("c", "z", "web")]), 3)
    assert two is not None and (two.names, two.utf8_bytes, two.documents) == (("web", UNNAMED), (5, 1), (2, 1))
    assert two.kind_D.tolist() == [1, 0, 0]
    sizes = {f"s{at:02}": at + 1 for at in range(MOST_SOURCES + 3)}
    many = sources_of(_written(path, [Document(name, "x" * size, name) for name, size in sizes.items()]), len(sizes))
    assert many is not None and len(many.names) == MOST_SOURCES and many.names[0] == f"s{MOST_SOURCES + 2}"
    assert many.names[-1] == OTHERS and many.utf8_bytes[-1] == 1 + 2 + 3 + 4 and many.documents[-1] == 4
    assert sum(many.utf8_bytes) == sum(sizes.values()) and many.kind_D.tolist()[0] == MOST_SOURCES - 1
    with pytest.raises(UserError, match=f"has {len(sizes)} documents, and the shards beside it 1"):
        sources_of(path, 1)


def _parts(layouts: list[dict[str, Any]], ports: list[int]) -> list[dict[str, dict[str, Any]]]:
    found = []
    for layout, port in zip(layouts, ports, strict=True):
        with job(ParallelConfig.model_validate(layout), port) as topology:
            dp = topology.dp
            held = eval_windows(corpus(), S, batch_size=2, dp_rank=dp.rank, dp_size=dp.size)
            found.append(_sources().losses(build_model(shape(), topology, seed=2), held, 2))
    return found


def _sources() -> Sources:
    return Sources(names=("a", "b", "c"), kind_D=KINDS, utf8_bytes=(3, 2, 1), documents=(5, 3, 4))


def test_parts_add_up_to_the_loss_of_all_and_each_is_that_of_its_own_labels(tmp_path: Path) -> None:
    with launched(ParallelConfig()) as topology:
        model = build_model(shape(), topology, seed=2)
        batches = list(eval_windows(corpus(), S, batch_size=3))
        parts = _sources().losses(model, batches, 2)
        whole = held_out_loss(model, batches)
        for kind, name in enumerate("abc"):
            own = []
            for batch in batches:
                assert batch.document_BS is not None
                labels = batch.labels_BS.clone()
                labels[np.append(KINDS, -1)[batch.document_BS] != kind] = -100
                own.append(type(batch)(batch.tokens_BS, labels, batch.document_BS))
            assert parts[name]["tokens"] == sum(int((batch.labels_BS != -100).sum()) for batch in own)
            assert parts[name]["nats"] == pytest.approx(held_out_loss(model, own) * parts[name]["tokens"])
    assert sum(part["tokens"] for part in parts.values()) == corpus().num_tokens
    assert math.fsum(part["nats"] for part in parts.values()) == pytest.approx(whole * corpus().num_tokens)
    for of_rank in run_ranks(_parts, 2, layouts=LAYOUTS, ports=free_ports(len(LAYOUTS))):
        for found in of_rank:
            assert {name: part["tokens"] for name, part in found.items()} == {n: p["tokens"] for n, p in parts.items()}
            assert [part["nats"] for part in found.values()] == pytest.approx(
                [part["nats"] for part in parts.values()], rel=1e-5
            )
