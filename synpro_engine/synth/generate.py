"""Bulk generation over a corpus: every prompt of the work list answered exactly once, whatever happens on the way.

The outcome is an artifact that `read_documents` reads like any other corpus (see `corpus`). While it runs, finished
batches lie in `<name>.work` beside it, with the work list and the leases of who is at which batch. Started again, it
goes on after them, also with another number of ranks; other jobs may join it. Batches and seeds are fixed by the work
list, so the result is the same. All ranks and jobs must see the same directory.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from synpro_engine.config import (
    UserError,
    atomic_write_text,
    first_difference,
    json_text,
    read_json,
    read_manifest,
    remove_directory,
)
from synpro_engine.data import Document
from synpro_engine.data.encoding import token_counter
from synpro_engine.dist import Stopped, Topology, asked_to_stop, barrier, broadcast_in, on_main, progress
from synpro_engine.synth.claims import ALL_DONE, WAIT, Claims
from synpro_engine.synth.corpus import read_yield
from synpro_engine.synth.leases import Leases, forget_owners
from synpro_engine.synth.ledger import PartWriter, counts_of, read_commits
from synpro_engine.synth.merge import merge
from synpro_engine.synth.records import Producer
from synpro_engine.synth.work import WorkItem, WorkList, work_items
from synpro_engine.synth.yields import YieldReport

SETTINGS = "settings.json"
"""Of a work directory: what its answers depend on. It is there once the work list is."""
_SOURCE, _DOCUMENTS = "source_sha256", "documents"
"""Keys of hashes: of the slices, which decides whether work goes on, and of the artifact that they were cut from. Where
that is the same they are not cut again, for by tokens it takes hours of a large corpus."""
_READING = 5  # of answers: goes up where another text may come out of the same answer
_READINGS = {"table": 6}  # of the operations that are read otherwise since: work on the others goes on
_WAIT_S = 1.0  # for batches that are in other hands


def work_directory(path: Path) -> Path:
    """Where the finished batches of the corpus `path` lie until all are."""
    # Beside the artifact and not in its partial directory, which is emptied before a merge.
    return path.with_name(path.name + ".work")


def generate_corpus(
    path: Path,
    documents: Callable[[], Iterable[Document]],
    producer: Producer,
    topology: Topology,
    *,
    seed: int,
    documents_hash: str | None = None,
    inputs: Mapping[str, str] | None = None,
    parents: Mapping[str, Path] | None = None,
) -> YieldReport:
    """Write the synthetic corpus `path` from `documents`; collective, and every rank gets the report.

    documents: yields them anew at each call, on rank 0 alone; documents_hash: of the artifact that they are from, by
    which work that was begun goes on without cutting them again. Data-parallel ranks take batches as they come to them;
    all ranks of a tensor-parallel group work on the same batch (the producer's generator and scorer may be collective
    over it) and its first one writes. `inputs` names whatever the outcome depends on beside the producer (say, the
    checkpoints behind the rewards), `parents` the artifacts it was made from. Corpora of one source that will be read
    together (rounds, say) need a seed each. A finished corpus of the same settings is returned as it is.

    Raises UserError for a work list without items, `path` holding (or begun with) other settings, damaged parts, and a
    full disk, and Stopped, after the batches in hand, when the job is asked to stop; what was already written stays and
    is used by the next start.
    """
    work, own = work_directory(path), _settings(producer, seed, inputs or {})
    label = f"work list of {path.name}"
    if not on_main(topology, lambda: _prepare(path, producer, documents, documents_hash, seed, own), label=label):
        _answer(work, producer, topology, helper=False)
        barrier(topology)
        # By what is on disk and as rank 0 reads it: ranks may have seen the wish to stop at different batches.
        missing = on_main(topology, lambda: len(WorkList(work).open()) - len(read_commits(work)))
        if missing:  # some rank was asked to stop; this one may not know yet
            raise Stopped(f"{path}: stopped with {missing} batches to go; those that are done are kept")
        on_main(
            topology,
            lambda: merge(path, work, read_json(work / SETTINGS), parents or {}, seed, producer),
            label=f"merge {path.name}",
        )
    # Only once the artifact is published: until then these are the only copy. A kill in between leaves them for the
    # next start, which comes here again.
    if topology.is_main:
        remove_directory(work)
    return on_main(topology, lambda: read_yield(path))


def join_generation(
    path: Path, producer: Producer, topology: Topology, *, seed: int, inputs: Mapping[str, str] | None = None
) -> None:
    """Answer batches of a corpus that another job writes, until none is left that nobody is at. Collective.

    The other job has begun and will finish it. Raises UserError where that is made with other settings, and Stopped
    when this job is asked to stop.
    """
    work, own = work_directory(path), _settings(producer, seed, inputs or {})

    def check() -> None:
        _must_equal(read_json(work / SETTINGS), own, work, free=(_SOURCE, _DOCUMENTS))

    on_main(topology, check)
    _answer(work, producer, topology, helper=True)
    if asked_to_stop(topology):
        raise Stopped(f"{work}: stopped; the job that owns it goes on")


def _settings(producer: Producer, seed: int, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Everything that the outcome depends on beside the texts, as plain JSON."""
    settings = {
        "generate": producer.config.recorded(),
        "prompt": producer.prompt.recorded(),
        "seed": seed,
        "prefix": producer.prefix,
        "generator": producer.generator_hash,
        # The generator's context has a part in it, beside the settings, and it decides which prompts are answered.
        "longest_prompt": producer.longest_prompt,
        "tokenizer": producer.tokenizer.fingerprint,
        # A parser that reads otherwise would mix two readings in one corpus.
        "reading": max(_READINGS.get(name, _READING) for name in producer.prompters),
        "prompts": {name: asks.operation.prompt_version for name, asks in producer.prompters.items()},
        "scored": producer.scorer is not None,
        "inputs": dict(inputs),
        # Batches that lack the ids of their texts could not be gone on with.
        "token_files": None if producer.token_files is None else producer.token_files.fingerprint,
    }
    return json.loads(json_text(settings))  # tuples become lists, as they will be when read back


