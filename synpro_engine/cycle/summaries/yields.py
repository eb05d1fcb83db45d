"""How many completions of every generation became documents."""

from __future__ import annotations

from synpro_engine.config import UserError
from synpro_engine.cycle.run_layout import CORPUS, Round
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.synth import YIELD, OperationYield, read_yield


def yields(run: FinishedRun) -> dict[str, OperationYield]:
    """What generation accepted and refused, by operation and round."""
    by_label: dict[str, OperationYield] = {}
    for number in run.rounds:
        for operation in run.recipe.generate.operations:
            stage = Round(number).generate(operation)
            if stage not in run.done:
                continue
            corpus = run.directory / stage / CORPUS
            counted = read_yield(corpus).by_operation.get(operation)
            if counted is None:
                raise UserError(f"{corpus / YIELD}: damaged (it does not tell of {operation})")
            by_label[run.label(operation, number)] = counted
    return by_label
