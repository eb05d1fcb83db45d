import pytest

from synpro_engine.report import ReportData, StageTiming, Timeline, render_report
from synpro_engine.report.sections.timeline import nice_ticks
from tests.report.test_page import Reader


def test_stages_follow_each_other_on_the_time_axis_unless_their_start_is_known() -> None:
    stages = (
        StageTiming(name="a", status="done", seconds=30.0),
        StageTiming(name="b", status="begun"),
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


def _with_arms() -> Timeline:
    names = [f"arms/{arm}/{name}" for arm in ("prompted", "tuned") for name in ("shards", "continue")]
    arms = [StageTiming(name=name, arm=name.split("/")[1], status="waiting") for name in names]
    arms[0] = StageTiming(name=names[0], arm="prompted", status="done", seconds=5.0)
    own = [StageTiming(name=f"round-{number}/probe", status="waiting") for number in range(1, 11)]
    return Timeline(stages=(StageTiming(name="pretrain", status="done", seconds=9.0), *arms, *own))


def test_stages_stand_below_their_arm_and_those_that_wait_on_no_axis() -> None:
    axis = _with_arms().axis
    assert {arm: [bar.stage.label for bar in bars] for arm, bars in axis.by_arm.items()} == {
        "": ["pretrain"],
        "prompted": ["shards"],
    }


def test_what_is_left_of_many_stages_is_told_in_a_sentence() -> None:
    timeline = _with_arms()
    told = timeline.told_unfinished
    assert told.startswith("13 of 15 stages (round-1/probe, ") and "round-8/probe, 2 more, " in told
    assert told.endswith("1 of arm prompted, 2 of arm tuned)")
    page = render_report(ReportData(title="Half-way", timeline=timeline))
    assert told in page and "13 stages wait for their turn" in page and Reader(page).open == []
