"""From step, row and token of a training stage to the document and, of a synthetic one, to the source's characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from synpro_engine.config import UserError
from synpro_engine.cycle.run_layout import STITCHED
from synpro_engine.cycle.steps.stitching import stitched_documents
from synpro_engine.cycle.steps.training import ORGANIC
from synpro_engine.cycle.tracing.position import check_step, finished_steps, open_reading
from synpro_engine.cycle.tracing.stored import SyntheticText, find_organic, find_synthetic, find_unique
from synpro_engine.cycle.tracing.traced import TracedRun
from synpro_engine.data import IGNORE, Tokenizer, TokenOrigin

_AROUND = 100  # characters that are shown on each side
_LONGEST = 8  # tokens of one character, as byte pairs and UTF-8 spell it


@dataclass(frozen=True, kw_only=True)
class TokenPart:
    """The text within a stitched document that a token is of."""

    id: str
    """Of what was made, or of the organic document."""
    operation: str | None
    """None of organic text."""
    number: int
    """Among the document's parts, from 0."""
    parts: int
    offset: int
    """Among the part's tokens, from 0; below 0 in the separator in front of it."""
    tokens: int


@dataclass(frozen=True, kw_only=True)
class TokenTrace:
    """One token that a model was given, and where it is from."""

    stage: str
    step: int
    row: int
    token: int
    id: int
    next_id: int | None
    """What was to be predicted behind it; None where that had no loss (a window of one phrase again and again)."""
    source: str
    window: int
    """Of the source, counted from 0 over all epochs."""
    document: str
    offset: int
    """Among the tokens of the document, from 0."""
    document_tokens: int
    """Of the document, with its end."""
    before: str
    text: str
    """What the token spells, or the characters that it has a part in; nothing where it is a document's begin or end."""
    after: str
    characters: tuple[int, int] | None
    """Of the document's text: those that the token has a part in. None where the tokenizer does not keep the text."""
    synthetic: SyntheticText | None
    part: TokenPart | None = None
    """Where the document was stitched; text and characters are then the part's own."""


def trace_token(cycle: TracedRun, stage: str, step: int, row: int, token: int) -> TokenTrace:
    """Trace input `token` of `row` (both from 0) in the global batch of a stage's step (from 1, as in the metrics).

    Collective. UserError, which names the option, for a stage, step, row or token that is not there.
    """
    steps = check_step(finished_steps(cycle), stage, cycle.training_stages, step)
    reading = open_reading(cycle, stage, steps)
    loader, tokenizer = reading.loader, reading.tokenizer
    for name, value, size in (("row", row, loader.global_batch), ("token", token, loader.seq_len)):
        if not 0 <= value < size:
            raise UserError(f"--{name} {value}: the {name}s of a {_WHOLE[name]} are 0 to {size - 1}")
    loader.skip(step - steps[0])
    origin = loader.origin(row, token)
    batch, corpus = loader.next_batch(), reading.corpora[origin.source]
    ids = corpus.document_tokens(origin.document).tolist()
    document = next(islice(corpus.read_ids(), origin.document, None))
    label, part, at = int(batch.labels_BS[row, token]), _part(cycle, stage, origin), origin.offset
    length = len(ids)
    if part is None:
        text, made = _text(cycle, stage, origin.source, document)
    else:
        text, made = _text(cycle, stage, ORGANIC if part.operation is None else origin.source, part.id)
        if part.offset >= 0:
            begin, at = at - part.offset, part.offset
            ids = ids[begin : begin + part.tokens]
    characters = None if part is not None and part.offset < 0 else _characters(tokenizer, ids, at, text)
    before, spelt, after = _around(tokenizer, ids, at, text, characters)
    return TokenTrace(
        stage=stage,
        step=step,
        row=row,
        token=token,
        id=int(batch.tokens_BS[row, token]),
        next_id=None if label == IGNORE else label,
        source=origin.source,
        window=origin.window,
        document=document,
        offset=origin.offset,
        document_tokens=length,
        before=before,
        text=spelt,
        after=after,
        characters=characters,
        synthetic=made,
        part=part,
    )


def _part(cycle: TracedRun, stage: str, origin: TokenOrigin) -> TokenPart | None:
    """What the token is of, where its document was stitched."""
    number = cycle.round_of(stage, origin.source)
    if number is None or not (parts := cycle.directory / cycle.shards_of(number) / STITCHED).exists():
        return None
    document = next(stitched_documents(parts, origin.document))
    at, offset = document.part_at(origin.offset)
    found = document.parts[at]
    return TokenPart(
        id=found.id,
        operation=found.operation,
        number=at,
        parts=len(document.parts),
        offset=offset,
        tokens=found.tokens,
    )


_WHOLE = {"row": "batch", "token": "row"}


def _text(cycle: TracedRun, stage: str, source: str, document: str) -> tuple[str, SyntheticText | None]:
    number = cycle.round_of(stage, source)
    if source == ORGANIC:
        found = find_organic(cycle.directory, document)
        if found is not None:
            return found[1], None
    elif number is None:
        text = find_unique(cycle.directory, document)
        if text is not None:
            return text, None
    else:
        made = find_synthetic(
            cycle.directory, cycle.recipe.of_arm(number.of_arm), document, cycle.rounds[number].values()
        )
        if made is not None:
            return made.record["text"], made
    raise UserError(f"{cycle.directory}: {source} has tokens of {document!r}, but its text is not there")


def _around(
    tokenizer: Tokenizer, ids: Sequence[int], at: int, text: str, characters: tuple[int, int] | None
) -> tuple[str, str, str]:
    """What stands before a token, its own characters, and what stands behind."""
    if characters is not None:
        start, end = characters
        return text[max(0, start - _AROUND) : start], text[start:end], text[end : end + _AROUND]
    # As tokens spell them, for they keep the text in another form.
    first = max(0, at - _AROUND // 4)
    before, upto, whole = (tokenizer.decode(ids[first:end]) for end in (at, at + 1, at + 1 + _AROUND // 4))
    return before, upto[len(before) :], whole[len(upto) :]


def _characters(tokenizer: Tokenizer, ids: Sequence[int], at: int, text: str) -> tuple[int, int] | None:
    """The least stretch of `text` between two ends of tokens that the one at `at` lies in."""
    # Where a character takes several tokens its middle ones spell none, and the ends lie further off.
    ends = range(max(0, at - _LONGEST), min(len(ids), at + _LONGEST) + 1)
    whole: dict[int, int] = {}
    for end in reversed(ends):
        spelt = tokenizer.decode(ids[:end])
        # A part of a character is spelt as U+FFFD, which the text may hold itself: then the length grows too early.
        early = spelt.endswith("\ufffd") and len(spelt) >= min(whole.values(), default=len(text) + 1)
        if text.startswith(spelt) and not early:
            whole[end] = len(spelt)
    starts, stops = [end for end in whole if end <= at], [end for end in whole if end > at]
    return (whole[max(starts)], whole[min(stops)]) if starts and stops else None
