"""The numbers at the top: a run that its budget ended is not said to have found a plateau."""

import dataclasses

from synpro_engine.report import ReportData, render_report
from synpro_engine.report.headline import facts


def test_the_loss_at_the_top_is_the_mean_of_an_arm_s_seeds_and_says_so(full_report: ReportData) -> None:
    first, *others = full_report.arms.held_out
    by_seed = [dataclasses.replace(others[0], seed=seed, nats=nats) for seed, nats in ((1, 98_304.0), (2, 196_608.0))]
    arms = dataclasses.replace(full_report.arms, held_out=(first, *by_seed))
    shown = {fact.label: fact for fact in facts(dataclasses.replace(full_report, arms=arms))}
    mean = shown[f"Held-out loss, {by_seed[0].name}"]
    assert mean.note == "3.0000 nats per token, mean of 2 seeds"
    bits = [row.bits_per_byte or 0.0 for row in by_seed]
    assert mean.value == f"{sum(bits) / 2:.4f} bits per byte"
    assert shown[f"Held-out loss, {first.name}"].note == f"{first.per_token:.4f} nats per token"


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
