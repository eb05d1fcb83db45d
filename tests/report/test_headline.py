"""The numbers at the top: a run that its budget ended is not said to have found a plateau."""

import dataclasses

from synpro_engine.report import ReportData, render_report
from synpro_engine.report.headline import facts


def test_a_plateau_is_claimed_only_where_the_detector_found_one(full_report: ReportData) -> None:
    pretraining = full_report.pretraining
    shown = {fact.label: (fact.value, fact.note) for fact in facts(full_report)}
    assert shown["Plateau"] == ("step 300", "found by the detector")
    plateau = dataclasses.replace(pretraining.plateau, stopped=False)
    ended = dataclasses.replace(full_report, pretraining=dataclasses.replace(pretraining, plateau=plateau))
    shown = {fact.label: (fact.value, fact.note) for fact in facts(ended)}
    assert shown["Plateau"] == ("not reached", "the budget ended first, at step 300")
    assert shown["Organic text"][1] == "read 8.2 times before the budget ended"
    page = render_report(ended)
    assert "found by the detector" not in page and "plateau is noticed" not in page
