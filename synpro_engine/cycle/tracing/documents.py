"""From a document's id to all that a run knows of it: where it is from, what was made of it, which steps read it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from synpro_engine.config import UserError, nearest
from synpro_engine.cycle.run_layout import LEFT_OUT, STITCHED, SYNTHETIC, TOKENIZE, UNIQUE, Round, shards_path
from synpro_engine.cycle.steps.intake import SPLITS
from synpro_engine.cycle.steps.stitching import stitched_documents
from synpro_engine.cycle.steps.training import ORGANIC, Training
from synpro_engine.cycle.tracing.position import finished_steps, open_reading
from synpro_engine.cycle.tracing.stored import (
    SyntheticText,
    find_organic,
    find_pieces,
    find_synthetic,
    find_unique,
    records_from,
    removed_texts,
)
from synpro_engine.cycle.tracing.traced import TracedRun
from synpro_engine.data import Split, open_shards
from synpro_engine.data.compressed import line_reader
from synpro_engine.data.loader import Span
from synpro_engine.synth import Stitched, StitchedPart

Fate = Literal["refused", "accepted", "removed", "kept"]
"""Refused when the generator's answer was read; accepted, where filters have not run yet; removed by one of them; kept,
and so in a text that is trained on."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a training stage read of a document."""

    stage: str
    tokens: int
    """Repetitions counted."""
    places: tuple[tuple[int, int, int], ...]
    """Step, row of its batch, tokens there."""


@dataclass(frozen=True, kw_only=True)
class Life:
    """What became of a document, or of something that a generator wrote, on the way to the model."""

    fate: Fate
    why: str | None = None
    """The reason of a refusal, or the filter and what it found."""
    tokens: int | None = None
    """Of the pretrained model, with its end; None where it is in no text that is trained on."""
    read: tuple[Read, ...] = ()
    """Of all finished training stages that have it in their text."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """Something that was made from a document."""

    stage: str
    id: str
    operation: str
    member: int
    """Number of the sample."""
    slices: tuple[tuple[int, int], ...]
    """Characters of the document."""
    life: Life


@dataclass(frozen=True, kw_only=True)
class Within:
    """A document with an organic one inside (`mix.megadocs`)."""

    id: str
    stage: str
    tokens: int
    """Of the organic one in it."""
    read: tuple[Read, ...]
    """Of these."""


@dataclass(frozen=True, kw_only=True)
class DocumentTrace:
    """What a run knows of a document; of one that it left out, or only cut into pieces, little more than that."""

    document: str
    split: Split | Literal["unique"] | None = None
    """Of an organic document; `unique`: of those beyond the train split, which oracles alone read."""
    synthetic: SyntheticText | None = None
    text: str | None = None
    """What was accepted, or the whole answer that was refused."""
    life: Life | None = None
    """Of what is trained on or might have been: the train split, and all that was made from it."""
    pieces: tuple[tuple[Split, str], ...] = ()
    """Where it was cut: the split and the id of each piece."""
    left_out: tuple[dict[str, Any], ...] = ()
    """Lines about it in the list of what was left out."""
    made: tuple[Made, ...] = ()
    """Round by round."""
    within: tuple[Within, ...] = ()
    """Where an organic document is read again."""
    parts: tuple[StitchedPart, ...] = ()
    """Of a document that was stitched."""
    arm: str | None = None
    """Whose text it is, of a recipe that names its arms; of a generation that several share, the first one's."""
    also: tuple[str, ...] = ()
    """Arms that have another text under the same id; those that share this one's generation have the same."""


def trace_document(cycle: TracedRun, id: str, arm: str | None = None) -> DocumentTrace:
    """Trace an organic document, a record of the corpus that was cut or left out, or a synthetic text. Collective.

    arm: whose texts are meant, by its name or that of one of its stages; None: of a text the first one's that has it.
    Raises UserError for an id that the run, or the arm, has nothing of.
    """
    wanted = None if arm is None else _arm_of(cycle, arm)
    directory, recipe = cycle.directory, cycle.recipe
    if not (directory / TOKENIZE).exists():
        raise UserError(f"{directory}: has no documents yet; `synpro tokenize` reads them")
    organic = find_organic(directory, id)
    if organic is not None:
        split, text = organic
        if split != "train":
            return DocumentTrace(document=id, split=split, text=text)
        life = _lives(cycle, None, {id: None})[id]
        texts, within = tuple(_made(cycle, id, wanted)), tuple(_within(cycle, id, wanted))
        return DocumentTrace(document=id, split=split, text=text, life=life, made=texts, within=within)
    unique = find_unique(directory, id) if (directory / UNIQUE).exists() else None
    if unique is not None:
        return DocumentTrace(document=id, split=UNIQUE, text=unique, life=_life_of_unique(cycle, id))
    have = _rounds_that_have(cycle, id)
    for number in have if wanted is None else [one for one in have if one.of_arm == wanted]:
        also = tuple(
            dict.fromkeys(
                one.of_arm for one, made in have.items() if made != have[number] and one.of_arm != number.of_arm
            )
        )
        return replace(_made_text(cycle, number, id), arm=number.of_arm if recipe.several else None, also=also)
    if have:
        others = ", ".join(dict.fromkeys(one.of_arm for one in have))
        raise UserError(f"--arm {arm}: has no text {id!r}; there is one of {others}")
    pieces, left_out = tuple(find_pieces(directory, id)), _left_out(cycle, id)
    if pieces or left_out:
        return DocumentTrace(document=id, pieces=pieces, left_out=left_out)
    raise UserError(f"{directory}: no document {id!r}, neither organic nor synthetic nor left out{_hint(cycle, id)}")


