"""Documents as a run stores them, found by their ids: organic ones by split, synthetic ones with their records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from synpro_engine.config import Record, UserError, as_record, json_text, parse_record, verify_artifact
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import CORPUS, REMOVED, TOKENIZE, UNIQUE, documents_path
from synpro_engine.cycle.steps.intake import SPLITS
from synpro_engine.data import Split
from synpro_engine.data.compressed import line_reader
from synpro_engine.synth import DOCUMENTS, REJECTS, files_of


class _Origin(Record):
    source: str
    start: int
    end: int
    source_sha256: str
    slices: tuple[tuple[int, int], ...] | None = None


class _Removed(Record):
    id: str
    filter: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Characters `start` to `end` (exclusive) of a document of the train split."""

    document: str
    start: int
    end: int
    text: str


@dataclass(frozen=True, kw_only=True)
class SyntheticText:
    """What a `generate` stage wrote, and what it was made from."""

    stage: str
    record: dict[str, Any]
    """As it stands in the stage's corpus. Accepted: text, provenance, rewards, what was cut of the answer; refused: the
    reason, the whole answer, provenance."""
    passages: tuple[Passage, ...]
    """One; of texts that were joined, that of each, in their order."""
    filters: dict[str, Any]
    """Settings of those that a text has to pass to be trained on (`filter` of the recipe)."""


def find_line(path: Path, id: str) -> dict[str, Any] | None:
    """The record of a document in a file that the engine wrote; None where it is not in there."""
    return next((record for _, _, record in _find_lines([path], [id])), None)


def _find_lines(
    paths: Iterable[Path], ids: Collection[str], most: int | None = None
) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """The records of documents, each once, with the files they are in; of so many lines at most (None: of all).

    Files are read until all are found: of a corpus of terabytes that takes as long as decompressing it.
    """
    wanted = {_head(id) + b",": id for id in ids}
    heads = tuple(wanted)
    lines = ((path, line) for path in paths if wanted for _, line in line_reader(path))
    for path, line in islice(lines, most):
        if line.startswith(heads):
            head = next(head for head in heads if line.startswith(head))
            yield wanted.pop(head), path, json.loads(line)
            heads = tuple(wanted)
            if not wanted:
                return


def _head(id: str) -> bytes:
    """How the line of a document begins, so that no other line need be parsed."""
    return json_text({"id": id}, ensure_ascii=False).removesuffix("}").encode(errors="replace")


def find_organic(directory: Path, id: str) -> tuple[Split, str] | None:
    """The split and the text of an organic document; None where no split has it."""
    verify_artifact(directory / TOKENIZE)
    for split in SPLITS:
        path = documents_path(directory / TOKENIZE, split)
        found = find_line(path, id) if path.exists() else None
        if found is not None:
            return split, found["text"]
    return None


def find_unique(directory: Path, id: str) -> str | None:
    """The text of a document that only oracles read; None where it is none."""
    path = documents_path(directory / UNIQUE, "unique")
    verify_artifact(directory / UNIQUE)
    found = find_line(path, id)
    return None if found is None else found["text"]


def find_pieces(directory: Path, id: str) -> Iterator[tuple[Split, str]]:
    """Split and id of each piece of a record that was cut into pieces (`corpus.piece_chars`)."""
    head = _head(id).removesuffix(b'"') + b"#"
    for split in SPLITS:
        path = documents_path(directory / TOKENIZE, split)
        if path.exists():
            for _, line in line_reader(path):
                if line.startswith(head) and (piece := json.loads(line)["id"]).rpartition("#")[0] == id:
                    yield split, piece


def find_synthetic(directory: Path, recipe: Recipe, id: str, stages: Iterable[str]) -> SyntheticText | None:
    """What `stages` that generate wrote under an id, with the source's characters; None where no finished one has it.

    recipe: as the arm has it.
    """
    return find_synthetics(directory, recipe, [id], stages).get(id)


def find_synthetics(
    directory: Path, recipe: Recipe, ids: Iterable[str], stages: Iterable[str], most: int | None = None
) -> dict[str, SyntheticText]:
    """The same of several texts, by id, in one pass over what each stage wrote and one over the documents.

    most: so many lines are looked through in each pass (None: all); a text or a source behind them is not found.
    """
    records: dict[str, tuple[str, Path, dict[str, Any]]] = {}
    wanted = set(ids)
    for stage in finished_stages(directory, stages):
        files = _written_files(directory / stage / CORPUS)
        for id, path, record in _find_lines(files, wanted - records.keys(), most):
            records[id] = stage, path, record
    origins = {
        id: as_record(record["provenance"], _Origin, f"{path}: {id!r}") for id, (_, path, record) in records.items()
    }
    texts = _sources(directory, {origin.source for origin in origins.values()}, most)
    found: dict[str, SyntheticText] = {}
    for id, (stage, path, record) in records.items():
        if most is None or origins[id].source in texts:
            passages = _passages(directory, origins[id], texts, f"{path}: {id!r}")
            filters = recipe.filter.model_dump(exclude_defaults=True)
            found[id] = SyntheticText(stage=stage, record=record, passages=passages, filters=filters)
    return found


def records_from(directory: Path, source: str, stages: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The stage and the record of all that was written from a document: by stage what was accepted, then the rest."""
    mark = json_text(source, ensure_ascii=False).encode(errors="replace")
    for stage in finished_stages(directory, stages):
        for path in _written_files(directory / stage / CORPUS):
            for _, line in line_reader(path):
                # Looked for before it is parsed, which takes far longer.
                if mark in line and (record := json.loads(line))["provenance"]["source"] == source:
                    yield stage, record


def _written_files(corpus: Path) -> list[Path]:
    """Of a synthetic corpus: the files of what was accepted, and then of what was refused."""
    return [*files_of(corpus, DOCUMENTS), *files_of(corpus, REJECTS)]


def removed_texts(shards: Path, ids: Collection[str]) -> dict[str, str]:
    """By id what a filter of a round's finished `shards` stage removed: the filter, and what it found."""
    path = shards / REMOVED
    # Runs of before there was this list have none.
    lines = line_reader(path) if path.exists() else ()
    removed = (parse_record(line, _Removed, f"{path}:{at}") for at, line in lines)
    return {one.id: f"{one.filter}: {one.why}" for one in removed if one.id in ids}


def finished_stages(directory: Path, names: Iterable[str]) -> list[str]:
    """Those of some stages that are finished, whose files are as they were written."""
    done = [name for name in names if (directory / name).exists()]
    for name in done:
        verify_artifact(directory / name)
    return done


def _sources(directory: Path, ids: Collection[str], most: int | None) -> dict[str, str]:
    verify_artifact(directory / TOKENIZE)
    path = documents_path(directory / TOKENIZE, "train")
    return {id: record["text"] for id, _, record in _find_lines([path], ids, most)}


def _passages(directory: Path, origin: _Origin, texts: Mapping[str, str], where: str) -> tuple[Passage, ...]:
    if origin.source not in texts:
        path = documents_path(directory / TOKENIZE, "train")
        raise UserError(f"{where}: its source {origin.source!r} is not in {path}")
    text = texts[origin.source]
    spans = origin.slices or ((origin.start, origin.end),)
    first = text[slice(*spans[0])]
    # What the generator was shown, and not what stands there by chance.
    if hashlib.sha256(first.encode(errors="surrogatepass")).hexdigest() != origin.source_sha256:
        raise UserError(f"{where}: characters {origin.start} to {origin.end} of {origin.source!r} are other ones now")
    return tuple(Passage(document=origin.source, start=a, end=b, text=text[a:b]) for a, b in spans)
