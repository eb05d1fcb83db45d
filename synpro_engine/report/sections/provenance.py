"""From windows that were trained on to their documents, and of what was generated to the source's characters."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SourceText:
    """Characters `start` to `end` of an organic document, or how they begin."""

    document: str
    start: int
    end: int
    text: str


@dataclass(frozen=True, kw_only=True)
class TrainedDocument:
    """A document in a window. `text` is how what of it stands there begins, as its tokens spell it.

    What was generated has its operation, the stage that made it and its sources; where these lie behind what was looked
    through it has none of them.
    """

    id: str
    organic: bool
    tokens: int
    text: str
    operation: str = ""
    stage: str = ""
    sources: tuple[SourceText, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainedWindow:
    """A window of the batch of a step, and the first of its documents."""

    stage: str
    step: int
    row: int
    source: str
    documents: tuple[TrainedDocument, ...]
    more: int = 0
    """Documents that are not shown."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """A few windows of the last round of each arm that trains on generated text; `missing`: why there are none."""

    windows: tuple[TrainedWindow, ...] = ()
    missing: str = ""
    most_texts: int = 0
    """Of each generation, and of the organic documents, that were looked through."""
