"""The pages: `ReportData` in, or that of several runs, and one self-contained HTML document out.

Texts of a run are untrusted (a generator may write markup): every value is escaped, control characters are made
visible, and the page forbids itself scripts and any outside resource by its content security policy.
"""

import re
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from synpro_engine.config import atomic_write_text, json_text
from synpro_engine.report import comparison, differences, headline, numbers
from synpro_engine.report.comparison import Comparison
from synpro_engine.report.data import SECTIONS, ReportData, Section
from synpro_engine.report.looks import visible

if TYPE_CHECKING:
    from jinja2 import Environment as JinjaEnvironment
    from markupsafe import Markup

_PACKAGE = "synpro_engine.report"


def write_report(data: ReportData, path: Path) -> None:
    """Render `data` and write it to `path`, whole or not at all."""
    atomic_write_text(path, render_report(data))


def render_report(data: ReportData) -> str:
    """The page as one string. A part of `data` that is empty shows as not run yet."""
    return _rendered(
        "page.html.j2",
        "sections",
        SECTIONS,
        title=data.title,
        data=data,
        statement=headline.statement(data),
        facts=headline.facts(data),
        compared_words=differences.COMPARED_WORDS,
    )


def write_comparison(data: Comparison, path: Path) -> None:
    """Render the page of several runs and write it to `path`, whole or not at all."""
    atomic_write_text(path, render_comparison(data))


def render_comparison(data: Comparison) -> str:
    """The page of several runs as one string."""
    return _rendered("comparison.html.j2", "compared", comparison.SECTIONS, title=data.title, data=data)


def _rendered(template: str, folder: str, sections: Sequence[Section], **shown: object) -> str:
    """A page; folder: of the templates of its sections."""
    style = resources.files(_PACKAGE).joinpath("page.css").read_text(encoding="utf-8")
    return _templates().get_template(template).render(folder=folder, sections=sections, style=style, **shown)


def _templates() -> "JinjaEnvironment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(_PACKAGE, "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["head"] = differences.head
    environment.filters["with_code"] = _with_code
    for name in ("seconds", "count", "fixed", "signed", "percent"):
        environment.filters[name] = getattr(numbers, name)
    environment.filters["pretty_json"] = partial(json_text, indent=2, ensure_ascii=False)
    return environment


def _with_code(text: str) -> "Markup":
    """Text that may hold `names` between backticks, as messages for a terminal do."""
    from markupsafe import Markup, escape

    # In what is escaped already, so that only these tags are ours.
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(visible(text)))))


def _visible(value: object) -> object:
    """Show what could hide text, and lone surrogates, which would break UTF-8, as U+FFFD."""
    from markupsafe import Markup

    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return visible(value)
