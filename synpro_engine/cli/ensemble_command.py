"""`synpro ensemble` as the user types it: its help and its options.

What it does is in `commands/`, imported when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from synpro_engine.cli.options import on_disk

HELP = """\
Measure the loss of several models together, by the mean of their probabilities.

\b
  synpro ensemble runs/a/pretrain runs/b/pretrain runs/c/pretrain --output ensemble.json
      on what the first one's run held out: its validation split and its held-out tasks
  synpro ensemble runs/a/pretrain hf/model --text tasks.jsonl --text '{source: docs.jsonl, text_field: body}'
      on texts of one's own: prompts with responses, of which the prompts carry no loss, conversations, or text
  torchrun --nproc-per-node 4 -m synpro_engine ensemble runs/a/pretrain runs/b/pretrain parallel.tp=2
      several processes of one machine; what tp and pp leave is shared out as data parallelism

One model is in memory at a time, and no logits are kept: of each token that is predicted one number is, the logarithm
of the sum of the probabilities that the models gave it. The table has each model's loss, and that of all up to it.
Multiple-choice questions of the run, or of a text with a `choices_field`, are answered by the same mean.
Models may differ in shape but must share tokenizer and vocabulary. Models and texts may lie in object stores.
"""


def ensemble(
    models: Annotated[
        list[str], typer.Argument(metavar="CKPT... [KEY=VALUE]...", help="Checkpoints, stages or model directories.")
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text", metavar="FILE", help="What to measure on; a file, or a mapping as a recipe's `held_out`."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="A JSON file of all that was found to write.", callback=on_disk)
    ] = None,
    weights: Annotated[
        Literal["raw", "ema", "average"] | None,
        typer.Option("--weights", help="Which of checkpoints that kept averages.", show_default="what each hands on"),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer", help="Of checkpoints that none is recorded with: file or directory.", callback=on_disk
        ),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option("--dtype", help="Of the weights; auto: as they were saved."),
    ] = "auto",
    micro_batch: Annotated[int, typer.Option("--micro-batch", min=1, help="Rows that run at once.")] = 8,
) -> None:
    """Gather what was given; the help is above."""
    from synpro_engine.cli import commands
    from synpro_engine.cycle.scoring.ensemble import Asked

    asked = Asked(texts={}, weights=weights, dtype=dtype, micro_batch=micro_batch)
    commands.ensemble(models, asked, text or (), tokenizer, output)
