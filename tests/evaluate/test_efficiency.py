"""Data efficiency: the contest's own figures, and nothing said beyond the ends of a table."""

from typing import Any

import pytest

from synpro_engine.config import UserError, load_config
from synpro_engine.evaluate import Efficiency, EfficiencyConfig, data_efficiency

TABLE = ((200e6, 3.703), (400e6, 3.370), (600e6, 3.200), (800e6, 3.123), (1e9, 3.046), (2e9, 2.892))


@pytest.mark.parametrize(("tokens", "loss"), TABLE)
def test_a_point_of_the_table_is_itself(tokens: float, loss: float) -> None:
    assert data_efficiency(loss, TABLE, 100e6) == Efficiency(tokens / 100e6)


@pytest.mark.parametrize(
    ("loss", "multiple"), [(3.402, 3.808), (3.195, 6.130), (2.987, 13.831), ((3.370 + 3.200) / 2, 5.0)]
)
def test_between_two_points_tokens_are_linear_in_the_loss(loss: float, multiple: float) -> None:
    found = data_efficiency(loss, TABLE, 100e6)
    assert found.multiple == pytest.approx(multiple, abs=1e-3) and found.side == ""
    assert data_efficiency(loss, TABLE, 50e6).multiple == pytest.approx(2 * found.multiple)


def test_a_lower_loss_is_never_worth_less() -> None:
    losses = [3.7 - 0.001 * step for step in range(800)]
    multiples = [data_efficiency(loss, TABLE, 100e6).multiple for loss in losses]
    assert multiples == sorted(multiples)


def test_beyond_the_table_only_the_side_is_told() -> None:
    assert str(data_efficiency(3.704, TABLE, 100e6)) == "< 2x"
    assert str(data_efficiency(2.891, TABLE, 100e6)) == "> 20x"
    assert str(data_efficiency(3.195, TABLE, 100e6)) == "6.13x"
    for loss in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="no data efficiency"):
            data_efficiency(loss, TABLE, 100e6)


@pytest.mark.parametrize(
    "table",
    [[[1e6, 3.0]], [[1e6, 3.0], [2e6, 3.0]], [[2e6, 3.0], [1e6, 2.0]], [[0.0, 3.0], [1e6, 2.0]], [[1e6], [2e6]], "x"],
)
def test_what_is_no_falling_curve_is_refused(table: Any) -> None:
    with pytest.raises(UserError, match="table"):
        load_config(EfficiencyConfig, {"table": table})
