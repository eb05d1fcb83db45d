"""The stage `tokenize` beside `encode_batch_fast` of the tokenizers library on the same threads, and its peak memory.

`python -m benchmarks.tokenizing` makes corpora in a temporary folder (`--folder`), runs the whole stage (reading,
splits, duplicates, tokens, files, hashes, overlap) and the bare encoding of the same texts in turns, then the stage in
processes of their own on corpora of two sizes in two forms. Exit status 1 where what was asked is not reached.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.common.command import command_line
from benchmarks.common.environment import QUIET, ForeignLoad, environment
from benchmarks.common.harness import cpu_clock, interleave, summarise
from benchmarks.common.processes import run_fresh
from benchmarks.common.records import Ask, asked_and_reached, write_lines
from benchmarks.common.tables import aligned
from benchmarks.tokenizing.corpus import FORMS, documents, tokenizer_in, write_corpus
from benchmarks.tokenizing.stage import tokenize
from synpro_engine.data.encoding import batched, usable_cpus

SHARE = 0.9
"""Of the library's own throughput, to be reached by the pass over the text, and by the whole stage."""
GROWTH = 1.1
"""Of peak memory, at most, where the corpus is four times as large."""
Record = Mapping[str, object]


def speed(folder: Path, threads: int, text_bytes: int, rounds: int) -> Record:
    """The stage and the bare encoding in turns: seconds, MB/s of text, and the ratio of each turn."""
    tokenizer = tokenizer_in(folder / "tokenizer")
    source = write_corpus(folder, "jsonl.zst", text_bytes)
    texts = [document.text for document in documents(text_bytes)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    # The library's own object, for it is what the stage is held to.
    library = tokenizer._tokenizer  # pyright: ignore[reportAttributeAccessIssue]

    def bare(turn: int) -> None:
        # As many threads as RAYON_NUM_THREADS says, which the library reads at its first use.
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        # In batches of the stage's own size, which must not be what makes the difference.
        for batch in batched(texts, len):
            library.encode_batch_fast(batch, add_special_tokens=False)

    phases: list[Mapping[str, float]] = []

    def stage(turn: int) -> None:
        phases.append(tokenize(source, folder / "tokenizer", folder / "made", threads))

    steps = {"encode_batch_fast": bare, "stage": stage}
    load = ForeignLoad()
    samples = interleave(steps, cpu_clock, rounds=rounds, warmups=1, progress=_say)
    pairs = list(zip(samples["encode_batch_fast"], samples["stage"], strict=True))
    passes = [phase["reading"] for phase in phases[-rounds:]]
    timings = {name: summarise(its) for name, its in samples.items()}
    return {
        "bench": "tokenizing",
        "part": "speed",
        "threads": threads,
        "text_mb": megabytes,
        "timings": {name: vars(timing) for name, timing in timings.items()},
        "mb_per_s": {name: megabytes / timing.median for name, timing in timings.items()},
        "ratio": statistics.median(bare.seconds / stage.seconds for bare, stage in pairs),
        "cpu_ratio": statistics.median(bare.cpu_seconds / stage.cpu_seconds for bare, stage in pairs),
        # Without what comes before and behind: the tokenizer's file, the index, the search for overlap.
        "pass_mb_per_s": megabytes / statistics.median(passes),
        "pass_ratio": statistics.median(bare.seconds / one for (bare, _), one in zip(pairs, passes, strict=True)),
        "foreign_cpu_share": load.share(),
    }


def memory(folder: Path, form: str, text_bytes: int, threads: int) -> Record:
    """Peak resident memory of a process that does nothing but the stage."""
    if not (folder / "tokenizer").exists():
        tokenizer_in(folder / "tokenizer")
    _say(f"memory: {text_bytes / 1e9:g} GB of {form}")
    source = write_corpus(folder, form, text_bytes)
    arguments = (str(source), str(folder / "tokenizer"), str(folder / "made"), str(threads))
    figures = run_fresh("benchmarks.tokenizing.stage", arguments)
    for path in source.iterdir():
        path.unlink()
    source.rmdir()
    part = {"bench": "tokenizing", "part": "memory", "threads": threads, "form": form, "text_mb": text_bytes / 1e6}
    return {**part, **figures}


def measure(given: Namespace, folder: Path) -> Iterator[Record]:
    """The records, part by part."""
    (folder / "tokenizer").mkdir()
    tokenizer_in(folder / "tokenizer")
    if "speed" in given.parts:
        yield speed(folder, given.threads, int(given.megabytes * 1e6), given.rounds)
    if "memory" in given.parts:
        for form in FORMS:
            for size in given.sizes.split(","):
                yield memory(folder, form, int(float(size) * 1e6), given.threads)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(records: Sequence[Record]) -> str:
    """What was measured, for people."""
    lines = [("what", "text MB", "threads", "MB/s", "of encode_batch_fast", "of its CPU time", "peak MB")]
    for record in records:
        size, threads = f"{record['text_mb']:.0f}", str(record["threads"])
        if record["part"] == "speed":
            rates: Mapping[str, float] = record["mb_per_s"]  # pyright: ignore[reportAssignmentType]
            lines.append(("encode_batch_fast", size, threads, f"{rates['encode_batch_fast']:.2f}", "", "", ""))
            ratios = (f"{record['ratio']:.2f}", f"{record['cpu_ratio']:.2f}")
            lines.append(("stage", size, threads, f"{rates['stage']:.2f}", *ratios, ""))
            ratio = f"{record['pass_ratio']:.2f}"
            lines.append(("its pass over the text", size, threads, f"{record['pass_mb_per_s']:.2f}", ratio, "", ""))
        else:
            rate = float(str(record["text_mb"])) / float(str(record["seconds"]))
            peak = float(str(record["peak_bytes"])) / 1e6
            lines.append((f"stage, {record['form']}", size, threads, f"{rate:.2f}", "", "", f"{peak:.0f}"))
    return "\n".join(aligned(lines, right=range(1, len(lines[0]))))


def asks(records: Sequence[Record]) -> list[Ask]:
    """What is asked of the stage. The speed where a CPU is left for the thread that reads."""
    found = []
    for record in records:
        if record["part"] == "speed" and int(str(record["threads"])) < usable_cpus():
            text = f"throughput of encode_batch_fast on {record['threads']} thread(s)"
            for what, figure in (("the pass", "pass_ratio"), ("the stage", "ratio")):
                found.append(Ask(text=f"{what}: {text}", figure=float(str(record[figure])), limit=SHARE, at_least=True))
    for form in FORMS:
        peaks = {float(str(r["text_mb"])): float(str(r["peak_bytes"])) for r in records if r.get("form") == form}
        if len(peaks) > 1:
            figure = peaks[max(peaks)] / peaks[min(peaks)]
            found.append(Ask(text=f"growth of peak memory, {form}", figure=figure, limit=GROWTH, at_least=False))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = command_line("tokenizing", __doc__, "--output")
    parser.add_argument("--folder", type=Path, help="where corpora are made, and deleted again")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="that encode")
    parser.add_argument("--parts", default="speed,memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=96, help="of text, for the speed")
    parser.add_argument("--sizes", default="300,1200", help="megabytes of text, for the memory")
    given = parser.parse_args(arguments)
    os.environ["RAYON_NUM_THREADS"] = str(given.threads)
    records: list[Record] = []
    where = environment(torch.device("cpu"))
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        for record in measure(given, Path(name)):
            records.append({**record, "environment": where})
            # At once: a gigabyte takes minutes, and a run that is stopped keeps what it has.
            if given.output:
                write_lines(given.output, records[-1:])
    print(table(records))
    for record in records:
        if float(str(record.get("foreign_cpu_share", 0))) > QUIET:
            print(f"Other processes used {record['foreign_cpu_share']:.0%} of the machine: times are not to be quoted.")
    asked = asks(records)
    print(asked_and_reached(asked))
    return int(not all(ask.reached for ask in asked))


if __name__ == "__main__":
    sys.exit(main())
