"""`synpro average` as the user types it: its help and its options.

What it does is in `commands/`, imported when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from synpro_engine.cli.options import anywhere, on_disk

HELP = """\
Average the weights of finished models of one shape into a model.

\b
  synpro average runs/mine/pretrain/checkpoints/step-00000800 runs/mine/pretrain/checkpoints/step-00001000 --output mean
      checkpoints or stages: the mean is a checkpoint with its tokenizer, which `synpro ensemble`, `synpro influence`
      and a further `synpro average` take; fp32 master weights are averaged where a checkpoint has them
  synpro average a b c --share 1 --share 1 --share 2 --output mean
      Hugging Face directories, unequally: the mean is one too, with config.json of the first

Tensors are read one after the other, so that memory is that of the largest, and sums are in fp64. Models of other
shapes, settings or tokenizers are refused, by the tensor or the setting that differs. Averages kept while training ran
(`pretrain.ema`, `pretrain.average`) need none of this: `synpro export --weights ema` takes one. Models may lie in
object stores, as s3://bucket/runs/one/pretrain/step-00001000: they are brought to this machine's disk first.
"""


def average(
    models: Annotated[
        list[str], typer.Argument(metavar="CKPT... [KEY=VALUE]...", help="Checkpoints, stages or model directories.")
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", metavar="DIR", help="Where the mean goes: a directory, or an address.", callback=anywhere
        ),
    ],
    share: Annotated[
        list[float] | None,
        typer.Option("--share", help="Of each model in their order, in any unit.", show_default="equal"),
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
) -> None:
    """Gather what was given; the help is above."""
    from synpro_engine.cli import commands

    commands.average(models, output, shares=share or (), weights=weights, tokenizer=tokenizer)
