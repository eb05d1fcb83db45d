"""The detector: noise, spikes and bends do not end a run, a loss that no longer falls does, and soon."""

import math
import re
from typing import Any

import numpy as np
import pytest

from benchmarks import plateau_table
from synpro_engine.train.config import PlateauConfig
from synpro_engine.train.plateau import PlateauDecision, PlateauDetector
from synpro_engine.train.trend import measure_fall, settled

WINDOWS = PlateauConfig(rule="windows", window=2, min_improvement=0.01, patience=2)


def run(losses: Any, config: PlateauConfig | None = None, tokens_per_step: int = 0) -> list[PlateauDecision]:
    """Decisions for losses measured every 10 steps, up to the first stop."""
    detector, decisions = PlateauDetector(config or PlateauConfig()), []
    for index, loss in enumerate(losses, start=1):
        decisions.append(detector.update(10 * index, float(loss), tokens_per_step * index))
        if decisions[-1].stop:
            break
    return decisions


@pytest.mark.parametrize("factor", [1.2, 2.0, 1e6, math.nan, math.inf])
def test_one_evaluation_that_stands_out_never_ends_a_falling_run(factor: float) -> None:
    for place in range(60):
        losses = 4.0 * 0.98 ** np.arange(60)
        losses[place] *= factor
        assert not any(decision.stop for decision in run(losses)), place


def test_a_jump_that_stays_does_not_end_a_run_that_goes_on_falling() -> None:
    for place in range(1, 60):
        losses = 4.0 * 0.98 ** np.arange(60) * np.where(np.arange(60) < place, 1.0, 1.5)
        assert not any(decision.stop for decision in run(losses)), place


def test_a_short_version_of_the_documented_table_holds() -> None:
    """40 runs of 400, so the bounds leave room for chance."""
    for case in plateau_table.cases():
        if "noise 2.0%" in case.name or "lasts" in case.name or ("then flat" in case.name and "1.0%" in case.name):
            continue  # told in the table, promised nowhere
        runs = 40 if "noise 0.0%" not in case.name else 3
        ends = plateau_table.measure(case, PlateauConfig(), runs)
        assert plateau_table.false_stops(case, ends) <= 0.12 * runs, case.name
        if case.begins is not None:
            assert len(plateau_table.found_in(case, ends)) >= 0.9 * runs, case.name


def test_the_noise_decides_how_many_evaluations_a_decision_takes() -> None:
    rng = np.random.default_rng(0)
    taken = []
    for noise in (0.0, 0.002, 0.01):
        ends = [len(run(3.0 * (1 + noise * rng.standard_normal(40)))) for _ in range(20)]
        taken.append(float(np.median(ends)))
    assert taken[0] == 4 and taken[0] < taken[1] < taken[2] <= 12


def test_the_reason_names_slope_interval_and_noise() -> None:
    last = run(3.0 * (1 + 0.004 * np.random.default_rng(2).standard_normal(40)))[-1]
    number = r"-?\d+\.\d{3}%"
    found = re.fullmatch(
        rf"plateau at step (\d+): over the last (\d+) evaluations the reference loss falls by {number} per 3"
        rf" \(interval {number} to ({number}), noise {number}; needed 1\.000%\), once",
        last.reason,
    )
    assert found and int(found[2]) == last.evaluations <= int(found[1]) // 10
    assert float(found[3].rstrip("%")) < 1.0, "the interval leaves out what is wanted"


def test_what_is_wanted_is_per_window_of_evaluations() -> None:
    losses = 4.0 * 0.99 ** np.arange(40)
    for window in (1, 2, 5):
        fall = 1.005 * window * -math.log(0.99)
        config = PlateauConfig(window=window, min_improvement=fall)
        assert run(losses, config)[-1].kind == "plateau"
        assert run(losses, PlateauConfig(window=window, min_improvement=fall / 1.01))[-1].kind is None


