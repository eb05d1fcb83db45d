"""Cutting documents into pieces that a generator can read.

The slices of a document tile it: concatenated in order they are the document, character for character.
"""

from __future__ import annotations

from dataclasses import dataclass

from synpro_engine.data import Document, cut_spans


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Characters `start` to `end` (exclusive) of a document's text."""

    doc_id: str
    start: int
    end: int
    text: str

    @property
    def key(self) -> str:
        """Names the slice: document and characters."""
        return f"{self.doc_id}:{self.start}-{self.end}"


def slice_document(document: Document, max_chars: int = 7000) -> list[Slice]:
    """Cut a document into slices of 1 to `max_chars` characters that tile it exactly.

    Cuts fall between paragraphs where possible, else between lines, sentences, words, else anywhere. A pure
    function of the text. 7,000 characters is the paper's size (arXiv 2605.17849).
    """
    return [
        Slice(doc_id=document.id, start=start, end=end, text=document.text[start:end])
        for start, end in cut_spans(document.text, max_chars)
    ]
