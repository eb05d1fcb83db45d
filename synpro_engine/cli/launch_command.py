"""`synpro launch` as the user types it: its help and its arguments.

What it does is in `dist.launcher`, imported when it runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

HELP = """\
Run a command on several processes: torchrun, with one line for what failed, and exit codes that pass through.

\b
  synpro launch --nproc-per-node 8 run my.yaml parallel.tp=2
  synpro launch --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --rdzv-id JOB run my.yaml

The options before the command are torchrun's (`torchrun --help`). SIGTERM, SIGUSR1 and Ctrl-C are passed on to the
ranks of this machine, which finish their step, save, and end with exit code 75; torchrun would give them 30 seconds and
end with 1. After a fault the last line says which rank failed, where and why.
"""


def launch(
    arguments: Annotated[list[str], typer.Argument(metavar="[TORCHRUN OPTIONS] COMMAND ...")],
) -> None:
    """Hand the arguments over; the help is above."""
    from synpro_engine.dist.launcher import launch_ranks

    raise typer.Exit(launch_ranks(arguments))
