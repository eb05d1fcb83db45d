"""From a document's id to all that a run knows of it: where it is from, what was made of it, which steps read it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from synpro_engine.config import UserError
from synpro_engine.cycle.cycle import Cycle
from synpro_engine.cycle.run_layout import CORPUS, LEFT_OUT, TOKENIZE
from synpro_engine.cycle.steps.pretraining import ORGANIC
from synpro_engine.cycle.tracing.position import finished_steps, open_reading
from synpro_engine.cycle.tracing.stored import (
    SyntheticText,
    find_organic,
    find_pieces,
    find_synthetic,
    generate_stages,
)
from synpro_engine.data import Split
from synpro_engine.data.compressed import line_reader
from synpro_engine.synth import DOCUMENTS


@dataclass(frozen=True, kw_only=True)
class Read:
    """Steps of a training stage that read a part of a document, each with the row of its batch."""

    stage: str
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class DocumentTrace:
    """What a run knows of a document; of one that it left out, or only cut into pieces, little more than that."""

    document: str
    split: Split | None = None
    """Of an organic document."""
    synthetic: SyntheticText | None = None
    text: str | None = None
    tokens: int | None = None
    """Of the pretrained model, with its end; None where no training stage that is finished has it in its text."""
    pieces: tuple[tuple[Split, str], ...] = ()
    """Where it was cut: the split and the id of each piece."""
    left_out: tuple[dict[str, Any], ...] = ()
    """Lines about it in the list of what was left out."""
    made: tuple[tuple[str, str], ...] = ()
    """The synthetic texts that were made from it: stage and id."""
    read: tuple[Read, ...] = ()
    filtered: bool = False
    """Of a synthetic text: accepted, and then removed by a filter of its round (`filters.json` counts them)."""


def trace_document(cycle: Cycle, id: str) -> DocumentTrace:
    """Trace an organic document, a record of the corpus that was cut or left out, or a synthetic text. Collective.

    Raises UserError for an id that the run has nothing of.
    """
    directory, recipe = cycle.directory, cycle.recipe
    if not (directory / TOKENIZE).exists():
        raise UserError(f"{directory}: has no documents yet; `synpro tokenize` reads them")
    organic = find_organic(directory, id)
    if organic is not None:
        split, text = organic
        tokens, read, _ = _read(cycle, ORGANIC, id) if split == "train" else (None, (), False)
        return DocumentTrace(document=id, split=split, text=text, tokens=tokens, made=_made(cycle, id), read=read)
    for number in cycle.rounds:
        synthetic = find_synthetic(directory, recipe, id, number)
        if synthetic is not None:
            tokens, read, filtered = _read(cycle, number.name, id)
            return DocumentTrace(
                document=id,
                synthetic=synthetic,
                text=synthetic.record["text"],
                tokens=tokens,
                read=read,
                filtered=filtered,
            )
    pieces, left_out = tuple(find_pieces(directory, id)), _left_out(cycle, id)
    if pieces or left_out:
        return DocumentTrace(document=id, pieces=pieces, left_out=left_out)
    capped = recipe.corpus.max_train_tokens is not None or recipe.corpus.max_held_out_tokens is not None
    hint = "; documents beyond `corpus.max_train_tokens` and `corpus.max_held_out_tokens` are not kept" * capped
    raise UserError(f"{directory}: no document {id!r}, neither organic nor synthetic nor left out{hint}")


def _left_out(cycle: Cycle, id: str) -> tuple[dict[str, Any], ...]:
    """The list names records by file and line, as ids of records without one do, and where they repeat a text by id."""
    lines = (json.loads(line) for _, line in line_reader(cycle.directory / TOKENIZE / LEFT_OUT))
    return tuple(line for line in lines if f"{line.get('file')}:{line.get('line')}" == id or repr(id) in line["why"])


def _made(cycle: Cycle, source: str) -> tuple[tuple[str, str], ...]:
    found = []
    for number in cycle.rounds:
        for stage in generate_stages(cycle.directory, cycle.recipe, number):
            for _, line in line_reader(cycle.directory / stage / CORPUS / DOCUMENTS):
                record = json.loads(line)
                if record["provenance"]["source"] == source:
                    found.append((stage, record["id"]))
    return tuple(found)


def _read(cycle: Cycle, source: str, id: str) -> tuple[int | None, tuple[Read, ...], bool]:
    """Tokens of a document, the steps of all finished stages that read it, and whether its source lacks it."""
    tokens, read = None, []
    for stage, steps in finished_steps(cycle).items():
        reading = open_reading(cycle, stage, steps)
        if source not in reading.corpora:
            continue
        corpus = reading.corpora[source]
        number = corpus.numbers_of({id}).get(id)
        if number is None:
            return None, (), True
        tokens = len(corpus.document_tokens(number))
        places = reading.loader.readings(source, number, len(steps))
        read.append(Read(stage=stage, places=tuple((steps[0] + batch, row) for batch, row in places)))
    return tokens, tuple(read), False
