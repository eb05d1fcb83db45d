import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from synpro_engine.config import as_record, json_text
from synpro_engine.cycle.steps.evaluation import Results
from synpro_engine.evaluate.repetition import NAMES
from synpro_engine.report import Pretraining, ReportData, SourceLoss, render_report, sections, svg, write_report
from synpro_engine.report.data import SECTIONS
from synpro_engine.report.headline import statement
from synpro_engine.report.sections.downstream import Downstream
from synpro_engine.report.sections.effective_tokens import EffectiveTokens
from synpro_engine.report.sections.pretraining import Curve, CurveKind

VOID = {"meta", "link", "br", "img", "hr", "input"}
FILLABLE = [field.name for field in dataclasses.fields(ReportData) if field.name != "title"]


class Reader(HTMLParser):
    """Collects what the tests ask about and fails on a tag that closes nothing."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def _attributes(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            value = value or ""
            assert not name.startswith("on"), f"event handler {name} in <{tag}>"
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "srcset", "action", "data", "poster"):
                self.links.append(value)
            self.references += re.findall(r"url\(#([^)]+)\)", value)


def unmarked(page: str) -> str:
    """Without the marks of what a sample's texts do not share."""
    return re.sub(r"</?(?:mark|ins|del)\b[^>]*>", "", page)


@pytest.fixture(scope="module")
def read(full_page: str) -> Reader:
    return Reader(full_page)


def test_page_is_well_formed(read: Reader) -> None:
    assert read.open == []
    assert len(read.ids) == len(set(read.ids)), "an id is used twice"


def test_every_reference_inside_the_page_has_a_target(read: Reader) -> None:
    inner = [link.removeprefix("#") for link in read.links if link.startswith("#")]
    assert len(inner) > len(SECTIONS)  # the contents and the drawings' markers
    assert set(inner) | set(read.references) <= set(read.ids)


def test_page_loads_nothing_from_outside(full_page: str, read: Reader) -> None:
    assert all(link.startswith("#") or link == "data:," for link in read.links)
    style = full_page[full_page.index("<style>") : full_page.index("</style>")]
    assert "@import" not in style and "url(" not in style
    assert "http:" not in full_page and "https:" not in full_page
    assert "default-src 'none'" in full_page


def test_text_of_a_run_is_never_markup(full_page: str, read: Reader) -> None:
    assert "&lt;script&gt;alert" in unmarked(full_page)
    assert "script" not in read.tags and "img" not in read.tags
    assert "<b>not markup" not in full_page


