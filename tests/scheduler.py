"""Slurm and its nodes, as stand-ins on this machine: two launchers at once, and a job that is begun again."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_STAND_INS = {
    "python": 'exec {python} "$@"',
    "synpro": 'exec {python} -m synpro_engine "$@"',
    "scontrol": 'case "$1" in show) echo 127.0.0.1; echo 127.0.0.1;; requeue) touch requeued;; esac',
    # A job that asks for it is begun again, and told how often that was.
    "sbatch": """export SLURM_RESTART_COUNT=0
while rm -f requeued; do
    bash "$@" >> "${{SBATCH_OUTPUT:-/dev/stdout}}" 2>&1; code=$?
    [ -e requeued ] || exit $code
    SLURM_RESTART_COUNT=$((SLURM_RESTART_COUNT + 1))
done""",
    # A task on each node; the worst code is the step's. Without the option a task has one CPU, whatever the job has.
    "srun": """while [[ $1 == --* ]]; do [[ $1 == "--cpus-per-task=$SLURM_CPUS_PER_TASK" ]] && given=1; shift; done
[ "${{given-}}" ] || {{ echo "srun: one CPU for each task"; exit 1; }}
for ((node = 0; node < SLURM_NNODES; node++)); do "$@" & pids+=($!); done
echo "${{pids[@]}}" > launchers
code=0
for pid in "${{pids[@]}}"; do wait "$pid"; ended=$?; ((ended > code)) && code=$ended; done
exit $code""",
}
"""Programs that this machine lacks, or has by another name."""


def two_nodes(folder: Path) -> dict[str, str]:
    """The environment of a login node whose programs are written to `folder/bin`. They run where they are started."""
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in _STAND_INS.items():
        path = folder / "bin" / name
        path.write_text("#!/bin/bash\n" + text.format(python=sys.executable) + "\n")
        path.chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    slurm |= {"SLURM_CPUS_PER_TASK": "2"}
    paths = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    return os.environ | slurm | paths | {"OMP_NUM_THREADS": "1"}
