"""Curves of a tuning, from its records to the page: nothing is drawn that was not measured, and no step is lost."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.config import new_artifact
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.cycle.summaries.tuning import tuning
from synpro_engine.report import ReportData, RewardCurves, render_report

STAGE = "round-1/tune-rephrase"


def curves_of(directory: Path, records: list[dict[str, Any]], *overrides: str) -> RewardCurves:
    """What the report is handed of a run that logged these records of its steps."""
    with new_artifact(directory / STAGE, STAGE, {}, {}) as inside:
        lines = ({"kind": "tune", "step": n, "length": 5.0} | record for n, record in enumerate(records, 1))
        (inside / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (curves,) = tuning(FinishedRun(directory, load_recipe("smoke", overrides), [STAGE]))
    return curves


def test_rewards_are_drawn_of_steps_in_which_the_policy_had_no_update(tmp_path: Path) -> None:
    records = [{"reward": 1.0, "kl": None}, {"reward": None, "kl": 0.0, "length": None}, {"reward": 3.0, "kl": 0.5}]
    curves = curves_of(tmp_path, records)
    assert (curves.steps, curves.total) == ((1, 3), (1.0, 3.0))
    assert math.isnan(curves.kl[0]) and curves.kl[1] == 0.5
    assert "KL to the untuned generator" in render_report(ReportData(title="Warm-up", tuning=(curves,)))


@pytest.mark.parametrize("logged", [None, 0.0])  # as it is, and as it was before it was null
def test_no_divergence_is_drawn_where_there_was_no_reference(tmp_path: Path, logged: float | None) -> None:
    curves = curves_of(tmp_path, [{"reward": 1.0, "kl": logged}] * 2, "tune.rephrase.algorithm=dapo")
    page = render_report(ReportData(title="Without", tuning=(curves,)))
    assert curves.kl == () and curves.total == (1.0, 1.0)
    assert '<p class="title">KL to the untuned generator' not in page and "no reference policy is held" in page


def test_the_page_says_which_estimate_is_drawn_and_what_it_does_not_see(tmp_path: Path) -> None:
    records = [{"reward": 1.0, "kl": 0.1}] * 2
    cut = curves_of(tmp_path / "cut", records, "tune.rephrase.sampling.top_p=0.9")
    whole = curves_of(tmp_path / "whole", records, "tune.rephrase.sampling.top_p=1", "tune.rephrase.kl=k2")
    pages = [render_report(ReportData(title="KL", tuning=(curves,))) for curves in (cut, whole)]
    assert ["estimate k3" in page for page in pages] == ["outside of these" in page for page in pages] == [True, False]
    assert "estimate k2" in pages[1]