def test_hostile_characters_do_not_break_the_file(full_report: ReportData, tmp_path: Path) -> None:
    sample = dataclasses.replace(full_report.samples[2], source="a\u202eb\x1b[0m\ud800", reason="\x00")
    write_report(ReportData(title="t\ud800", samples=(sample,)), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_bytes().decode("utf-8")
    assert "a\ufffdb\ufffd[0m\ufffd" in unmarked(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", text)


def test_every_section_is_there_and_filled(full_page: str, read: Reader) -> None:
    assert {section.key for section in SECTIONS} <= set(read.ids)
    assert "not run yet" not in full_page
    assert read.tags.count("svg") == 2 + 2 + 2 + 2 * (3 + 7 + 2) + 3 + 1 + 3


def test_each_stem_in_sections_is_a_section_of_the_page_and_has_a_template() -> None:
    folder = Path(sections.__file__).parent
    stems = {file.name.partition(".")[0] for file in folder.iterdir() if not file.name.startswith("__")}
    assert stems == {section.key for section in SECTIONS}
    assert all((folder / f"{stem}.html.j2").is_file() for stem in stems)


def test_the_numbers_of_the_run_are_shown(read: Reader) -> None:
    text = " ".join(" ".join(read.text).split())
    for shown in (
        "11 min 59 s",
        "150,016",
        "352,256",
        "1.8345",
        "4.8688",
        "91.7%",
        "31 no entry",
        "0f3c9d1",
        "+0.31",
        "6.3%",
        "7.4%",
        "one n-gram in 8",
        "tokenize/left_out.jsonl",
        "notes<1>.csv",
        "+1.207",
        "−0.517",
        "> 4",
    ):
        assert shown in text, shown
    assert "cannot show an effective-token gain" in text
    assert "every part of the cycle is real and wired" in text


def test_operations_have_colours_of_their_own_in_every_theme(full_report: ReportData) -> None:
    curves = full_report.tuning[0]
    names = ("rephrase", "reformat", "faq", "table", "tutorial", "problems", "glossary", "summary")
    tuning = tuple(dataclasses.replace(curves, operation=name) for name in names)
    data = dataclasses.replace(ReportData(title="Eight"), tuning=tuning)
    assert len(set(data.colours.values())) == len(names)
    page = render_report(data)
    themes = [dict(re.findall(r"(--[a-z]+): ?(#[0-9a-f]{3,6});", block)) for block in page.split(":root {")[1:]]
    assert len(themes) == 3
    for theme in themes:
        used = [theme[svg.CSS_VARIABLES[colour]] for colour in data.colours.values()]
        assert len(set(used)) == len(names)
    for colour in data.colours.values():
        assert f"var({svg.CSS_VARIABLES[colour]})" in page


def test_losses_of_other_texts_have_other_colours() -> None:
    kinds: tuple[CurveKind, ...] = ("train", "reference", "validation", "reference")
    names = ("train", "reference", "validation", "reference-tasks")
    curves = tuple(
        Curve(name=name, kind=kind, steps=(0, 1), loss=(2.0, 1.0)) for name, kind in zip(names, kinds, strict=True)
    )
    [panel] = Pretraining(curves=curves).panels()
    legend = panel.svg.split('id="pretrain-loss-legend')[1]
    colours = re.findall(r"fill: none;.* stroke: var\((--[a-z]+)\)", legend)
    assert len(set(colours)) == len(colours) == len(curves), colours


def test_same_data_gives_the_same_bytes(full_report: ReportData) -> None:
    data = dataclasses.replace(full_report, tuning=(), pretraining=Pretraining())
    assert render_report(data) == render_report(data)


def test_empty_report_says_of_every_section_that_it_has_not_run() -> None:
    page = render_report(ReportData(title="Just begun"))
    Reader(page)
    for section in SECTIONS:
        body = page.split(f'<section id="{section.key}"')[1].split("</section>")[0]
        assert "not run yet" in body, section.key


@pytest.mark.parametrize("field", FILLABLE)
def test_any_single_part_renders_without_the_others(full_report: ReportData, field: str) -> None:
    data = dataclasses.replace(ReportData(title="Half-way"), **{field: getattr(full_report, field)})
    assert Reader(render_report(data)).open == []


def test_degenerate_parts_render(degenerate_report: ReportData) -> None:
    page = render_report(degenerate_report)
    assert Reader(page).open == []
    assert "Without a result so far: 2 of 2 stages (probe, tune)." in page
    assert "Every step was scored, so there is none to compare with." in page


def test_report_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("an older report")
    write_report(ReportData(title="New"), path)
    assert "<title>New</title>" in path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_what_judges_still_see_is_drawn_where_they_were_looked_at(full_report: ReportData) -> None:
    page = render_report(full_report)
    told = "share of completions that {} rates above themselves with a fault, by step"
    for judge in ("quality", "similarity"):
        assert f"{full_report.tuning[0].operation}: {told.format(judge)}" in page
    without = tuple(dataclasses.replace(curves, canaries={}) for curves in full_report.tuning)
    assert "rates above themselves" not in render_report(dataclasses.replace(full_report, tuning=without))


def test_the_share_of_planted_facts_that_texts_keep_is_told_where_it_was_measured(full_report: ReportData) -> None:
    first, *others = full_report.tuning
    page = render_report(
        dataclasses.replace(full_report, tuning=(first, *(dataclasses.replace(one, facts=()) for one in others)))
    )
    assert page.count("Of facts planted in held-out slices") == 1
    assert f"keep 75.0% at step 0, 50.0% at step {len(first.steps)}." in page


def test_what_was_measured_on_held_out_slices_is_drawn_over_the_steps(full_report: ReportData) -> None:
    page = render_report(full_report)
    assert page.count("held-out slices</text>") == page.count("each step's slices</text>") == len(full_report.tuning)
    assert "95 % interval of what has changed" in page
    without = tuple(dataclasses.replace(curves, held_out={}, facts=()) for curves in full_report.tuning)
    assert "held-out slices" not in render_report(dataclasses.replace(full_report, tuning=without))


def test_an_arm_that_reads_documents_otherwise_is_named(full_report: ReportData) -> None:
    otherwise = dataclasses.replace(full_report.arms, read_otherwise=("apart",))
    page = render_report(dataclasses.replace(full_report, arms=otherwise))
    assert "is not as in the recipe in apart:" in page and "is not as in the recipe" not in render_report(full_report)


def test_evaluations_of_fewer_gauges_are_named_with_what_renews_them(full_report: ReportData) -> None:
    page = render_report(dataclasses.replace(full_report, with_fewer_gauges=("arms/a/evaluate", "evaluate")))
    assert "<code>arms/a/evaluate</code>, <code>evaluate</code>: measured by an earlier version" in page
    assert "Remove these folders" in page and "earlier version" not in render_report(full_report)


def test_a_loss_that_is_not_finite_is_shown_as_such_as_files_hold_it(full_report: ReportData) -> None:
    rows = tuple(dataclasses.replace(row, seed=seed) for row in full_report.arms.held_out for seed in (None, 2, 3))
    results = json_text(
        {"held_out": [dataclasses.asdict(row) for row in (dataclasses.replace(rows[0], nats=math.nan), *rows[1:])]}
    )
    read = as_record(json.loads(results), Results, "results.json").held_out
    several = dataclasses.replace(full_report.arms, held_out=read, compared_with=read[0].name)
    assert [math.isnan(row.mean) for row in several.compared] == [True, False, False]
    page = render_report(dataclasses.replace(full_report, arms=several))
    assert page.count("<strong>nan</strong>") == 2  # the mean, and bits per byte of one seed


def test_bits_per_byte_are_told_by_source_as_files_hold_them(full_report: ReportData) -> None:
    parts = {"web": SourceLoss(nats=math.log(2) * 300, tokens=90, utf8_bytes=200, documents=4),
             "<books>": SourceLoss(nats=math.nan, tokens=9, utf8_bytes=50, documents=1)}  # fmt: skip
    rows = [dataclasses.asdict(dataclasses.replace(row, by_source=parts)) for row in full_report.arms.held_out]
    read = as_record(json.loads(json_text({"held_out": rows})), Results, "results.json").held_out
    page = render_report(dataclasses.replace(full_report, arms=dataclasses.replace(full_report.arms, held_out=read)))
    assert "&lt;books&gt; (1)" in page and page.count('<td class="n">1.5000</td>') == len(rows)
    assert "Bits per byte by source" not in render_report(full_report)


@pytest.mark.parametrize("curve", [True, False])
def test_the_head_says_what_seeds_and_sizes_of_text_allow(full_report: ReportData, curve: bool) -> None:
    rows = tuple(dataclasses.replace(row, seed=seed) for row in full_report.arms.held_out for seed in (None, 2, 3))
    tokens = full_report.effective_tokens if curve else EffectiveTokens(missing=("sizes",))
    several = dataclasses.replace(
        full_report, arms=dataclasses.replace(full_report.arms, held_out=rows), effective_tokens=tokens
    )
    first, others = statement(several)
    assert ("under Effective tokens" in first) is curve and ("no multiple of the text is told" in first) is not curve
    assert "up to 3 seeds" in others and "one seed" in statement(full_report)[0]
    nothing = dataclasses.replace(several, arms=dataclasses.replace(several.arms, held_out=()))
    assert "Nothing was measured" in statement(nothing)[0]


def test_the_curve_of_unique_text_says_where_its_losses_rise_and_its_base_is_worth_itself(
    full_report: ReportData,
) -> None:
    [curve] = full_report.effective_tokens.curves
    assert not curve.notes and next(curve.worth()).multiples == {"isotonic": "1", "power law": "1"}
    known = dataclasses.replace(curve, total=1e6)
    worth = {one.name: one.multiples for one in known.worth()}
    assert list(worth["tuned"]) == [*NAMES] and worth["repetition"][NAMES[-1]] == "1"
    two = dataclasses.replace(known, points=known.points[:2])
    assert list(two.readings) == ["isotonic"], "a law takes three sizes"
    first, second, last = curve.points
    rising = dataclasses.replace(curve, points=(first, dataclasses.replace(second, losses=(5.0, 5.1)), last))
    assert "first 2 sizes rise" in rising.notes[0] and "up to 2 times" in rising.notes[0]
    assert next(rising.worth()).multiples == {"isotonic": "1", "power law": "1"}


def test_names_between_backticks_are_code_and_nothing_else_in_a_message_is_markup() -> None:
    data = ReportData(title="t", downstream=Downstream(missing="set `held_out` to <b>`a`</b> & `b"))
    page = render_report(data)
    assert "set <code>held_out</code> to &lt;b&gt;<code>a</code>&lt;/b&gt; &amp; `b." in page
    assert Reader(page).open == []