def test_a_slope_and_its_noise_are_measured_right_between_gaps() -> None:
    rng = np.random.default_rng(3)
    losses = 4.0 * np.exp(-0.01 * np.arange(40) + 0.002 * rng.standard_normal(40))
    losses[[5, 20, 21, 33]] = math.nan
    fall = measure_fall(losses.tolist(), 0.003)
    assert fall is not None and fall.evaluations == 36
    assert fall.low < 0.01 < fall.high and fall.value == pytest.approx(0.01, rel=0.02)
    assert fall.noise == pytest.approx(0.002, rel=0.3)


def test_only_a_spike_is_set_aside_and_a_lasting_jump_begins_anew() -> None:
    steady = (3.0 * 0.99 ** np.arange(12)).tolist()
    spiked = [*steady[:5], 5.0, steady[6], math.nan, *steady[8:]]
    assert settled(spiked, 0.003)[0].tolist() == [0, 1, 2, 3, 4, 6, 8, 9, 10, 11]
    jumped = [*steady[:7], *(1.5 * loss for loss in steady[7:])]
    assert settled(jumped, 0.003)[0].tolist() == [7, 8, 9, 10, 11]
    assert settled([*steady, 5.0], 0.003)[0].tolist() == list(range(12)), "the newest waits for the next"


def test_an_evaluation_that_says_nothing_is_no_second_miss() -> None:
    config = PlateauConfig(patience=2)
    decisions = run([3.0, 3.0, 3.0, 3.0, math.nan, math.nan, 3.0], config)
    assert [d.kind for d in decisions] == [None] * 6 + ["plateau"]
    assert "2 times in a row" in decisions[-1].reason


def test_a_curve_that_flattens_stops_soon_after_the_bend() -> None:
    losses = [4.0 * 0.9**n for n in range(10)] + [4.0 * 0.9**9] * 20
    assert 10 < len(run(losses)) <= 16 and run(losses)[-1].kind == "plateau"
    assert run([3.0 + 0.02 * n for n in range(20)])[-1].kind == "plateau", "a rising loss is one too"


def test_the_budget_ends_a_run_that_still_improves() -> None:
    falling = [4.0 * 0.9**n for n in range(50)]
    for rule in ("slope", "windows"):
        steps = run(falling, PlateauConfig(rule=rule, window=2, max_steps=70))
        assert len(steps) == 7 and steps[-1].kind == "budget" and "budget: 70 steps" in steps[-1].reason
        tokens = run(falling, PlateauConfig(rule=rule, window=2, max_tokens=500), tokens_per_step=100)
        assert len(tokens) == 5 and tokens[-1].kind == "budget" and "500 tokens" in tokens[-1].reason


def test_an_interrupted_detector_goes_on_deciding_the_same() -> None:
    rng = np.random.default_rng(1)
    losses = [*(4.0 * 0.9 ** np.arange(6)), math.nan, *(2.3 * (1 + 0.003 * rng.standard_normal(20)))]
    for config in (PlateauConfig(patience=2), WINDOWS):
        whole = run(losses, config)
        assert whole[-1].kind == "plateau"
        for cut in range(1, len(whole)):
            first, second = PlateauDetector(config), PlateauDetector(config)
            for index, loss in enumerate(losses[:cut], start=1):
                first.update(10 * index, float(loss))
            second.load_state_dict(first.state_dict())
            rest = [second.update(10 * (cut + n + 1), float(x)) for n, x in enumerate(losses[cut : len(whole)])]
            assert rest == whole[cut:]


def test_the_windows_rule_compares_means_and_forgives_one_miss() -> None:
    flat = run([3.0] * 20, WINDOWS)
    assert len(flat) == 2 * WINDOWS.window + WINDOWS.patience - 1
    assert "plateau at step 50" in flat[-1].reason and "2 times" in flat[-1].reason
    forgiven = run([4.0, 4.0, 4.0, 4.0, 3.0, 3.0, 2.0, 2.0, 1.5], WINDOWS)
    assert "miss 1 of 2" in forgiven[3].reason and not any(decision.stop for decision in forgiven)
    assert not any(d.stop for d in run([3.0, 2.0, *[math.nan] * 6], WINDOWS)), "no number is no plateau"
