"""Bulk generation over a corpus: every prompt of the work list answered exactly once, whatever happens on the way.

The outcome is an artifact that `read_documents` reads like any other corpus:

    docs.jsonl.zst        accepted texts: id, text, provenance, rewards, and what was cut of the answer (`Cut`)
    _about/rejects.jsonl  refused completions: id, reason, what was written, provenance
    _about/yield.json     the YieldReport

While it runs, finished batches lie in `<name>.work` beside it (see `ledger`). Started again, it goes on after them,
also with another number of ranks; batches and seeds are fixed by the work list, so the result is the same. All ranks
must see the same directory.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from synpro_engine.config import (
    UserError,
    atomic_write_text,
    first_difference,
    json_text,
    new_artifact,
    read_json,
    read_manifest,
    validate,
)
from synpro_engine.data import Document, DocumentWriter, Tokenizer
from synpro_engine.dist import Stopped, Topology, barrier, broadcast_in, on_main, progress
from synpro_engine.synth.ledger import PartWriter, read_commits, read_frame
from synpro_engine.synth.prompting import PromptConfig
from synpro_engine.synth.records import Generator, Producer, RewardFunction
from synpro_engine.synth.work import GenerateConfig, WorkItem, batches, work_list
from synpro_engine.synth.yields import YieldCounter, YieldReport

DOCUMENTS = "docs.jsonl.zst"
"""Of a synthetic corpus: the accepted texts."""
REJECTS = "_about/rejects.jsonl"
"""Of a synthetic corpus: the refused completions."""
YIELD = "_about/yield.json"
"""Of a synthetic corpus: what was accepted and refused, counted."""
_SETTINGS = "settings.json"
_READING = 2  # of answers: goes up where another text may come out of the same answer


def generate_corpus(
    path: Path,
    documents: Iterable[Document],
    generator: Generator,
    tokenizer: Tokenizer,
    config: GenerateConfig,
    prompt: PromptConfig,
    topology: Topology,
    *,
    generator_hash: str,
    seed: int,
    scorer: RewardFunction | None = None,
    prefix: str = "",
    inputs: Mapping[str, str] | None = None,
    parents: Mapping[str, Path] | None = None,
) -> YieldReport:
    """Write the synthetic corpus `path` from `documents`; collective, and every rank gets the report.

    Data-parallel ranks share the batches; all ranks of a tensor-parallel group work on the same batch (the
    generator and the scorer may be collective over it) and its first one writes. `generator_hash` names the
    checkpoint, `inputs` whatever else the outcome depends on (say, the checkpoints behind the rewards), `parents`
    the artifacts it was made from. `prefix` begins every record's id: corpora of one source that will be read
    together (rounds, say) need one each, and each a seed of its own. A finished corpus of the same settings is
    returned as it is.

    Raises UserError for a work list without items, `path` holding (or begun with) other settings, damaged parts, and a
    full disk, and Stopped, after the batches in hand, when the job is asked to stop; what was already written stays and
    is used by the next start.
    """
    producer = Producer(
        generator=generator, tokenizer=tokenizer, config=config, prompt=prompt, generator_hash=generator_hash,
        scorer=scorer, prefix=prefix,
    )  # fmt: skip
    items = work_list(documents, config, seed)
    if not items:
        raise UserError("generate: no slice of the corpus is long enough (`min_source_chars`)")
    settings = _settings(producer, items, seed, inputs or {})
    # Beside the artifact and not in its partial directory, which `new_artifact` empties when it merges.
    work = path.with_name(path.name + ".work")
    if not on_main(topology, lambda: _prepare(path, work, settings)):
        _run(work, producer, items, topology)
        barrier(topology)  # shares were dealt beforehand: the last rank may be long after the first
        # By what is on disk and as rank 0 reads it: ranks may have seen the wish to stop at different batches.
        missing = on_main(topology, lambda: len(batches(items, config.batch_prompts)) - len(read_commits(work)))
        if missing:  # some rank was asked to stop; this one may not know yet
            raise Stopped(f"{path}: stopped with {missing} batches to go; those that are done are kept")
        on_main(
            topology,
            lambda: _merge(path, work, producer, items, settings, parents or {}, seed),
            label=f"merge {path.name}",
        )
    # Only once the artifact is published: until then these are the only copy. A kill in between leaves them for the
    # next start, which comes here again.
    if topology.is_main and work.exists():
        shutil.rmtree(work)
    return on_main(topology, lambda: read_yield(path))


def read_yield(path: Path) -> YieldReport:
    """The report of a finished corpus; UserError when it is not there, or damaged."""
    read_manifest(path)
    return validate(YieldReport, read_json(path / YIELD), str(path / YIELD))


def _settings(producer: Producer, items: Sequence[WorkItem], seed: int, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Everything that the outcome depends on, as plain JSON."""
    source = hashlib.sha256()
    for item in items:
        # The texts themselves, for a corpus may change under the same ids.
        source.update(f"{item.key}\0{item.seed}\0{item.slice.text}\0".encode())
    settings = {
        "generate": producer.config.model_dump(),
        "prompt": producer.prompt.model_dump(),
        "seed": seed,
        "prefix": producer.prefix,
        "generator": producer.generator_hash,
        # The generator's context has a part in it, beside the settings, and it decides which prompts are answered.
        "longest_prompt": producer.longest_prompt,
        "tokenizer": producer.tokenizer.fingerprint,
        # A parser that reads otherwise would mix two readings in one corpus.
        "reading": _READING,
        "prompts": {name: asks.operation.prompt_version for name, asks in producer.prompters.items()},
        "source_sha256": source.hexdigest(),
        "scored": producer.scorer is not None,
        "inputs": dict(inputs),
    }
    return json.loads(json_text(settings))  # tuples become lists, as they will be when read back


