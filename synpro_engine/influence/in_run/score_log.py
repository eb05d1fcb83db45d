"""The record of in-run scores: one JSON object a line, append-only, for mixture weights and for what to write next.

A line is {"step": 12, "key": "doc-7", "tokens": 2047, "scores": {"reference": 0.0031}}: in the optimizer step that
ended as number 12, this much of document doc-7 was trained on, with these scores in nats per token (along the next
step for each nat of the reference; null where not finite). Rank 0 writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synpro_engine.config import Record, UserError, append_lines, json_text, parse_record, whole_lines
from synpro_engine.dist import Topology, gather_objects, on_main
from synpro_engine.influence.examples import ExampleScore

SCORES = "in-run-scores.jsonl"
_BEGINNING = b'{"step": '


@dataclass(frozen=True, kw_only=True)
class ScoreRecord:
    """One line: an example's scores by direction in one step; None where not finite."""

    step: int
    """Optimizer steps completed, this one included."""
    key: str
    """The document's id."""
    tokens: int
    """Of the document, that this step had a loss of."""
    scores: Mapping[str, float | None]
    """By direction; a run has one, `reference`."""


class _Line(Record):
    """A ScoreRecord as it is read back."""

    step: int
    key: str
    tokens: int
    scores: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class DocumentScore:
    """Mean over all tokens of a document that were trained on, and how many these were."""

    value: float
    tokens: int


class ScoreLog:
    """Appends the scores of all data-parallel ranks to one file. Methods are collective over the job."""

    def __init__(self, path: Path, topology: Topology, *, resume_step: int | None = None) -> None:
        """resume_step: the step that a resumed run goes on from; what was recorded after it is dropped. None: anew.

        Raises UserError, on every rank, for a file that holds something else or cannot be written.
        """
        self._path, self._topology = path, topology
        on_main(topology, lambda: _begin(path, resume_step))

    def write(self, step: int, scores: Sequence[ExampleScore]) -> None:
        """Record this rank's examples of the step that ended as number `step`, in the order of the ranks."""
        lines = [_line(step, score) for score in scores]
        # In rank order, so that the file does not depend on who was first.
        parts = gather_objects(self._topology.dp, lines)
        on_main(self._topology, lambda: append_lines(self._path, (line for part in parts for line in part)))


def _line(step: int, score: ExampleScore) -> str:
    record = {"step": step, "key": score.key, "tokens": score.tokens, "scores": dict(score.values)}
    return json_text(record, ensure_ascii=False) + "\n"


def _begin(path: Path, resume_step: int | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    keep_to = 0
    if path.exists():
        # Looked at before anything is cut off: a file of somebody else's stays as it is.
        with path.open("rb") as file:
            if file.read(len(_BEGINNING)) not in (b"", _BEGINNING):
                raise UserError(f"{path}: exists and holds no scores; it is not replaced")
        for record, end in _records(path):
            # Steps behind the checkpoint run again and would stand twice. Steps rise, so the first later one ends the
            # search.
            if resume_step is None or record.step > resume_step:
                break
            keep_to = end
    with path.open("ab") as file:
        # To the end of a whole record: what a kill left of one goes with the rest.
        file.truncate(keep_to)


def read_scores(path: Path) -> Iterator[ScoreRecord]:
    """All complete records in order; UserError where there is no such file, or for a line that is no record.

    A last line without its newline is what a killed run leaves, and is passed over.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return (record for record, _ in _records(path))


def _records(path: Path) -> Iterator[tuple[ScoreRecord, int]]:
    """Records and the offsets of their ends, in bytes."""
    for line in whole_lines(path):
        read = parse_record(line.text, _Line, line.where)
        yield ScoreRecord(step=read.step, key=read.key, tokens=read.tokens, scores=read.scores), line.end


def by_document(path: Path, direction: str, *, since: int = 0) -> dict[str, DocumentScore]:
    """Each document's mean score along `direction` over steps after `since`, weighted by tokens.

    Scores drift as the weights and v move, so that a late `since` says more about the model at hand. Steps without a
    finite score are left out. Raises UserError for a damaged file, and for a direction that a record lacks.
    """
    sums: dict[str, list[float]] = {}
    for record in read_scores(path):
        # An example without a label in a step has a score of 0 there, which says nothing of the document.
        if record.step <= since or not record.tokens:
            continue
        if direction not in record.scores:
            raise UserError(f"{path}: step {record.step} has no scores along `{direction}`")
        value = record.scores[direction]
        if value is not None:
            total = sums.setdefault(record.key, [0.0, 0])
            total[0] += value * record.tokens
            total[1] += record.tokens
    return {key: DocumentScore(value=total / tokens, tokens=int(tokens)) for key, (total, tokens) in sums.items()}
