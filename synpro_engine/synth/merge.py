"""From the finished batches of a generation to the corpus (see `corpus`), in the order of the work list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

from synpro_engine.config import atomic_write_text, json_text, new_artifact
from synpro_engine.data import Document, Tokenizer
from synpro_engine.data.encoding import framed
from synpro_engine.data.rows import rows_of
from synpro_engine.data.shards import ShardWriter, new_shards
from synpro_engine.data.writer import NumberedWriter, document_line
from synpro_engine.synth.corpus import DOCUMENTS, REJECTS, TOKENS, YIELD
from synpro_engine.synth.ledger import read_commits, read_frame
from synpro_engine.synth.records import Producer
from synpro_engine.synth.work import WorkList
from synpro_engine.synth.yields import YieldCounter


def merge(
    path: Path,
    work: Path,
    settings: Mapping[str, Any],
    parents: Mapping[str, Path],
    seed: int,
    producer: Producer,
) -> None:
    """Turn the batches in `work` into the artifact `path`; repeatable until the artifact is there."""
    counter, limit = YieldCounter(), int(producer.config.file_mib * 2**20)
    with new_artifact(path, "synthetic-corpus", settings, parents, seed) as folder:
        with (
            NumberedWriter(folder / DOCUMENTS, limit) as accepted,
            NumberedWriter(folder / REJECTS, limit) as refused,
            _TokenFiles(folder / TOKENS, producer.token_files) as tokens,
        ):

            def passing() -> Iterator[dict[str, Any]]:
                for record in _records(work):
                    counter.add(record)
                    if record["reason"] is None:
                        yield record
                    else:
                        about = {name: record[name] for name in ("id", "reason", "raw", "provenance")}
                        refused.write_line((json_text(about, ensure_ascii=False) + "\n").encode())

            for record in _joined(passing()) if producer.config.join else passing():
                about = {name: record[name] for name in ("provenance", "rewards", "cut")}
                accepted.write_line(document_line(Document(record["id"], record["text"]), about))
                tokens.add(record)
        atomic_write_text(folder / YIELD, counter.report().model_dump_json(indent=2) + "\n")


class _TokenFiles(ExitStack):
    """Context manager: the token files of accepted records, from the first one on; none without a tokenizer."""

    def __init__(self, path: Path, tokenizer: Tokenizer | None) -> None:
        super().__init__()
        self._path, self._tokenizer = path, tokenizer
        self._shards: ShardWriter | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Append the ids of a record's text."""
        if self._tokenizer is None:
            return
        if self._shards is None:  # not before: shards of no document are refused
            self._shards = self.enter_context(new_shards(self._path, self._tokenizer))
        self._shards.add([record["id"]], framed(self._tokenizer, rows_of([record["ids"]]), [record["text"]]))


def _records(work: Path) -> Iterator[dict[str, Any]]:
    """All records in work-list order."""
    commits, units = read_commits(work), len(WorkList(work).open())
    assert sorted(commits) == list(range(units)), "a batch is missing after all ranks have finished"
    # By number and not in the order of writing, which hangs on ranks and interruptions.
    for unit in range(units):
        yield from read_frame(work, commits[unit])


def _joined(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One record for each document, operation and sample; records come document by document."""
    for _, of_document in groupby(records, key=lambda record: record["provenance"]["source"]):
        texts: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for record in of_document:
            origin = record["provenance"]
            texts.setdefault((origin["operation"], origin["member"]), []).append(record)
        yield from map(_join, texts.values())


def _join(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Named by its first part; its rewards are means over all parts, weighted by their characters."""
    first, last = parts[0], parts[-1]
    slices = [[part["provenance"]["start"], part["provenance"]["end"]] for part in parts]
    chars = [len(part["text"]) for part in parts]
    names = dict.fromkeys(name for part in parts for name in part["rewards"])
    pairs = list(zip([part["rewards"] for part in parts], chars, strict=True))
    rewards = {name: _mean([(rewards[name], n) for rewards, n in pairs if name in rewards]) for name in names}
    cut: dict[str, int] = {}
    for part in parts:
        for cause, count in part["cut"].items():
            cut[cause] = cut.get(cause, 0) + count
    origin = {**first["provenance"], "end": last["provenance"]["end"], "slices": slices}
    text = "\n\n".join(part["text"] for part in parts)
    return {"id": first["id"], "text": text, "provenance": origin, "rewards": rewards, "cut": cut}


def _mean(weighted: list[tuple[float, int]]) -> float:
    return sum(value * weight for value, weight in weighted) / max(1, sum(weight for _, weight in weighted))
