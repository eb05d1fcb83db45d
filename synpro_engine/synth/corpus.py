"""The files of a synthetic corpus: what they are called, and how their lines are read.

The corpus is an artifact that `read_documents` reads like any other, in files of a bounded size:

    docs-000000.jsonl.zst ...            accepted texts: id, text, provenance, rewards, and what was cut of the answer
    _about/rejects-000000.jsonl.zst ...  refused completions: id, reason, what was written, provenance
    _about/yield.json                    the YieldReport
    _tokens/                             shards of the accepted texts, where the generator's tokenizer is the trained
                                         model's too and texts are not joined
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from synpro_engine.config import UserError, read_json, read_manifest, validate
from synpro_engine.data.compressed import line_reader
from synpro_engine.synth.yields import YieldReport

DOCUMENTS, REJECTS = "docs", "_about/rejects"
"""What the files of accepted texts and of refused completions begin with, below the corpus."""
YIELD = "_about/yield.json"
"""What was accepted and refused, counted."""
TOKENS = "_tokens"
"""A shard directory with the accepted texts in order; hidden, for its lists of names are no documents."""


def files_of(corpus: Path, stem: str) -> list[Path]:
    """The files that begin with `DOCUMENTS` or `REJECTS`, in order; UserError where there is none."""
    # One without a number, in a corpus of before there were several, is read too.
    found = sorted((corpus / stem).parent.glob(f"{Path(stem).name}*.jsonl*"))
    if not found:
        raise UserError(f"{corpus / stem}-*.jsonl.zst: missing; the corpus is damaged")
    return found


def lines_of(corpus: Path, stem: str) -> Iterator[tuple[str, bytes]]:
    """Each line of those files, with its place for messages; UserError for a damaged file."""
    for path in files_of(corpus, stem):
        for number, line in line_reader(path):
            yield f"{path}:{number}", line


def read_yield(corpus: Path) -> YieldReport:
    """The report of a finished corpus; UserError when it is not there, or damaged."""
    read_manifest(corpus)
    return validate(YieldReport, read_json(corpus / YIELD), str(corpus / YIELD))
