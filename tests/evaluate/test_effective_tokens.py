"""Effective tokens: read off a curve of unique text, with intervals that hold and nothing beyond the curve."""

import math

import numpy as np
import pytest

from synpro_engine.config import UserError
from synpro_engine.evaluate.effective_tokens import (
    READINGS,
    Reading,
    UniqueCurve,
    effective_multiple,
    fitted_power_law,
    isotonic,
    power_law,
)

_SIZES = (1.0e5, 2.0e5, 4.0e5, 8.0e5)


def _law(tokens: float) -> float:
    return 2.5 + 1.5 * (tokens / 1e5) ** -0.4


def _curve(noise: float = 0.0, seeds: int = 3, seed: int = 0) -> UniqueCurve:
    rng = np.random.default_rng(seed)
    losses = tuple(tuple(_law(size) + noise * rng.standard_normal(seeds)) for size in _SIZES)
    return UniqueCurve(tokens=_SIZES, losses=losses)


@pytest.mark.parametrize("times", [1.01, 1.3, 2.0, 3.1, 5.5, 7.9])
def test_a_power_law_is_read_back_exactly_enough(times: float) -> None:
    found = effective_multiple(_curve(), [_law(times * 1e5)], power_law, resamples=10)
    assert found.value == pytest.approx(times, rel=2e-3)


@pytest.mark.parametrize("times", [1.0, 2.0, 4.0, 8.0])
def test_at_the_sizes_that_were_measured_the_isotonic_reading_is_exact(times: float) -> None:
    found = effective_multiple(_curve(seeds=1), [_law(times * 1e5)], isotonic, resamples=10)
    assert (found.value, found.low, found.high) == pytest.approx((times, times, times))


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS.keys())
def test_nothing_is_said_beyond_the_curve(reading: Reading) -> None:
    curve = _curve()
    above, below = (effective_multiple(curve, [loss], reading, resamples=10) for loss in (4.2, 2.6))
    assert (above.value, below.value) == (0.0, math.inf)
    assert above.told(curve) == "< 1 (< 1 to < 1)" and below.told(curve) == "> 8 (> 8 to > 8)"


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS.keys())
@pytest.mark.parametrize("loss", [4.2, 3.5, 2.6])
def test_one_seed_each_is_told_as_such_beyond_the_curve_too(reading: Reading, loss: float) -> None:
    curve = _curve(seeds=1)
    found = effective_multiple(curve, [loss], reading, resamples=10)
    assert found.told(curve).endswith(" (one seed)") and not found.spread
    assert effective_multiple(curve, [loss, loss + 0.01], reading, resamples=10).spread


def test_losses_that_rise_with_the_text_are_pooled() -> None:
    tokens = np.array([1.0, 2.0, 4.0, 8.0])
    rising = np.array([4.0, 3.0, 3.4, 2.8])
    assert isotonic(tokens, rising, 3.2) == pytest.approx(2.0)
    assert isotonic(tokens, rising, 3.0) == pytest.approx(4.0 * 2.0**0.5)
    assert isotonic(tokens, rising, 2.8) == pytest.approx(8.0)


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS.keys())
@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_intervals_hold_the_truth_about_as_often_as_they_say_at_few_seeds_too(reading: Reading, seeds: int) -> None:
    # At a size that was measured, so that the straight lines between sizes are no fault of the interval.
    held = 0
    for seed in range(100):
        rng = np.random.default_rng([seed, 1])
        losses = (_law(2e5) + 0.02 * rng.standard_normal(seeds)).tolist()
        found = effective_multiple(_curve(0.02, seeds, seed), losses, reading, resamples=100, seed=seed)
        held += found.low <= 2.0 <= found.high
    assert held >= 90, "of 100; resampling the seeds themselves holds it in 68 of two and 81 of three"


def _worlds(seeds: int, seed: int) -> tuple[UniqueCurve, list[float]]:
    """A curve and losses worth twice its smallest text, of which those of one seed go together."""
    rng = np.random.default_rng(seed)
    shared, own = 0.1 * rng.standard_normal(seeds), 0.01 * rng.standard_normal((5, seeds))
    *losses, arm = [_law(size) + shared + more for size, more in zip((*_SIZES, 2e5), own, strict=True)]
    return UniqueCurve(tokens=_SIZES, losses=tuple(map(tuple, losses))), list(arm)


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS.keys())
def test_seeds_that_all_share_are_drawn_together_and_the_narrower_interval_still_holds_the_truth(
    reading: Reading,
) -> None:
    held, narrower = 0, 0
    for seed in range(100):
        curve, losses = _worlds(8, seed)
        paired, alone = (
            effective_multiple(curve, losses, reading, resamples=100, seed=seed, paired=flag) for flag in (True, False)
        )
        held += paired.low <= 2.0 <= paired.high
        narrower += paired.high - paired.low < 0.5 * (alone.high - alone.low)
    assert held >= 90 and narrower >= 90


