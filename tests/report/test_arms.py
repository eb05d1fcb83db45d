"""Loss curves of arms over seeds: a mean at the steps that all have, and a band that the caption names."""

import dataclasses

import pytest

from synpro_engine.report import Arms, Comparison, Curve, ReportData, over_seeds, render_report
from tests.report.test_comparison import of_run

SEEDS = (
    Curve(name="tuned", kind="validation", steps=(30, 40, 50, 60), loss=(5.0, 4.0, 3.5, 3.0)),
    Curve(name="tuned", kind="validation", steps=(30, 50, 60), loss=(5.0, 3.7, 3.1)),
    Curve(name="tuned", kind="validation", steps=(30, 40, 60, 70), loss=(5.0, 4.1, 3.5, 2.0)),
)
OTHER = dataclasses.replace(SEEDS[0], name="organic")


def _caption(*curves: Curve) -> tuple[str, int]:
    """Of the panel of the arms, and how many bands it has."""
    page = render_report(ReportData(title="Arms", arms=Arms(curves=curves)))
    [figure] = page.split('<section id="arms"')[1].split("</section>")[0].split("<figure>")[1:]
    bands = figure.count("FillBetween") + figure.count("PolyCollection_") * ("FillBetween" not in figure)
    return figure.split("<figcaption>")[1].split("</figcaption>")[0].replace("&#39;", "'"), bands


def test_a_curve_over_seeds_is_their_mean_at_the_steps_that_all_have() -> None:
    two, three = over_seeds(SEEDS[:2]), over_seeds(SEEDS)
    assert two.steps == (30, 50, 60) and three.steps == (30, 60) and (two.seeds, three.seeds) == (2, 3)
    assert two.loss == pytest.approx((5.0, 3.6, 3.05)) and three.loss == pytest.approx((5.0, 3.2))


def test_the_band_is_from_one_seed_to_the_other_and_an_interval_of_three() -> None:
    two, three = over_seeds(SEEDS[:2]), over_seeds(SEEDS)
    assert two.low == (5.0, 3.5, 3.0) and two.high == (5.0, 3.7, 3.1)
    half = 4.303 * 0.2645751 / 3**0.5  # of 3.0, 3.1 and 3.5
    assert three.low == pytest.approx((5.0, 3.2 - half)) and three.high == pytest.approx((5.0, 3.2 + half))


def test_one_seed_is_a_plain_line_and_the_caption_speaks_of_no_band() -> None:
    assert over_seeds(SEEDS[:1]) is SEEDS[0]
    caption, bands = _caption(OTHER, SEEDS[1])
    assert bands == 0 and caption.endswith("before the plateau.")


def test_the_caption_says_which_band_is_drawn_and_over_how_many_seeds() -> None:
    caption, bands = _caption(over_seeds(SEEDS[:2]))
    assert (
        bands == 1 and "over 2 seeds at the steps that all have, bands from the lower to the higher of two" in caption
    )
    caption, bands = _caption(over_seeds(SEEDS))
    assert bands == 1 and "over 3 seeds" in caption and "bands the 95 % interval of the mean (Student's t)." in caption
    caption, bands = _caption(over_seeds(SEEDS), over_seeds([OTHER, SEEDS[1]]))
    assert bands == 2 and "(tuned: 3, organic: 2)" in caption and "(Student's t), or from the lower" in caption


def test_the_page_of_several_runs_has_the_bands_too(full_report: ReportData) -> None:
    data = dataclasses.replace(full_report, arms=Arms(curves=(over_seeds(SEEDS),)))
    panels = Comparison(title="", created="", runs=(of_run(data, "a"), of_run(data, "b"))).panels()
    [arm] = [panel for panel in panels if panel.title.startswith("Arm ")]
    assert arm.svg.count("FillBetween") == 2


def test_a_band_of_a_long_run_takes_no_more_of_the_page_than_that_of_a_short_one() -> None:
    def of_band(steps: int) -> int:
        at = tuple(range(steps))
        losses = [tuple(rate / (1 + step) for step in at) for rate in (1.0, 2.0, 3.0)]
        mean = over_seeds([Curve(name="tuned", kind="validation", steps=at, loss=loss) for loss in losses])
        pages = [
            ReportData(title="A", arms=Arms(curves=(one,)))
            for one in (mean, dataclasses.replace(mean, seeds=1, low=(), high=()))
        ]
        with_band, without = (len(render_report(page)) for page in pages)
        return with_band - without

    assert 1000 < of_band(20_000) < 1.2 * of_band(2_000)
