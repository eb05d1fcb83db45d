"""The page: `ReportData` in, one self-contained HTML document out.

Texts of a run are untrusted (a generator may write markup): every value is escaped, control characters are made
visible, and the page forbids itself scripts and any outside resource by its content security policy.
"""

from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from synpro_engine.config import atomic_write_text, json_text
from synpro_engine.report import headline, numbers
from synpro_engine.report.data import SECTIONS, ReportData

if TYPE_CHECKING:
    from jinja2 import Environment as JinjaEnvironment

_PACKAGE = "synpro_engine.report"


def write_report(data: ReportData, path: Path) -> None:
    """Render `data` and write it to `path`, whole or not at all."""
    atomic_write_text(path, render_report(data))


def render_report(data: ReportData) -> str:
    """The page as one string. A part of `data` that is empty shows as not run yet."""
    page = _templates().get_template("page.html.j2")
    return page.render(
        data=data,
        sections=SECTIONS,
        statement=headline.STATEMENT,
        facts=headline.facts(data),
        style=resources.files(_PACKAGE).joinpath("page.css").read_text(encoding="utf-8"),
    )


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
    for name in ("seconds", "count", "fixed", "signed", "percent"):
        environment.filters[name] = getattr(numbers, name)
    environment.filters["pretty_json"] = partial(json_text, indent=2, ensure_ascii=False)
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
