from pathlib import Path

from synpro_engine.report import ReportData, StageTiming, Timeline, closing_summary


def test_summary_names_stages_key_numbers_and_the_report(full_report: ReportData, tmp_path: Path) -> None:
    text = closing_summary(full_report, tmp_path / "report.html")
    for shown in ("tune rephrase", "2 min 51 s", "11 min 59 s", "150,016 tokens", "1.8345 bits per byte"):
        assert shown in text, shown
    assert "cannot show an effective-token gain" in text
    assert text.splitlines()[-1] == f"Report: {tmp_path / 'report.html'}"
    assert max(map(len, text.splitlines()[:-1])) <= 100


def test_summary_of_a_run_that_is_not_finished_says_so(full_report: ReportData) -> None:
    stages = (*full_report.timeline.stages[:3], StageTiming(name="tune rephrase", status="waiting"))
    text = closing_summary(ReportData(title="Half-way", timeline=Timeline(stages=stages)))
    assert "Without a result so far: 1 of 4 stages (tune rephrase)." in text
    assert "not run yet" in text


def test_summary_cannot_drive_the_terminal() -> None:
    timeline = Timeline(stages=(StageTiming(name="a\rb", status="done"),))
    text = closing_summary(ReportData(title="evil\x1b[2J\x07", timeline=timeline))
    assert all(letter.isprintable() or letter == "\n" for letter in text)