def _arm_of(cycle: TracedRun, given: str) -> str:
    """The arm of that name, or whose stage it is; UserError where there is none."""
    arms, stages = cycle.recipe.all_arms, {stage: cycle.training(stage).arm for stage in cycle.training_stages}
    found = given if given in arms else stages.get(given)
    if found is None:
        raise UserError(f"--arm {given}: no such arm; there are {', '.join(arms)}{nearest(given, arms)}")
    return found


def _rounds_that_have(cycle: TracedRun, id: str) -> dict[Round, str]:
    """The rounds with a text of that id, answers that were refused and megadocs among them, and the stages it is of."""
    found: dict[Round, str] = {}
    for number, made in cycle.rounds.items():
        text = find_synthetic(cycle.directory, cycle.recipe.of_arm(number.of_arm), id, made.values())
        if text is not None:
            found[number] = text.stage
        elif any(document.id == id for document in _stitched(cycle, number)):
            found[number] = cycle.shards_of(number)
    return found


def _made_text(cycle: TracedRun, number: Round, id: str) -> DocumentTrace:
    """Of a round that has it."""
    recipe, made = cycle.recipe.of_arm(number.of_arm), cycle.rounds[number]
    synthetic = find_synthetic(cycle.directory, recipe, id, made.values())
    if synthetic is not None:
        life = _lives(cycle, number, {id: synthetic.record.get("reason")})[id]
        text = synthetic.record.get("text", synthetic.record.get("raw"))
        return DocumentTrace(document=id, synthetic=synthetic, text=text, life=life)
    at, document = next((at, one) for at, one in enumerate(_stitched(cycle, number)) if one.id == id)
    tokens = sum(part.ahead + part.tokens for part in document.parts)
    read = _read(cycle, number, {id: (at, 0, tokens)})[id]
    return DocumentTrace(document=id, life=Life(fate="kept", tokens=tokens, read=tuple(read)), parts=document.parts)


def _left_out(cycle: TracedRun, id: str) -> tuple[dict[str, Any], ...]:
    """The list names records by file and line, as ids of records without one do, and where they repeat a text by id."""
    lines = (json.loads(line) for _, line in line_reader(cycle.directory / TOKENIZE / LEFT_OUT))
    return tuple(line for line in lines if f"{line.get('file')}:{line.get('line')}" == id or repr(id) in line["why"])


def _rounds(cycle: TracedRun, arm: str | None) -> list[Round]:
    """Those of an arm; None: of all, but for those whose texts are another's."""
    if arm is not None:
        return [number for number in cycle.rounds if number.of_arm == arm]
    return list({cycle.shards_of(number): number for number in reversed(cycle.rounds)}.values())[::-1]


def _made(cycle: TracedRun, source: str, arm: str | None) -> Iterator[Made]:
    for number in _rounds(cycle, arm):
        made = cycle.rounds[number]
        found = records_from(cycle.directory, source, made.values())
        records = {record["id"]: (stage, record) for stage, record in found}
        lives = _lives(cycle, number, {id: record.get("reason") for id, (_, record) in records.items()})
        for id, (stage, record) in records.items():
            origin = record["provenance"]
            yield Made(
                stage=stage,
                id=id,
                operation=origin["operation"],
                member=origin["member"],
                slices=tuple((start, end) for start, end in origin.get("slices", [(origin["start"], origin["end"])])),
                life=lives[id],
            )


def _lives(cycle: TracedRun, number: Round | None, refusals: Mapping[str, str | None]) -> dict[str, Life]:
    """What became of texts of a round (None: organic ones), by id; refusals: the reason, None of accepted ones."""
    shards = cycle.directory / (TOKENIZE if number is None else cycle.shards_of(number))
    lives = {id: Life(fate="accepted" if why is None else "refused", why=why) for id, why in refusals.items()}
    if not shards.exists() or not refusals:
        return lives
    spans = _spans(cycle, number, refusals)
    removed = {} if number is None else removed_texts(shards, refusals)
    read = _read(cycle, number, spans)
    for id, why in refusals.items():
        if id in spans:
            _, begin, end = spans[id]
            lives[id] = Life(fate="kept", tokens=end - begin, read=tuple(read[id]))
        elif why is None:
            lives[id] = Life(fate="removed", why=removed.get(id))
    return lives


