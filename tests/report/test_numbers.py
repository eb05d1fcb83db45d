import pytest

from synpro_engine.report import numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.123, "0.12 s"),
        (8.44, "8.4 s"),
        (59.96, "1 min 00 s"),
        (185.2, "3 min 05 s"),
        (8040, "2 h 14 min"),
    ],
)
def test_durations_read_as_a_clock_would_say_them(value: float | None, shown: str) -> None:
    assert numbers.seconds(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(12, "12"), (999.6, "1k"), (1_048_576, "1.05M"), (134_515_008, "135M"), (2.2e9, "2.2B")]
)
def test_large_counts_keep_three_digits(value: float, shown: str) -> None:
    assert numbers.compact(value) == shown


def test_a_number_that_is_not_finite_is_shown_as_such() -> None:
    for show in (numbers.seconds, numbers.count, numbers.compact, numbers.fixed, numbers.signed):
        assert show(float("nan")) == "nan"
        assert show(None) == "–"


def test_signs_are_typographic() -> None:
    assert numbers.signed(-0.5, 2) == "−0.50"
    assert numbers.signed(0.5, 2) == "+0.50"
    assert numbers.signed(0.0, 2) == "0.00"


def test_an_interval_of_a_mean_is_students() -> None:
    assert numbers.half_interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5)
    assert numbers.half_interval([0.0, 1.0] * 50) == pytest.approx(2.042 * numbers.standard_error([0.0, 1.0] * 50))


def test_a_share_of_nothing_is_missing() -> None:
    assert numbers.percent(3, 0) == "–"
    assert numbers.percent(0.25) == "25.0%"
