import math

import pytest

from synpro_engine.config import UserError, load_config
from synpro_engine.train.config import TrainConfig
from synpro_engine.train.optimizer import lr_factor
from synpro_engine.train.optimizer_config import ScheduleConfig


def test_warmup_rises_linearly_and_never_trains_at_zero():
    config = ScheduleConfig(warmup_steps=4)
    assert [lr_factor(config, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_no_warmup_starts_at_the_peak():
    assert lr_factor(ScheduleConfig(), 0) == 1.0
    assert lr_factor(ScheduleConfig(), 10**9) == 1.0


def test_cosine_passes_its_half_and_stays_at_the_floor():
    config = ScheduleConfig(kind="cosine", warmup_steps=10, total_steps=110, floor=0.1)
    assert lr_factor(config, 10) == pytest.approx(1.0)
    assert lr_factor(config, 60) == pytest.approx(0.55)
    assert lr_factor(config, 35) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert lr_factor(config, 110) == lr_factor(config, 5000) == pytest.approx(0.1)


@pytest.mark.parametrize(("shape", "halfway"), [("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_wsd_is_stable_then_decays(shape, halfway):
    config = ScheduleConfig(kind="wsd", warmup_steps=5, total_steps=100, decay_steps=20, decay_shape=shape, floor=0.0)
    assert {lr_factor(config, step) for step in range(5, 81)} == {1.0}
    assert lr_factor(config, 90) == pytest.approx(halfway)
    assert lr_factor(config, 100) == lr_factor(config, 101) == 0.0


def test_factors_never_leave_the_unit_interval():
    for kind in ("constant", "cosine", "wsd"):
        config = ScheduleConfig(kind=kind, warmup_steps=3, total_steps=20, decay_steps=7)
        factors = [lr_factor(config, step) for step in range(40)]
        assert all(0 < factor <= 1 for factor in factors)
        assert factors[3:] == sorted(factors[3:], reverse=True)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"kind": "cosine"}, "total_steps"),
        ({"kind": "cosine", "warmup_steps": 10, "total_steps": 10}, "total_steps"),
        ({"kind": "wsd", "total_steps": 10}, "decay_steps"),
        ({"kind": "wsd", "total_steps": 10, "warmup_steps": 5, "decay_steps": 6}, "decay_steps"),
    ],
)
def test_incomplete_schedules_are_refused_by_name(settings, word):
    with pytest.raises(UserError, match=word):
        load_config(ScheduleConfig, settings)


def test_a_plateau_without_evaluations_is_refused():
    with pytest.raises(UserError, match="eval_every"):
        load_config(TrainConfig, {"max_steps": 1, "eval_every": 0, "plateau": {}})
