"""From the finished batches of a generation to the corpus, in the order of the work list.

The corpus is an artifact that `read_documents` reads like any other:

    docs-00000.jsonl.zst  accepted texts: id, text, provenance, rewards, and what was cut of the answer (`Cut`);
                          further files in their order, where they are many
    _about/rejects.jsonl  refused completions: id, reason, what was written, provenance
    _about/yield.json     the YieldReport
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from synpro_engine.config import atomic_write_text, json_text, new_artifact, read_json, read_manifest, validate
from synpro_engine.data import Document, DocumentWriter
from synpro_engine.data.compressed import line_reader
from synpro_engine.data.writer import document_line
from synpro_engine.synth.ledger import read_commits, read_frame
from synpro_engine.synth.work import WorkList
from synpro_engine.synth.yields import YieldCounter, YieldReport

_DOCUMENTS = "docs-{:05}.jsonl.zst"
_FILE_BYTES = 1 << 30
"""Of lines, before compression, in one file: whoever reads the corpus elsewhere can share its files out."""
REJECTS = "_about/rejects.jsonl"
"""Of a synthetic corpus: the refused completions."""
YIELD = "_about/yield.json"
"""Of a synthetic corpus: what was accepted and refused, counted."""


def merge(
    path: Path, work: Path, settings: Mapping[str, Any], parents: Mapping[str, Path], seed: int, *, join: bool
) -> None:
    """Turn the batches in `work` into the artifact `path`; repeatable until the artifact is there.

    join: put the accepted texts of each document together, by operation and sample.
    """
    counter = YieldCounter()
    with new_artifact(path, "synthetic-corpus", settings, parents, seed) as folder:
        (folder / REJECTS).parent.mkdir()
        with (folder / REJECTS).open("w", encoding="utf-8") as rejects:

            def passing() -> Iterator[dict[str, Any]]:
                for record in _records(work):
                    counter.add(record)
                    if record["reason"] is None:
                        yield record
                    else:
                        refused = {name: record[name] for name in ("id", "reason", "raw", "provenance")}
                        rejects.write(json_text(refused, ensure_ascii=False) + "\n")

            _write_accepted(folder, _joined(passing()) if join else passing())
        atomic_write_text(folder / YIELD, counter.report().model_dump_json(indent=2) + "\n")


def _write_accepted(folder: Path, records: Iterable[dict[str, Any]]) -> None:
    """One file at least, if an empty one."""
    names = ("provenance", "rewards", "cut")
    lines = (document_line(Document(r["id"], r["text"]), {name: r[name] for name in names}) for r in records)
    line = next(lines, None)
    for number in itertools.count():
        with DocumentWriter(folder / _DOCUMENTS.format(number)) as accepted:
            written = 0
            while line is not None and written < _FILE_BYTES:
                accepted.write_line(line)
                written, line = written + len(line), next(lines, None)
        if line is None:
            return


def accepted_files(path: Path) -> list[Path]:
    """The files of a corpus that hold its accepted texts, in their order, as its manifest names them."""
    # Not those that are there: one that is gone must be missed.
    return [path / name for name in sorted(read_manifest(path).files) if fnmatch(name, "docs-*.jsonl.zst")]


def accepted_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Place (file and line) and line of each accepted text of a corpus; UserError for a damaged file."""
    return ((f"{file}:{number}", line) for file in accepted_files(path) for number, line in line_reader(file))


def read_yield(path: Path) -> YieldReport:
    """The report of a finished corpus; UserError when it is not there, or damaged."""
    read_manifest(path)
    return validate(YieldReport, read_json(path / YIELD), str(path / YIELD))


def _records(work: Path) -> Iterator[dict[str, Any]]:
    """All records in work-list order."""
    commits, units = read_commits(work), len(WorkList(work).open())
    assert sorted(commits) == list(range(units)), "a batch is missing after all ranks have finished"
    # By number and not in the order of writing, which hangs on ranks and interruptions.
    for unit in range(units):
        yield from read_frame(work, commits[unit])


def _joined(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One record for each document, operation and sample; records come document by document."""
    for _, of_document in itertools.groupby(records, key=lambda record: record["provenance"]["source"]):
        texts: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for record in of_document:
            origin = record["provenance"]
            texts.setdefault((origin["operation"], origin["member"]), []).append(record)
        yield from map(_join, texts.values())


def _join(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Named by its first part; its rewards are means over all parts, weighted by their characters."""
    first, last = parts[0], parts[-1]
    slices = [[part["provenance"]["start"], part["provenance"]["end"]] for part in parts]
    chars = [len(part["text"]) for part in parts]
    names = dict.fromkeys(name for part in parts for name in part["rewards"])
    pairs = list(zip([part["rewards"] for part in parts], chars, strict=True))
    rewards = {name: _mean([(rewards[name], n) for rewards, n in pairs if name in rewards]) for name in names}
    cut: dict[str, int] = {}
    for part in parts:
        for cause, count in part["cut"].items():
            cut[cause] = cut.get(cause, 0) + count
    origin = {**first["provenance"], "end": last["provenance"]["end"], "slices": slices}
    text = "\n\n".join(part["text"] for part in parts)
    return {"id": first["id"], "text": text, "provenance": origin, "rewards": rewards, "cut": cut}


def _mean(weighted: list[tuple[float, int]]) -> float:
    return sum(value * weight for value, weight in weighted) / max(1, sum(weight for _, weight in weighted))
