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
from fnmatch import fnmatch
from pathlib import Path

from synpro_engine.config import UserError, read_json, read_manifest, validate
from synpro_engine.data.compressed import line_reader
from synpro_engine.synth.yields import YieldReport

DOCUMENTS = "docs"
"""How the files of accepted texts begin, below a corpus."""
REJECTS = "_about/rejects"
"""How those of the refused completions begin."""
YIELD = "_about/yield.json"
"""What was accepted and refused, counted."""
TOKENS = "_tokens"
"""A shard directory with the accepted texts in order; hidden, for its lists of names are no documents."""


def files_of(corpus: Path, stem: str) -> list[Path]:
    """The files that begin with `DOCUMENTS` or `REJECTS`, in order; UserError where one is missing."""
    # As the manifest names them, and not those that are there: of several files one that is gone must be missed, or
    # the texts behind it would be taken for others.
    found = [corpus / name for name in sorted(read_manifest(corpus).files) if fnmatch(name, f"{stem}*.jsonl*")]
    lost = next((path for path in found if not path.exists()), None)
    if lost is not None:
        raise UserError(f"{lost}: missing; the corpus is damaged")
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