def _prepare(path: Path, work: Path, settings: dict[str, Any]) -> bool:
    """Whether the corpus is finished already; else make sure that `work` belongs to these settings."""
    if path.exists():
        _must_equal(read_manifest(path).config, settings, path)
        return True
    work.mkdir(parents=True, exist_ok=True)
    file = work / _SETTINGS
    if file.exists():
        _must_equal(read_json(file), settings, work)
    else:
        atomic_write_text(file, json_text(settings, indent=2))
    return False


def _must_equal(stored: Mapping[str, Any], settings: Mapping[str, Any], where: Path) -> None:
    difference = first_difference(stored, settings)
    if difference is not None:
        raise UserError(f"{where}: was made with other settings: {difference}; remove it or give another directory")


def _run(work: Path, producer: Producer, items: list[WorkItem], topology: Topology) -> None:
    """Answer this rank's share of what is not on disk yet."""
    units = batches(items, producer.config.batch_prompts)
    done = on_main(topology, lambda: sorted(read_commits(work)))
    # Dealt anew from what is left, so that another number of ranks may go on. Results do
    # not depend on who makes a batch.
    mine = sorted(set(range(len(units))) - set(done))[topology.dp.rank :: topology.dp.size]
    before = len(done) * producer.config.batch_prompts // topology.dp.size
    total = before + sum(len(units[unit]) for unit in mine)
    bar = progress(total, "generate", "prompts", topology, initial=before)
    # All ranks of a tensor-parallel group answer the same batch, which may be collective over it; one writes.
    writes = topology.tp.rank == 0 and topology.pp.rank == 0
    with bar, PartWriter(work, topology.dp.rank) if writes else nullcontext() as part:
        for unit in mine:
            # One answer for a tensor-parallel group, whose next batch is collective. Data-parallel ranks
            # may stop at different batches.
            if broadcast_in(topology.tp, topology.watch.wish.signal is not None):
                break
            try:
                records = producer.batch(units[unit])
            except Stopped:  # while its scorer waited for another machine; all of the group are told alike
                break
            if part is not None:
                part.append(unit, records)
            bar.update(len(units[unit]))


def _records(work: Path, units: int) -> Iterator[dict[str, Any]]:
    """All records in work-list order."""
    commits = read_commits(work)
    assert sorted(commits) == list(range(units)), "a batch is missing after all ranks have finished"
    # By number and not in the order of writing, which hangs on ranks and interruptions.
    for unit in range(units):
        yield from read_frame(work, commits[unit])


def _merge(
    path: Path,
    work: Path,
    producer: Producer,
    items: list[WorkItem],
    settings: Mapping[str, Any],
    parents: Mapping[str, Path],
    seed: int,
) -> None:
    """Turn the parts into the artifact; repeatable until the artifact is there."""
    units = len(batches(items, producer.config.batch_prompts))
    counter = YieldCounter()
    with new_artifact(path, "synthetic-corpus", settings, parents, seed) as folder:
        (folder / REJECTS).parent.mkdir()
        with DocumentWriter(folder / DOCUMENTS) as accepted, (folder / REJECTS).open("w", encoding="utf-8") as rejects:
            for record in _records(work, units):
                counter.add(record)
                origin = {"provenance": record["provenance"]}
                if record["reason"] is None:
                    about = {**origin, "rewards": record["rewards"], "cut": record["cut"]}
                    accepted.write(Document(record["id"], record["text"]), about)
                else:
                    refused = {"id": record["id"], "reason": record["reason"], "raw": record["raw"], **origin}
                    rejects.write(json_text(refused, ensure_ascii=False) + "\n")
        atomic_write_text(folder / YIELD, counter.report().model_dump_json(indent=2) + "\n")
