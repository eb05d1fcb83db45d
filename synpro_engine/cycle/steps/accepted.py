"""The accepted texts of a `generate` stage, alone and beside the slices that they were made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from synpro_engine.config import Record, UserError, parse_record
from synpro_engine.cycle.run_layout import CORPUS, SAMPLE, documents_path
from synpro_engine.data import Document, cap_documents
from synpro_engine.data.writer import written_documents
from synpro_engine.synth import DOCUMENTS, Made, lines_of, read_yield


class Provenance(Record):
    """Where a synthetic text comes from: characters start to end of a document."""

    source: str
    start: int
    end: int
    slices: tuple[tuple[int, int], ...] = ()
    """Of a text that was joined: where each of its slices begins and ends."""
    member: int = 0
    """Number of the sample."""

    def cut_from(self, document: str) -> str:
        """What a text was made from; of one that was joined its slices, and nothing of what lies between them."""
        return "\n\n".join(document[start:end] for start, end in self.slices or ((self.start, self.end),))


class Accepted(Record):
    """A line of a synthetic corpus."""

    id: str
    text: str
    provenance: Provenance
    rewards: dict[str, float] | None = None


def accepted_records(stage: Path) -> Iterator[Accepted]:
    """The accepted records of a `generate` stage, with their provenance; UserError names a damaged line."""
    return (parse_record(line, Accepted, where) for where, line in lines_of(stage / CORPUS, DOCUMENTS))


def texts_made(stage: Path, tokens: Path, *, with_sources: bool) -> Iterator[Made]:
    """The accepted texts of a `generate` stage, in order, with their slices where these are asked for.

    tokens: the `tokenize` stage. UserError for a text whose document the corpus does not hold.
    """
    records = accepted_records(stage)
    if with_sources:
        documents = (document for _, document in written_documents(documents_path(tokens, "train")))
        sourced = _beside_sources(records, documents, stage)
    else:
        sourced = ((record, "") for record in records)
    for number, (record, source) in enumerate(sourced):
        yield Made(
            id=record.id,
            text=record.text,
            source=source,
            rewards=record.rewards or {},
            number=number,
            document=record.provenance.source,
            member=record.provenance.member,
        )


def _beside_sources(
    records: Iterable[Accepted], documents: Iterator[Document], stage: Path
) -> Iterator[tuple[Accepted, str]]:
    # Generation goes through the corpus in its order, so one pass over both finds each text's document.
    document: Document | None = None
    for record in records:
        where = record.provenance
        while document is None or document.id != where.source:
            document = next(documents, None)
            if document is None:
                raise UserError(
                    f"{stage}: its texts come from a document {where.source!r} that the corpus does not hold, or in"
                    " another order"
                )
        yield record, where.cut_from(document.text)


def sample_of(stage: Path) -> list[Accepted]:
    """Accepted records spread over all there are: `SAMPLE`, or all of fewer, in their order."""
    if not read_yield(stage / CORPUS).accepted:
        return []
    chosen = {record.id for record in cap_documents(accepted_records(stage), SAMPLE, 0, lambda _: 1)}
    return [record for record in accepted_records(stage) if record.id in chosen]
