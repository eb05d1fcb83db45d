"""`synpro trace` as the user types it: its help and its options.

What it does is in `commands/`, imported when it runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from synpro_engine.cli.options import Directory, Recipe

HELP = """\
Walk from a token that was trained on, or from a document's id, back to the characters of the source.

\b
  synpro trace quickstart --step 120 --row 3 --token 17
      the token that step 120 of pretraining read there: its document, its place in it, the text around
  synpro trace quickstart --arm round-1/continue --step 900 --row 0 --token 5
      the same of an arm; of a synthetic token also the record of its text (operation, prompt, generator, sampling,
      seed, rewards) and the characters of the organic document that it was made from
  synpro trace quickstart 'sotu/1995-Clinton-1#25'
      an organic document: its split, what was made from it in each round (refused, removed by a filter, or kept with
      its tokens and how many of them were trained on), the steps and rows that read it
  synpro trace quickstart 'sotu/1995-Clinton-1#25:482-776:rephrase:0'
      a synthetic one: its record, its source's characters, what became of it, the steps and rows that read it
  synpro trace arms-smoke 'sotu/1995-Clinton-1#25:482-776:rephrase:0' --arm placebo
      the text that this arm has under an id that other arms have too; without --arm the first one's, and who else

\b
Steps count from 1, as in metrics.jsonl, and an arm's go on behind pretraining's. Rows of the global batch and tokens of
a row count from 0; token T is what the model is given there, and it is asked for the one behind it. Nothing is trained
and no model is loaded: the order of the data is a function of the seed and the position.
"""


def trace(
    recipe: Recipe,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]... [DOC_ID]", help="The overrides that the run was made with, and an id."),
    ] = None,
    directory: Directory = None,
    id: Annotated[str | None, typer.Option("--id", metavar="DOC_ID", help="An id that has a = in it.")] = None,
    step: Annotated[int | None, typer.Option("--step", metavar="N", help="Of the stage's metrics.")] = None,
    row: Annotated[int | None, typer.Option("--row", metavar="R", help="Of the step's global batch, from 0.")] = None,
    token: Annotated[int | None, typer.Option("--token", metavar="T", help="Of the row, from 0.")] = None,
    arm: Annotated[
        str | None,
        typer.Option("--arm", metavar="ARM", show_default="pretrain",
                     help="Whose step: pretrain, repeat, round-1/continue, ...; with DOC_ID, which arm's texts."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as one JSON object.")] = False,
) -> None:  # fmt: skip
    """Gather what was given; the help is above."""
    from synpro_engine.cli import commands
    from synpro_engine.config import UserError

    given = arguments or []
    ids = [argument for argument in given if "=" not in argument] + ([] if id is None else [id])
    at = {"--step": step, "--row": row, "--token": token}
    missing = [option for option, value in at.items() if value is None]
    if len(ids) > 1 or (ids and len(missing) < len(at)) or not (ids or len(missing) < len(at)):
        raise UserError("trace: give one DOC_ID, or --step, --row and --token")
    if not ids and missing:
        raise UserError(f"trace: give {' and '.join(missing)} too; a token is named by --step, --row and --token")
    wanted = ids[0] if ids else (arm or "pretrain", step or 0, row or 0, token or 0)
    overrides = [argument for argument in given if "=" in argument]
    commands.trace(recipe, overrides, directory, wanted, arm=arm if ids else None, as_json=as_json)
