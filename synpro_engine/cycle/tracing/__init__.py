"""From a token that was trained on, or from a document's id, to the characters it was made from. Loads no model."""

from synpro_engine.cycle.tracing.documents import DocumentTrace, Life, Made, trace_document
from synpro_engine.cycle.tracing.stored import Passage, SyntheticText
from synpro_engine.cycle.tracing.tokens import TokenPart, TokenTrace, trace_token
from synpro_engine.cycle.tracing.traced import TracedRun
from synpro_engine.cycle.tracing.windows import MOST_TEXTS, WindowPart, WindowTrace, trace_windows

__all__ = [
    "MOST_TEXTS",
    "DocumentTrace",
    "Life",
    "Made",
    "Passage",
    "SyntheticText",
    "TokenPart",
    "TokenTrace",
    "TracedRun",
    "WindowPart",
    "WindowTrace",
    "trace_document",
    "trace_token",
    "trace_windows",
]
