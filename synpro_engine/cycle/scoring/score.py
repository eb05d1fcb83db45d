"""Scoring any documents by their influence: streaming, resumable, shared out over data-parallel ranks.

What a score is, and between which weights, is the estimator's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from synpro_engine.config import UserError, append_lines, first_difference, json_text, outside_artifacts, whole_lines
from synpro_engine.config.lock import writing
from synpro_engine.cycle.scoring.model_pair import ModelPair
from synpro_engine.data import BadDocument, Document, ReadConfig, count_documents, find_source, read_documents
from synpro_engine.dist import Stopped, Topology, asked_to_stop, gather_objects, on_main, progress, say
from synpro_engine.influence import EstimatorConfig, SequenceScore
from synpro_engine.storage import is_remote

_ROUNDS = 4  # micro-batches a rank scores between two writes: enough to put texts of like length together
_FIRST_ORDER = {"dot": ("at", "clip"), "jvp": ("at",), "finite_difference": ("at", "step")}
# How each line begins: what is always the same, and what may stand behind it.
_HEAD = (
    ('{"id": "', re.compile(r'^(?:[^"\\]|\\.)*(?:\\$)?')),
    ('", "value": ', re.compile(r"^(?:[-+.eE0-9]+|null|nul|nu|n)")),
    (', "tokens": ', re.compile(r"^[0-9]+")),
    (', "windows": ', re.compile(r"^[0-9]+")),
    (', "loss": ', re.compile(r"^")),
)


def score_documents(
    pair: ModelPair,
    config: EstimatorConfig,
    documents: str,
    output: Path,
    topology: Topology,
    *,
    reading: ReadConfig | None = None,
    shares: bool = False,
) -> None:
    """Append one JSON line per document to `output`, in the order of the input.

    A line holds `id`, `value` and `loss` (nats per token; null where not finite), `tokens` and the `windows` of the
    model's length that they were cut into, the `estimator` with its settings, and the content hashes `theta` and
    `probe`; the value along each of the `references` where the probe was made of several; with `shares` each token's
    part of `value`. What `output` holds of the same documents already is kept, so
    an interrupted call goes on, with nothing lost or twice. Collective. Raises UserError for a bad document (naming
    file and line; what was scored before it is kept), unless `reading` leaves those out, and for an `output` that
    holds something else; Stopped when the job is asked to stop.
    """
    source = on_main(topology, lambda: find_source(documents))
    if source.remark:
        say(topology, source.remark)
    # Resolved before it is recorded: `auto` in a line would not say what made it.
    config = pair.resolved(config, topology)
    made_by = _made_by(config, pair.hashes(topology))
    with ExitStack() as held:
        # The lock on the output is held by rank 0, which alone appends.
        known = on_main(topology, lambda: _begin(held, output, documents, made_by, shares))
        # A store would be read twice for no more than a bar's end.
        total = on_main(
            topology, lambda: None if source.is_remote else count_documents(source), label=f"count {documents}"
        )
        estimator, size = pair.estimator(config, topology), _ROUNDS * config.micro_batch * topology.dp.size
        bar = held.enter_context(progress(total, "influence", "documents", topology))
        skipped = _Skipped(topology, bar.update)
        fresh = _fresh(read_documents(source, reading, skipped), known, output, bar.update)
        # Rank 0 reads for all: how many batches there are must not hang on each rank's own look at the files.
        while batch := on_main(topology, lambda: list(itertools.islice(fresh, size))):
            # Every n-th, so that `zip_longest` over the n ranks puts them back in order.
            mine = batch[topology.dp.rank :: topology.dp.size]
            scores = estimator.score([pair.tokenizer.encode(document.text) for document in mine])
            lines = [_line(document, score, made_by, shares) for document, score in zip(mine, scores, strict=True)]
            # The last batch may not divide: ranks with one document less leave a None.
            gathered = itertools.zip_longest(*gather_objects(topology.dp, lines))
            ordered = [line for part in gathered for line in part if line is not None]
            on_main(topology, partial(append_lines, output, ordered))
            bar.update(len(batch))
            if asked_to_stop(topology):
                raise Stopped(f"{output}: stopped; the scores so far are kept")
    if skipped.counts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.counts.items()))
        say(topology, f"skipped {skipped.counts.total()} bad documents, named above: {reasons}")


class _Skipped:
    """Names each bad document to the user and counts them by reason."""

    def __init__(self, topology: Topology, advance: Callable[[int], object]) -> None:
        self._topology, self._advance = topology, advance
        self.counts: Counter[str] = Counter()

    def __call__(self, bad: BadDocument) -> None:
        self.counts[bad.reason] += 1
        say(self._topology, f"skipped: {bad}")
        self._advance(1)


def _made_by(config: EstimatorConfig, hashes: Mapping[str, str]) -> dict[str, object]:
    """What the scores depend on, beside the texts. Rows and packing change their last bits only."""
    # Those that this estimator reads: a file of `two_forward` scores goes on whatever `clip` says.
    settings = {name: getattr(config, name) for name in _FIRST_ORDER.get(config.estimator, ())}
    return {"estimator": config.estimator, **settings, **hashes}


def _line(document: Document, score: SequenceScore, made_by: Mapping[str, object], shares: bool) -> str:
    record: dict[str, Any] = {
        "id": document.id,
        "value": score.value,
        "tokens": score.tokens,
        "windows": score.windows,
        "loss": score.loss,
        **made_by,
    }
    if score.others:
        record["references"] = dict(score.others)
    if shares:
        record["shares"] = list(score.shares)
    return json_text(record, ensure_ascii=False) + "\n"


def _fresh(
    documents: Iterator[Document], known: tuple[int, bytes], output: Path, advance: Callable[[int], object]
) -> Iterator[Document]:
    """The documents behind those that `output` holds, which must be the first ones, in order."""
    count, digest = known
    ids = hashlib.blake2b()
    for document in itertools.islice(documents, count):
        _take(ids, document.id)
        advance(1)
    # A digest of all ids, since holding those of a long file would take gigabytes.
    if ids.digest() != digest:
        raise UserError(f"{output}: holds scores of other documents than the input begins with; give another --output")
    yield from documents


def _take(ids: Any, id: str) -> None:
    ids.update(json_text(id).encode() + b"\n")


def _begin(
    held: ExitStack, output: Path, documents: str, made_by: Mapping[str, object], shares: bool
) -> tuple[int, bytes]:
    """How many documents `output` holds, and a digest of their ids; a last line torn by a kill is dropped.

    The file is this process's alone until `held` is closed.
    """
    if is_remote(str(output)):
        raise UserError(f"{output}: scores are appended, which no store can; give a file of this machine")
    source = Path(documents).resolve()
    # A file of scores inside the input directory would be read as documents at the next start.
    if source in (output.resolve(), *output.resolve().parents):
        where = "is the input" if source == output.resolve() else "lies in the directory that is the input"
        raise UserError(f"{output}: {where}; give another --output")
    if output.is_dir():
        raise UserError(f"{output}: is a directory; --output names the file of scores")
    outside_artifacts(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    ids, count, end = hashlib.blake2b(), 0, 0
    if output.exists() and not output.is_file():  # a pipe or device: nothing to read back, nor to be alone at
        return count, ids.digest()
    is_new = not output.exists()
    # Before it is read back: another process could still append to it.
    held.enter_context(writing(output))
    if is_new:
        held.callback(_remove_empty, output)
    for line in whole_lines(output):
        _take(ids, _id_of(line.text, output, made_by, shares))
        count, end = count + 1, line.end
    with output.open("rb+") as file:
        file.seek(end)
        # Cutting the end off is allowed only where it is ours: a foreign file without a last newline must stay whole.
        if not _is_torn(file.read()):
            raise _foreign(output)
        file.truncate(end)
    return count, ids.digest()


def _remove_empty(output: Path) -> None:
    """A call that scored nothing leaves no file."""
    if output.stat().st_size == 0:
        output.unlink()


def _is_torn(line: bytes) -> bool:
    """Whether a line that does not end is the beginning of one that `_line` writes, and not of anybody else's."""
    rest = line.decode("utf-8", errors="ignore")  # a cut may go through a character
    for literal, free in _HEAD:
        if len(rest) <= len(literal):
            return literal.startswith(rest)
        if not rest.startswith(literal):
            return False
        rest = free.sub("", rest[len(literal) :], count=1)
    return True


def _id_of(line: bytes, output: Path, made_by: Mapping[str, object], shares: bool) -> str:
    try:
        record = json.loads(line)
        theirs = {name: record[name] for name in ("theta", "probe", "estimator")}
        id = record["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _foreign(output) from None
    theirs |= {name: record.get(name) for name in made_by}
    if "windows" not in record:
        raise UserError(f"{output}: holds scores of an older version, which clipped by window; give another --output")
    difference = first_difference(theirs, made_by)
    if difference is not None:
        raise UserError(f"{output}: holds scores of other settings: {difference}; give another --output")
    if ("shares" in record) != shares:
        raise UserError(f"{output}: holds scores with{'out' * shares} shares; give another --output")
    return id


def _foreign(output: Path) -> UserError:
    return UserError(f"{output}: exists and does not hold scores; give another --output")
