"""`synpro influence` as the user types it: its help and its options.

What it does is in `commands/`, imported when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synpro_engine.cli.options import Directory, Overrides, anywhere, on_disk

HELP = """\
Score any documents by their influence: how much training on one would help the model with its reference text.

\b
The influence of a text is by how much its mean loss, in nats per token, falls when the model theta moves as reference
text wants it to: along the step that lowers the loss on the reference by one nat per token, to first order; or all
the way to a probe theta' that took steps on the reference. Positive: training on the text pulls the model the way the
reference does.

\b
  synpro influence quickstart --input docs.jsonl --output scores.jsonl
      theta and the newest direction or probe of a run (of --dir, or runs/quickstart)
  synpro influence quickstart --reference tasks.jsonl --input docs.jsonl --output scores.jsonl
      the same theta, and what helps it with these tasks: along the optimizer's next step on them (with --checkpoint A,
      which has no text to read next, along their gradient); directions are kept beside the scores
  synpro influence --checkpoint A --probe B --input docs.jsonl --output scores.jsonl
      any two checkpoints or stages, such as runs/mine/pretrain and runs/mine/round-1/probe;
      B may also be a stored direction; either may lie in an object store, as s3://bucket/runs/mine/pretrain
  synpro influence --checkpoint A --probe B --input docs.jsonl --explain doc-17
      one document, token by token: in colours on a terminal, as numbers in a pipe
  torchrun --nproc-per-node 4 -m synpro_engine influence --checkpoint A --probe B parallel.tp=2 --input ...
      several processes; what tp and pp leave is shared out as data parallelism

\b
Each line of the output is {"id", "value", "tokens", "windows", "loss", "estimator", "theta", "probe"} and the
estimator's settings, in the order of the input; theta and probe are content hashes, and loss is the mean one, in nats
per token, where the estimate is taken (--at). A text longer than the model's context is cut into so many windows, each
without what stands before it; influence and loss are means over all of its tokens. Of several references, `references`
has the value along each. Called again after an interruption it goes on behind the last whole line.
A document has a text, in the field `text` or that of --text-field, and an id
that is unique in the input, in the field `id` or that of --id-field; one without `id` is called by its file and line,
as `b.jsonl:17`. What is no document ends the command, which names file and line, or is named and left out with
--skip-bad.
"""


def influence(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="A recipe's name or YAML file; or --checkpoint and --probe."),
    ] = None,
    overrides: Overrides = None,
    documents: Annotated[
        str,
        typer.Option(
            "--input",
            help="Documents: .jsonl, .json.gz, .jsonl.zst, .parquet, .arrow, a directory, read with its folders, or a "
            "pattern; here or in an object store.",
        ),
    ] = "",
    output: Annotated[
        Path | None, typer.Option("--output", help="Where the scores go, as JSON lines.", callback=on_disk)
    ] = None,
    directory: Directory = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint", metavar="A", help="theta: a checkpoint, or a stage that has one.", callback=anywhere
        ),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option("--probe", metavar="B", help="theta' likewise, or a direction theta - theta'.", callback=anywhere),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            "--reference",
            metavar="FILE",
            help="What helps, in place of a probe: prompts with responses, chats or text; or a mapping as a "
            "recipe's `references` have, as {source: FILE, prompt_field: inputs}. May be given several times.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer", help="Where the run of A does not record one: its file or directory.", callback=on_disk
        ),
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(
            "--estimator",
            help="dot: first order, by a forward and a backward pass. two_forward: a forward pass each of theta and "
            "theta'. jvp, finite_difference: slow, to check the others.",
            show_default="dot along a gradient, two_forward to a probe theta'",
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", help="First order is taken at theta, or at the midpoint of the two.", metavar="PLACE"),
    ] = None,
    clip: Annotated[
        float | None,
        typer.Option(
            "--clip",
            help="dot: scale a text as clipping its gradient (of its mean loss, over all its windows) to this norm "
            "would; texts run one by one. 0: do not.",
            show_default="1 along a gradient, else 0",
        ),
    ] = None,
    micro_batch: Annotated[int | None, typer.Option("--micro-batch", help="Rows that run at once.")] = None,
    packed: Annotated[
        bool | None, typer.Option("--packed/--one-a-row", help="Several short texts in a row: faster.")
    ] = None,
    shares: Annotated[bool, typer.Option("--shares", help="Also write each token's share of the value.")] = False,
    text_field: Annotated[
        str | None,
        typer.Option("--text-field", help="Where the text is, as text or data.body.", show_default="corpus.text_field"),
    ] = None,
    id_field: Annotated[
        str | None,
        typer.Option("--id-field", help="Where the id is, as metadata.id.", show_default="corpus.id_field"),
    ] = None,
    skip_bad: Annotated[
        bool | None,
        typer.Option(
            "--skip-bad/--stop-at-bad", help="Name bad documents, count them, and go on.", show_default="corpus.on_bad"
        ),
    ] = None,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="ID", help="Print this document's shares, and score no other.")
    ] = None,
) -> None:
    """Gather what was given; the help is above."""
    from synpro_engine.cli import commands

    settings = {"estimator": estimator, "at": at, "clip": clip, "micro_batch": micro_batch, "packed": packed}
    on_bad = None if skip_bad is None else "skip" if skip_bad else "stop"
    reading = {"text_field": text_field, "id_field": id_field, "on_bad": on_bad}
    commands.influence(
        commands.Weights(
            arguments=tuple(argument for argument in (recipe, *(overrides or ())) if argument is not None),
            directory=directory,
            checkpoint=checkpoint,
            probe=probe,
            tokenizer=tokenizer,
            references=tuple(reference or ()),
        ),
        {name: value for name, value in settings.items() if value is not None},
        documents,
        output,
        explain,
        reading={name: value for name, value in reading.items() if value is not None},
        shares=shares,
    )