def _prepare(
    path: Path,
    producer: Producer,
    documents: Callable[[], Iterable[Document]],
    documents_hash: str | None,
    seed: int,
    own: Mapping[str, Any],
) -> bool:
    """Whether the corpus is finished already; else see to it that its work is of these settings and has a list."""
    work, finished = work_directory(path), path.exists()
    items = _HashedItems(documents, producer, seed)
    if not finished and not (work / SETTINGS).exists():
        work.mkdir(parents=True, exist_ok=True)
        WorkList(work).write(items, producer.config.batch_prompts)
        source = items.sha256
    else:
        where, stored = (path, read_manifest(path).config) if finished else (work, read_json(work / SETTINGS))
        _must_equal(stored, own, where, free=(_SOURCE, _DOCUMENTS))
        if documents_hash is not None and stored.get(_DOCUMENTS) == documents_hash:
            source = stored[_SOURCE]
        else:
            deque(items, maxlen=0)
            source = items.sha256
        _must_equal(stored, {**own, _SOURCE: source}, where, free=(_DOCUMENTS,))
    if not finished:
        recorded = {**own, _SOURCE: source} | ({} if documents_hash is None else {_DOCUMENTS: documents_hash})
        atomic_write_text(work / SETTINGS, json_text(recorded, indent=2))
    forget_owners(work)
    return finished


class _HashedItems:
    """The work list as it passes by, and then what it hashes to: of the texts, which may change under the same ids."""

    def __init__(self, documents: Callable[[], Iterable[Document]], producer: Producer, seed: int) -> None:
        self._items = work_items(documents, producer.config, seed, token_counter(producer.tokenizer))
        self._hash, self._any = hashlib.sha256(), False

    def __iter__(self) -> Iterator[WorkItem]:
        for item in self._items:
            self._hash.update(f"{item.key}\0{item.seed}\0{item.slice.text}\0".encode(errors="surrogatepass"))
            self._any = True
            yield item

    @property
    def sha256(self) -> str:
        """In hex; UserError where there was no item."""
        if not self._any:
            raise UserError("generate: no slice of the corpus is long enough (`min_source_chars`)")
        return self._hash.hexdigest()


def _must_equal(stored: Mapping[str, Any], settings: Mapping[str, Any], where: Path, *, free: Collection[str]) -> None:
    difference = first_difference(stored, settings, free)
    if difference is not None:
        raise UserError(f"{where}: was made with other settings: {difference}; remove it or give another directory")


def _answer(work: Path, producer: Producer, topology: Topology, *, helper: bool) -> None:
    """Answer batches, as this rank comes to them, until none is left or the job is asked to stop."""
    items = WorkList(work).open()
    patience_s = 60 * producer.config.lease_minutes
    with ExitStack() as held:
        claims = leases = part = None
        # All ranks of a tensor-parallel group answer the same batch, which may be collective over it; one claims and
        # writes.
        if topology.tp.rank == 0 and topology.pp.rank == 0:
            leases = held.enter_context(Leases(work, patience_s, helper=helper))
            start = len(items) * topology.dp.rank // topology.dp.size
            claims = Claims(work, len(items), leases, start=start)
            part = held.enter_context(PartWriter(work, leases.worker))
        before = 0 if claims is None else claims.prompts
        bar = held.enter_context(progress(items.prompts, "generate", "prompts", topology, initial=before))
        while True:
            # One answer for a tensor-parallel group, whose next batch is collective. Data-parallel ranks may stop at
            # different batches.
            if broadcast_in(topology.tp, topology.watch.wish.signal is not None):
                return
            unit = broadcast_in(topology.tp, ALL_DONE if claims is None else claims.claim())
            if unit == ALL_DONE:
                return
            if unit == WAIT:
                time.sleep(_WAIT_S)
                continue
            begun, batch = time.monotonic(), items.unit(unit)
            try:
                records = producer.batch(batch)
            except Stopped:  # while its scorer waited for another machine; all of the group are told alike
                return
            if claims is not None and leases is not None and part is not None:
                part.append(unit, records, counts_of(records, len(batch), time.monotonic() - begun))
                leases.done(unit)
                claims.done(unit, len(batch))
                bar.update(claims.prompts - bar.n)
