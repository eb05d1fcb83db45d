"""The page: `ReportData` in, one self-contained HTML document out.

Knows the order of the sections and renders templates; draws nothing itself. Texts of a run are untrusted (a generator
may write markup): every value is escaped, control characters are made visible, and the page forbids itself scripts and
any outside resource by its content security policy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from synpro_engine.config import atomic_write_text, json_text
from synpro_engine.report import generator_figures, headline, in_run_figures, loss_figures, numbers
from synpro_engine.report.model import ReportData, StageTiming

if TYPE_CHECKING:
    from jinja2 import Environment as JinjaEnvironment

_PACKAGE = "synpro_engine.report"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page; `key` is its anchor and the name of its template."""

    key: str
    title: str


SECTIONS = (
    Section(key="timeline", title="Timeline"),
    Section(key="corpus", title="The corpus"),
    Section(key="pretraining", title="Pretraining and plateau"),
    Section(key="influence", title="Data influence"),
    Section(key="tuning", title="Tuning the generator"),
    Section(key="yields", title="Yield of generation"),
    Section(key="samples", title="Samples"),
    Section(key="diversity", title="Diversity"),
    Section(key="tokens", title="Token accounting"),
    Section(key="arms", title="The two arms"),
    Section(key="environment", title="Environment"),
)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A stage on the time axis; `left` and `width` in percent of the axis."""

    stage: StageTiming
    left: float
    width: float


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Bars of the stages, and the ticks below them as (percent of the axis, label)."""

    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]


def write_report(data: ReportData, path: Path) -> None:
    """Render `data` and write it to `path`, whole or not at all."""
    atomic_write_text(path, render_report(data))


def render_report(data: ReportData) -> str:
    """The page as one string. A part of `data` that is empty shows as not run yet."""
    page = _templates().get_template("page.html.j2")
    return page.render(
        data=data,
        sections=SECTIONS,
        statement=headline.statement(data),
        facts=headline.facts(data),
        unfinished=headline.unfinished(data),
        total_seconds=headline.total_seconds(data),
        timeline=timeline(data.stages),
        loss_figures=loss_figures,
        generator_figures=generator_figures,
        in_run_figures=in_run_figures,
        style=resources.files(_PACKAGE).joinpath("templates/report.css").read_text(encoding="utf-8"),
    )


def timeline(stages: tuple[StageTiming, ...]) -> Timeline:
    """Place stages on one time axis: at their own start where it is known, else after the stage before."""
    spans: list[tuple[StageTiming, float, float]] = []
    clock = 0.0
    for stage in stages:
        start = clock if stage.start is None else stage.start
        spans.append((stage, start, stage.seconds or 0.0))
        clock = max(clock, start + (stage.seconds or 0.0))
    if clock <= 0:
        return Timeline(bars=tuple(Bar(stage=stage, left=0, width=0) for stage in stages), ticks=())
    bars = tuple(Bar(stage=s, left=100 * start / clock, width=100 * length / clock) for s, start, length in spans)
    ticks = tuple((100 * at / clock, _clock(at)) for at in numbers.nice_ticks(clock) if at <= 0.96 * clock)
    return Timeline(bars=bars, ticks=ticks)


def _clock(at: float) -> str:
    if at < 60 or at % 60:
        return f"{at:g} s" if at < 60 else f"{int(at) // 60}:{int(at) % 60:02d} min"
    return f"{at / 60:g} min" if at < 3600 else f"{at / 3600:g} h"


def _templates() -> "JinjaEnvironment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(_PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("seconds", "count", "compact", "fixed", "signed", "percent"):
        environment.filters[name] = getattr(numbers, name)
    environment.filters["pretty_json"] = _pretty_json
    return environment


def _visible(value: object) -> object:
    """Show control characters and lone surrogates as U+FFFD; the first could hide text, the second break UTF-8."""
    from markupsafe import Markup

    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join("\ufffd" if _hidden(ord(letter)) else letter for letter in value)


def _hidden(code: int) -> bool:
    control = (code < 0x20 and code not in (0x09, 0x0A, 0x0D)) or 0x7F <= code < 0xA0
    return control or 0xD800 <= code < 0xE000 or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069


def _pretty_json(config: Mapping[str, object]) -> str:
    return json_text(config, indent=2, ensure_ascii=False)
