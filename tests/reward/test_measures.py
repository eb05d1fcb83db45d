"""Figures of a judge are what they are defined to be, and an interval covers what it is an interval of."""

import numpy as np
import pytest

from synpro_engine.reward.measures import auc, auc_interval, calibration_bins, calibration_error, share_kept


def test_auc_is_the_share_of_pairs_in_order_with_ties_as_halves() -> None:
    chance = np.random.default_rng(0)
    true, false = chance.integers(5, size=40) / 4, chance.integers(4, size=30) / 4
    plain = np.mean([(t > f) + (t == f) / 2 for t in true for f in false])
    assert auc(true, false) == pytest.approx(plain)


def test_an_interval_of_auc_covers_the_truth_about_as_often_as_it_says() -> None:
    # Normal values a standard deviation apart: the true AUC is Phi(1 / sqrt(2)) = 0.7602.
    chance, covered = np.random.default_rng(1), 0
    for _ in range(100):
        true, false = chance.normal(1, 1, 60), chance.normal(0, 1, 60)
        low, high = auc_interval(true, false, [f"t{i}" for i in range(60)], [f"f{i}" for i in range(60)])
        covered += low <= 0.7602 <= high
    assert 88 <= covered <= 100


def test_pairs_of_one_source_count_once_in_an_interval() -> None:
    chance = np.random.default_rng(2)
    true, false = chance.normal(1, 1, 30), chance.normal(0, 1, 30)
    names = [str(i) for i in range(30)]
    alone = auc_interval(true, false, names, names)
    repeated = auc_interval(np.repeat(true, 9), np.repeat(false, 9), names * 9, names * 9)
    own = [name for name in names for _ in range(9)]
    together = auc_interval(np.repeat(true, 9), np.repeat(false, 9), own, own)
    assert together == pytest.approx(alone)
    # The same values said to be of others, mixed up, are no more certain than their sources are many.
    assert repeated[1] - repeated[0] < alone[1] - alone[0]
    assert auc_interval(true, false, ["one"] * 30, ["one"] * 30) == (0.0, 1.0)


def test_bins_tell_what_was_said_and_found_with_both_labels_at_par() -> None:
    p, labels = np.array([0.05, 0.05, 0.95, 0.95, 0.95]), np.array([1.0, 0.0, 1.0, 0.0, 0.0])
    low, high = calibration_bins(p, labels, np.ones(5))
    # A true one weighs a quarter, a false one a sixth.
    assert low.found == pytest.approx((1 / 4) / (1 / 4 + 1 / 6)) and low.pairs == 2
    assert high.found == pytest.approx((1 / 4) / (1 / 4 + 2 / 6)) and low.weight + high.weight == pytest.approx(1.0)
    gaps = low.weight * abs(low.said - low.found) + high.weight * abs(high.said - high.found)
    assert calibration_error(p, labels, np.ones(5)) == pytest.approx(gaps)


def test_no_more_of_the_false_ones_pass_than_are_let_through() -> None:
    true, false = np.array([0.2, 0.6, 0.9]), np.linspace(0, 0.5, 20)
    threshold, kept = share_kept(true, false)
    assert (false >= threshold).mean() <= 0.1 and kept == pytest.approx(2 / 3)
