"""How many completions of every generation became documents, and how many of these filters removed."""

from __future__ import annotations

from synpro_engine.config import UserError
from synpro_engine.cycle.run_layout import CORPUS, FILTERED, MIXTURE
from synpro_engine.cycle.steps.mixing import Mixture
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.report import OperationShare
from synpro_engine.synth import YIELD, FilterReport, OperationFiltering, OperationYield, read_yield


def yields(run: FinishedRun) -> dict[str, OperationYield]:
    """What generation accepted and refused, by operation and round."""
    by_label: dict[str, OperationYield] = {}
    for this in run.rounds:
        for operation in run.in_rounds[this.of_arm].generate.names:
            stage = this.generate(operation)
            if stage not in run.done:
                continue
            corpus = run.directory / stage / CORPUS
            counted = read_yield(corpus).by_operation.get(operation)
            if counted is None:
                raise UserError(f"{corpus / YIELD}: damaged (it does not tell of {operation})")
            by_label[run.label(operation, this)] = counted
    return by_label


def mixtures(run: FinishedRun) -> dict[str, OperationShare]:
    """How operations shared the slices by influence, by operation and round; nothing where they did not."""
    by_label: dict[str, OperationShare] = {}
    for this in run.rounds:
        generate = run.in_rounds[this.of_arm].generate
        for operation in generate.names if this.number > 1 and generate.mixture == "influence" else ():
            stage = this.generate(operation)
            if stage in run.done:
                mixture = run.record(stage, MIXTURE, Mixture)
                share = OperationShare(earned=mixture.earned[operation], share=mixture.share)
                by_label[run.label(operation, this)] = share
    return by_label


def filtered(run: FinishedRun) -> dict[str, OperationFiltering]:
    """What the filters kept and removed, by operation and round; nothing where no filter is on."""
    by_label: dict[str, OperationFiltering] = {}
    for this in run.rounds:
        stage = this.shards
        if stage in run.done and run.in_rounds[this.of_arm].filter.any:
            report = run.record(stage, FILTERED, FilterReport)
            by_label |= {run.label(name, this): one for name, one in report.by_operation.items()}
    return by_label