def test_few_shared_seeds_are_drawn_apart_for_their_covariance_is_not_known() -> None:
    curve, losses = _worlds(3, 0)
    paired, alone = (effective_multiple(curve, losses, isotonic, resamples=50, paired=flag) for flag in (True, False))
    assert paired == alone


def test_seeds_that_are_said_to_be_shared_and_are_of_other_numbers_are_refused() -> None:
    curve, losses = _worlds(8, 0)
    with pytest.raises(UserError, match="as many losses"):
        effective_multiple(curve, losses[:-1], isotonic, paired=True)


def test_a_size_whose_seeds_differ_more_than_the_others_widens_the_interval_by_its_own_spread() -> None:
    curve = UniqueCurve(tokens=_SIZES, losses=tuple((_law(x), _law(x) + 1e-3, _law(x) - 1e-3) for x in _SIZES))
    near, far = (
        effective_multiple(curve, [_law(2e5) + s for s in (-e, 0.0, e)], isotonic, resamples=500) for e in (1e-3, 0.1)
    )
    assert near.high - near.low < 0.05 and far.high - far.low > 0.5


def test_draws_that_no_law_fits_leave_the_interval_without_bounds() -> None:
    noisy = UniqueCurve(tokens=_SIZES, losses=((3.0, 3.4), (3.0, 3.3), (2.9, 3.4), (2.9, 3.2)))
    found = effective_multiple(noisy, [3.1, 3.12], power_law, resamples=300)
    assert math.isfinite(found.value) and (found.low, found.high) == (0.0, math.inf)


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS.keys())
def test_the_smallest_text_is_worth_itself_wherever_losses_rise(reading: Reading) -> None:
    rising = UniqueCurve(tokens=(1.0, 2.0, 4.0), losses=((3.0, 3.01), (3.1, 3.09), (2.9, 2.91)))
    found = effective_multiple(rising, [3.0, 3.01], reading, resamples=50)
    assert (found.value, found.told(rising), rising.level) == (1.0, "1", 2)
    assert _curve().level == 1


def test_more_seeds_make_a_narrower_interval() -> None:
    widths = []
    for seeds in (3, 48):
        rng = np.random.default_rng(5)
        losses = (_law(2e5) + 0.05 * rng.standard_normal(seeds)).tolist()
        found = effective_multiple(_curve(0.05, seeds), losses, isotonic, resamples=300)
        widths.append(found.high - found.low)
    assert widths[1] < 0.5 * widths[0]


def test_losses_that_do_not_fall_have_no_power_law() -> None:
    flat = UniqueCurve(tokens=_SIZES, losses=((3.0,), (3.1,), (3.2,), (3.3,)))
    found = effective_multiple(flat, [3.1], power_law, resamples=10)
    assert math.isnan(found.value) and (found.low, found.high) == (0.0, math.inf)


@pytest.mark.parametrize(
    ("tokens", "losses", "message"),
    [
        ((1.0,), ((3.0,),), "at least two sizes"),
        ((1.0, 2.0), ((3.0,), ()), "at least two sizes"),
        ((2.0, 1.0), ((3.0,), (2.0,)), "must be above 0 and grow"),
        ((1.0, 2.0), ((3.0,), (math.nan,)), "not finite"),
    ],
)
def test_a_curve_that_is_none_is_refused(
    tokens: tuple[float, ...], losses: tuple[tuple[float, ...], ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        UniqueCurve(tokens=tokens, losses=losses)


def test_losses_that_are_none_are_refused() -> None:
    for losses in ([], [math.inf]):
        with pytest.raises(UserError, match="must be there, and finite"):
            effective_multiple(_curve(), losses, isotonic)
    two = UniqueCurve(tokens=(1.0, 2.0), losses=((3.0,), (2.0,)))
    with pytest.raises(UserError, match="at least three sizes"):
        effective_multiple(two, [2.5], power_law)


def test_the_fitted_law_is_what_the_power_law_reads_by() -> None:
    curve = _curve()
    law = fitted_power_law(np.array(curve.tokens), curve.means)
    assert law is not None
    for times in (1.5, 3.0, 7.0):
        assert power_law(np.array(curve.tokens), curve.means, law.at(times)) == pytest.approx(times * curve.tokens[0])


def test_no_multiple_is_told_where_losses_do_not_fall() -> None:
    flat = UniqueCurve(tokens=_SIZES, losses=((3.0,), (3.1,), (3.2,), (3.3,)))
    assert effective_multiple(flat, [3.1], power_law, resamples=10).told(flat).startswith("none ")
