import pytest

from synpro_engine.report import StageTiming, Timeline
from synpro_engine.report.sections.timeline import nice_ticks


def test_stages_follow_each_other_on_the_time_axis_unless_their_start_is_known() -> None:
    stages = (
        StageTiming(name="a", status="done", seconds=30.0),
        StageTiming(name="b", status="reused"),
        StageTiming(name="c", status="done", seconds=10.0, start=50.0),
        StageTiming(name="d", status="done", seconds=40.0),
    )
    axis = Timeline(stages=stages).axis
    assert [bar.left for bar in axis.bars] == pytest.approx([0, 30, 50, 60])
    assert [bar.width for bar in axis.bars] == pytest.approx([30, 0, 10, 40])
    assert axis.ticks[0] == (0.0, "0 s")


@pytest.mark.parametrize("end", [0.5, 7, 61, 719, 5_000, 90_000, 3_000_000])
def test_ticks_are_few_and_stay_on_the_axis(end: float) -> None:
    ticks = nice_ticks(end)
    assert ticks[0] == 0
    assert len(ticks) <= 7
    assert ticks[-1] <= end
