"""The law of repetition: read back from data that it made, bounded by the curve, and known where totals are."""

import dataclasses
import math

import numpy as np
import pytest

from synpro_engine.config import UserError
from synpro_engine.evaluate.effective_tokens import READINGS, UniqueCurve, effective_multiple
from synpro_engine.evaluate.repetition import DECAY, NAMES, R_STAR, once_read, readings_of, repetition_decay

_SIZES = (3.0e5, 6.0e5, 1.2e6, 2.4e6)
_TOTALS = (3.6e6, 6.0e6, 9.6e6, 1.2e7)
"""Read 12, 10, 8 and 5 times."""


def _loss(unique: float, total: float) -> float:
    again = total / unique - 1
    return 2.0 + 900.0 * (unique + unique * R_STAR * (1 - math.exp(-again / R_STAR))) ** -0.45


def _curve(noise: float = 0.0, seeds: int = 1, seed: int = 0) -> UniqueCurve:
    rng = np.random.default_rng(seed)
    losses = [_loss(*pair) + noise * rng.standard_normal(seeds) for pair in zip(_SIZES, _TOTALS, strict=True)]
    return UniqueCurve(tokens=_SIZES, losses=tuple(map(tuple, losses)), totals=_TOTALS)


@pytest.mark.parametrize("total", [2.5e6, 3.6e6, 2.0e7])
@pytest.mark.parametrize("times", [1.02, 1.7, 4.0, 7.8])
def test_unique_tokens_are_read_back_at_whichever_total_an_arm_has(times: float, total: float) -> None:
    reading = repetition_decay(np.array(_TOTALS), total)
    found = effective_multiple(_curve(), [_loss(times * _SIZES[0], total)], reading, resamples=2)
    assert found.value == pytest.approx(times, rel=2e-2)


def test_a_power_law_in_unique_tokens_alone_takes_longer_reading_for_more_text() -> None:
    loss = [_loss(1.02 * _SIZES[0], 2.0e7)]
    curve = _curve()
    found = {name: effective_multiple(curve, loss, one, resamples=2).value for name, one in
             readings_of(curve, 2.0e7).items()}  # fmt: skip
    assert found[DECAY] == pytest.approx(1.02, abs=5e-3) and found["power law"] > 1.15 < found["isotonic"]


def test_text_that_is_read_once_is_worth_itself_and_without_end_a_little_more_than_sixteen_times() -> None:
    assert once_read(np.array([2.0, 8.0]), 2.0).tolist() == [2.0, 2.0], "what is not read counts for nothing"
    assert once_read(np.array([1.0]), 1e9)[0] == pytest.approx(1 + R_STAR)
    assert once_read(np.array([1.0]), 1.01)[0] == pytest.approx(1.01, abs=1e-5)


def test_nothing_is_said_beyond_the_curve_s_sizes_at_the_arm_s_own_total() -> None:
    curve, total = _curve(), 3.6e6
    reading = repetition_decay(np.array(_TOTALS), total)
    below, above = _loss(_SIZES[0], total) + 0.01, _loss(_SIZES[-1], total) - 0.01
    assert [effective_multiple(curve, [loss], reading, resamples=2).value for loss in (below, above)] == [0.0, math.inf]
    short = repetition_decay(np.array(_TOTALS), 1.0e6)
    assert effective_multiple(curve, [_loss(1.0e6, 1.0e6) - 0.01], short, resamples=2).value == math.inf


def test_the_interval_of_the_law_holds_the_truth_about_as_often_as_it_says() -> None:
    held, reading = 0, repetition_decay(np.array(_TOTALS), 3.6e6)
    for seed in range(100):
        losses = _loss(2 * _SIZES[0], 3.6e6) + 0.01 * np.random.default_rng([seed, 1]).standard_normal(3)
        found = effective_multiple(_curve(0.01, 3, seed), losses.tolist(), reading, resamples=100, seed=seed)
        held += found.low <= 2.0 <= found.high
    assert held >= 90


def test_the_law_stands_beside_the_others_where_all_totals_are_known() -> None:
    curve = _curve()
    assert tuple(readings_of(curve, 1e6)) == NAMES and readings_of(curve, None) == READINGS
    assert readings_of(dataclasses.replace(curve, totals=None), 1e6) == READINGS
    for totals in (_TOTALS[1:], (0.0, *_TOTALS[1:])):
        with pytest.raises(UserError, match="tokens in all"):
            dataclasses.replace(curve, totals=totals)


def test_losses_that_do_not_fall_have_no_law() -> None:
    flat = UniqueCurve(tokens=_SIZES, losses=((3.0,), (3.1,), (3.2,), (3.3,)))
    assert math.isnan(effective_multiple(flat, [3.1], repetition_decay(np.array(_TOTALS), 1e6), resamples=2).value)
