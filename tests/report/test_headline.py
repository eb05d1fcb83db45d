"""The numbers at the top: a run that its budget ended is not said to have found a plateau."""

import dataclasses

from synpro_engine.report import ReportData, render_report
from synpro_engine.report.headline import facts


def test_a_plateau_is_claimed_only_where_the_detector_found_one(full_report: ReportData) -> None:
    assert full_report.plateau is not None
    found = {fact.label: fact for fact in facts(full_report)}
    assert (found["Plateau"].value, found["Plateau"].note) == ("step 300", "found by the detector")
    ended = dataclasses.replace(full_report, plateau=dataclasses.replace(full_report.plateau, stopped=False))
    found = {fact.label: fact for fact in facts(ended)}
    assert (found["Plateau"].value, found["Plateau"].note) == ("not reached", "the budget ended first, at step 300")
    assert found["Organic text"].note == "read 8.2 times before the budget ended"
    page = render_report(ended)
    assert "found by the detector" not in page and "plateau is noticed" not in page
