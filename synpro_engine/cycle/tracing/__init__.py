"""From a token that was trained on, or from a document's id, to the characters it was made from. Loads no model."""

from synpro_engine.cycle.tracing.documents import DocumentTrace, Life, Made, trace_document
from synpro_engine.cycle.tracing.stored import Passage, SyntheticText
from synpro_engine.cycle.tracing.tokens import TokenPart, TokenTrace, trace_token

__all__ = [
    "DocumentTrace",
    "Life",
    "Made",
    "Passage",
    "SyntheticText",
    "TokenPart",
    "TokenTrace",
    "trace_document",
    "trace_token",
]
