"""A few windows of the last round, followed from what was trained on to where it is from."""

from __future__ import annotations

from synpro_engine.cycle.plan import looked_at
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.cycle.tracing import MOST_TEXTS, Passage, WindowPart, WindowTrace, trace_windows
from synpro_engine.report import Provenance, SourceText, TrainedDocument, TrainedWindow

_STEPS = 3  # of one arm; of several there is one of each
_CHARS = 400
_PASSAGES = 3
_NONE = "No arm of this recipe trains on generated text: all that it trains on is organic."


def provenance(run: FinishedRun) -> Provenance:
    """Of the newest finished round of each arm that has any; nothing before the first."""
    if not run.in_rounds:
        return Provenance(missing=_NONE)
    trainings = looked_at(run.recipe, run.directory).trainings
    newest = {arm: stages[-1] for arm in run.in_rounds if (stages := run.trained(arm))}
    steps = _STEPS if len(newest) == 1 else 1
    found = [
        window
        for arm, stage in newest.items()
        for window in trace_windows(run.directory, run.in_rounds[arm], trainings[stage], steps)
    ]
    return Provenance(windows=tuple(map(_window, found)), most_texts=MOST_TEXTS)


def _window(found: WindowTrace) -> TrainedWindow:
    return TrainedWindow(
        stage=found.stage,
        step=found.step,
        row=found.row,
        source=found.source,
        documents=tuple(map(_document, found.parts)),
        more=found.more,
    )


def _document(part: WindowPart) -> TrainedDocument:
    text = _begin(part.excerpt)
    if part.made is None:
        return TrainedDocument(id=part.id, organic=part.organic, tokens=part.tokens, text=text)
    return TrainedDocument(
        id=part.id,
        organic=False,
        tokens=part.tokens,
        text=text,
        operation=part.made.record["provenance"]["operation"],
        stage=part.made.stage,
        sources=tuple(map(_source, part.made.passages[:_PASSAGES])),
    )


def _source(passage: Passage) -> SourceText:
    return SourceText(document=passage.document, start=passage.start, end=passage.end, text=_begin(passage.text))


def _begin(text: str) -> str:
    return text if len(text) <= _CHARS else f"{text[:_CHARS]}…"
