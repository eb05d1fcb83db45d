"""What each `synpro` command does: read the recipe, join the job, call the cycle."""

from synpro_engine.cli.commands.asking import doctor, generation_status_of, keys, plan, plan_layouts, status
from synpro_engine.cli.commands.judges import judge_check
from synpro_engine.cli.commands.results import compare, export, report, trace
from synpro_engine.cli.commands.running import Look, join_generation, run_until
from synpro_engine.cli.commands.scoring import Weights, influence
from synpro_engine.cli.commands.several_models import average, ensemble

__all__ = [
    "Look",
    "Weights",
    "average",
    "compare",
    "doctor",
    "ensemble",
    "export",
    "generation_status_of",
    "influence",
    "join_generation",
    "judge_check",
    "keys",
    "plan",
    "plan_layouts",
    "report",
    "run_until",
    "status",
    "trace",
]