def _life_of_unique(cycle: TracedRun, id: str) -> Life:
    corpus = open_shards(shards_path(cycle.directory / UNIQUE, UNIQUE))
    at = corpus.numbers_of([id])[id]
    tokens = len(corpus.document_tokens(at))
    read = _read_by(cycle, UNIQUE, {id: (at, 0, tokens)}, lambda training: True)[id]
    return Life(fate="kept", tokens=tokens, read=tuple(read))


def _spans(cycle: TracedRun, number: Round | None, ids: Collection[str]) -> dict[str, Span]:
    """Where texts stand in the documents of a round, or of the train split; of those that are there."""
    if number is not None and (cycle.directory / cycle.shards_of(number) / STITCHED).exists():
        return {
            part.id: (at, begin, end)
            for at, document in enumerate(_stitched(cycle, number))
            for part, begin, end in document.spans()
            if part.operation is not None and part.id in ids
        }
    shards = cycle.directory / (TOKENIZE if number is None else cycle.shards_of(number))
    corpus = open_shards(shards_path(shards, "train" if number is None else SYNTHETIC))
    return {id: (at, 0, len(corpus.document_tokens(at))) for id, at in corpus.numbers_of(ids).items()}


def _stitched(cycle: TracedRun, number: Round) -> Iterator[Stitched]:
    """What the documents of a round consist of; none where each text is one, or there are none yet."""
    parts = cycle.directory / cycle.shards_of(number) / STITCHED
    return stitched_documents(parts) if parts.exists() else iter(())


def _within(cycle: TracedRun, source: str, arm: str | None) -> Iterator[Within]:
    for number in _rounds(cycle, arm):
        spans = {
            document.id: (at, begin, end)
            for at, document in enumerate(_stitched(cycle, number))
            for part, begin, end in document.spans()
            if part.operation is None and part.id == source
        }
        read = _read(cycle, number, spans) if spans else {}
        for id, (_, begin, end) in spans.items():
            yield Within(id=id, stage=cycle.shards_of(number), tokens=end - begin, read=tuple(read[id]))


def _read(cycle: TracedRun, number: Round | None, spans: Mapping[str, Span]) -> dict[str, list[Read]]:
    """By id what the finished training stages read of texts: these tokens of documents of a round (None: organic)."""
    if number is None:
        return _read_by(cycle, ORGANIC, spans, lambda training: True)
    shards = cycle.directory / cycle.shards_of(number)
    # Rounds of other arms have the same names, and some the same text.
    return _read_by(cycle, number.name, spans, lambda training: training.synthetic.get(number.name) == shards)


def _read_by(
    cycle: TracedRun, source: str, spans: Mapping[str, Span], reads: Callable[[Training], bool]
) -> dict[str, list[Read]]:
    read: dict[str, list[Read]] = {id: [] for id in spans}
    for stage, steps in finished_steps(cycle).items():
        reading = open_reading(cycle, stage, steps) if reads(cycle.training(stage)) else None
        corpus = None if reading is None else reading.corpora.get(source)
        if reading is None or corpus is None:
            continue
        # An oracle may be given the beginning of a text alone.
        given = {id: span for id, span in spans.items() if span[0] < corpus.num_documents}
        found = reading.loader.readings(source, given, len(steps))
        for id in given:
            places = tuple((steps[0] + batch, row, tokens) for batch, row, tokens in found[id])
            read[id].append(Read(stage=stage, tokens=sum(tokens for *_, tokens in places), places=places))
    return read


_MADE = re.compile(r"(?:round-\d+/)?(.+?):\d+-\d+:[^:]+:\d+")


def _hint(cycle: TracedRun, id: str) -> str:
    """What an unknown id may have been meant for, among the organic documents."""
    made = _MADE.fullmatch(id)
    wanted = id if made is None else made[1]
    best, most = None, len(wanted) // 2
    paths = [shards_path(cycle.directory / TOKENIZE, split) for split in SPLITS]
    # One pass over the ids, of which there may be too many to compare each as `nearest` does.
    for other in chain.from_iterable(open_shards(path).read_ids() for path in paths if path.exists()):
        if other == wanted:
            return f"; there is {wanted!r}, and under that id what was made of it"
        while most < len(wanted) and other.startswith(wanted[: most + 1]):
            best, most = other, most + 1
        if most < len(wanted) and wanted in other:
            best, most = other, len(wanted)
    if best is not None:
        return f" (did you mean `{best}`?)"
    corpus = cycle.recipe.corpus
    capped = corpus.max_train_tokens is not None or corpus.max_held_out_tokens is not None
    return "; documents beyond `corpus.max_train_tokens` and `corpus.max_held_out_tokens` are not kept" * capped
