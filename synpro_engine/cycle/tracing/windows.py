"""From a few windows that a training stage was given to their documents, and of what was generated to the sources.

Little is read: windows where they lie, and texts in one pass that ends after `MOST_TEXTS`. Ids alone take longer for a
larger corpus: a pass over their list, up to the last document that is told of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import STITCHED
from synpro_engine.cycle.steps.stitching import stitched_documents
from synpro_engine.cycle.steps.training import ORGANIC, Training
from synpro_engine.cycle.tracing.position import Reading, open_alone
from synpro_engine.cycle.tracing.stored import SyntheticText, find_synthetics
from synpro_engine.data import TokenCorpus
from synpro_engine.data.loader import Span

MOST_TEXTS = 100_000
"""Of each stage that generates, and of the organic documents, that are looked through."""
_MOST_PARTS = 8  # of a window that are told
_EXCERPT_TOKENS = 120


@dataclass(frozen=True, kw_only=True)
class WindowPart:
    """A document in a window, or the text within one that was stitched."""

    id: str
    organic: bool
    tokens: int
    """Of the window."""
    excerpt: str
    """How they begin, as tokens spell it."""
    made: SyntheticText | None = None
    """None of organic text, and where it, or its source, is behind the texts that were looked through."""


@dataclass(frozen=True, kw_only=True)
class WindowTrace:
    """A window of a step's batch; the first of its documents, and how many more there are."""

    stage: str
    step: int
    row: int
    source: str
    parts: tuple[WindowPart, ...]
    more: int


class _Window(NamedTuple):
    step: int
    row: int
    source: str
    spans: list[Span]


def trace_windows(directory: Path, recipe: Recipe, training: Training, steps: int) -> list[WindowTrace]:
    """Of steps at even distances of a finished training stage the first window of generated and of organic text.

    recipe: as the arm has it. Not collective.
    """
    reading = open_alone(training, directory / training.name)
    chosen = list(_chosen(reading, steps))
    found: list[WindowTrace] = []
    for source in dict.fromkeys(window.source for window in chosen):
        windows = [window for window in chosen if window.source == source]
        traced = list(_traced(reading, training, windows))
        if source != ORGANIC:
            ids = {part.id for window in traced for part in window.parts if not part.organic}
            stages = [path.relative_to(directory).as_posix() for path in training.made[source].values()]
            made = find_synthetics(directory, recipe, ids, stages, MOST_TEXTS)
            traced = [
                replace(one, parts=tuple(replace(part, made=made.get(part.id)) for part in one.parts)) for one in traced
            ]
        found += traced
    return sorted(found, key=lambda window: (window.step, window.source == ORGANIC))


def _chosen(reading: Reading, steps: int) -> Iterator[_Window]:
    loader, at = reading.loader, reading.steps[0]
    for step in _spread(reading.steps, steps):
        loader.skip(step - at)
        at = step
        sources = loader.row_sources()
        firsts = {source == ORGANIC: row for row, source in reversed(list(enumerate(sources)))}
        for row in firsts.values():
            yield _Window(step, row, sources[row], loader.row_spans(row))


def _spread(steps: range, number: int) -> list[int]:
    """So many at even distances, the first and the last among them; the last one alone, and all of fewer."""
    number = min(number, len(steps))
    return [steps[(len(steps) - 1) * at // (number - 1)] for at in range(number)] if number > 1 else [steps[-1]]


def _traced(reading: Reading, training: Training, windows: list[_Window]) -> Iterator[WindowTrace]:
    """Windows of one source, without what was made of what."""
    source = windows[0].source
    corpus = reading.corpora[source]
    ids = _ids(corpus, {document for window in windows for document, *_ in window.spans[:_MOST_PARTS]})
    stitched = None if source == ORGANIC else training.synthetic[source] / STITCHED
    for window in windows:
        parts: list[WindowPart] = []
        for span in window.spans[:_MOST_PARTS]:
            tokens = corpus.document_tokens(span[0])
            for id, organic, low, high in _texts(stitched, ids[span[0]], span):
                excerpt = reading.tokenizer.decode(tokens[low : min(high, low + _EXCERPT_TOKENS)].tolist())
                whole = source == ORGANIC or organic
                parts.append(WindowPart(id=id, organic=whole, tokens=high - low, excerpt=excerpt))
        yield WindowTrace(
            stage=reading.stage,
            step=window.step,
            row=window.row,
            source=source,
            parts=tuple(parts[:_MOST_PARTS]),
            more=max(0, len(parts) - _MOST_PARTS) + len(window.spans[_MOST_PARTS:]),
        )


def _ids(corpus: TokenCorpus, numbers: Iterable[int]) -> dict[int, str]:
    """Of some documents, from their list, which is not held: there may be very many."""
    wanted = set(numbers)
    read = enumerate(islice(corpus.read_ids(), max(wanted) + 1))
    return {number: id for number, id in read if number in wanted}


def _texts(stitched: Path | None, id: str, span: Span) -> Iterator[tuple[str, bool, int, int]]:
    """What tokens of a document are of: an id, whether it is organic within generated text, and which of them."""
    document, first, stop = span
    if stitched is None or not stitched.exists() or document >= MOST_TEXTS:
        yield id, False, first, stop
        return
    for part, begin, end in next(stitched_documents(stitched, document)).spans():
        if (low := max(first, begin)) < (high := min(stop, end)):
            yield part.id, part.operation is None, low, high
