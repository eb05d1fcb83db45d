"""The pages in a real browser: headless Chromium, driven from its command line, in both colour schemes."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from synpro_engine.report import Comparison, ReportData, comparison, render_comparison
from synpro_engine.report.data import SECTIONS
from tests.report.test_comparison import of_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium found (chromium, chromium-browser, google-chrome)"
)

WIDTHS = (1280, 480, 360)
# What a browser is told, and by which the page's style is known: its paper and its blue.
SCHEMES = {"light": (1, (254, 254, 254), (0, 114, 178)), "dark": (0, (22, 25, 28), (86, 169, 224))}
# By the name of a page's file the sections that it must have, and more drawings than which.
PAGES = {"report": (SECTIONS, 20), "comparison": (comparison.SECTIONS, 2)}
# The pages forbid scripts; copies without that ban carry this one. They stand in frames of one outer page, because a
# headless window cannot be narrower than 500 pixels, and write what they measure where --dump-dom shows it.
PROBE = """<script>
const sizes = [...document.querySelectorAll("svg")].map(s => s.getBoundingClientRect()).map(r => [r.width, r.height]);
const seen = {sizes, width: innerWidth, needed: document.documentElement.scrollWidth, page: frameElement.name,
  dark: matchMedia("(prefers-color-scheme: dark)").matches, paper: getComputedStyle(document.body).backgroundColor,
  scripts: document.scripts.length, sections: [...document.querySelectorAll("section")].map(s => s.id)};
const log = parent.document.createElement("pre");
log.textContent = JSON.stringify(seen);
parent.document.body.append(log);
</script></body>"""
HEARD = "this line is heard"


def _browse(page: Path, scheme: str, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    fixed = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    own = [f"--user-data-dir={page.parent / 'profile'}", f"--blink-settings=preferredColorScheme={SCHEMES[scheme][0]}"]
    command = [CHROMIUM, *fixed, *own, "--window-size=1280,2400", "--enable-logging=stderr", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def pages(full_report: ReportData, full_page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run, and that of two."""
    folder = tmp_path_factory.mktemp("pages")
    runs = (of_run(full_report, "a"), of_run(full_report, "<i>b</i>", lr=0.002))
    compared = render_comparison(Comparison(title="Compared", created="now", runs=runs))
    found = {name: folder / f"{name}.html" for name in PAGES}
    for name, text in (("report", full_page), ("comparison", compared)):
        found[name].write_text(text, encoding="utf-8")
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", PAGES)
def test_browser_paints_the_page_in_the_colours_of_the_scheme(pages: dict[str, Path], name: str, scheme: str) -> None:
    picture = pages[name].with_name(f"{name}-{scheme}.png")
    _browse(pages[name], scheme, f"--screenshot={picture}")
    _, paper, blue = SCHEMES[scheme]
    with Image.open(picture) as image:
        assert image.size == (1280, 2400)
        colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert colours is not None
    assert {paper, blue} <= {colour for _, colour in colours}  # bars or lines: the style was applied
    assert max(colours)[1] == paper and max(number for number, _ in colours) < 0.98 * 1280 * 2400


@pytest.mark.parametrize("scheme", SCHEMES)
def test_at_any_width_nothing_is_complained_of_and_every_figure_has_a_size(pages: dict[str, Path], scheme: str) -> None:
    outer, frames = pages["report"].with_name(f"frames-{scheme}.html"), []
    texts = {name: path.read_text(encoding="utf-8") for name, path in pages.items()}
    for name, text in texts.items():
        probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace("</body>", PROBE)
        for width in WIDTHS:
            size = f'style="width:{width}px;height:900px;border:0"'
            # The page as it is, for its own complaints, and the copy that measures.
            frames.append(f'<iframe {size} src="{pages[name].name}"></iframe>')
            frames.append(f'<iframe {size} name="{name}" srcdoc="{html.escape(probed, quote=True)}"></iframe>')
    heard = f"<script>console.error({HEARD!r})</script>"
    outer.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body>{heard}{"".join(frames)}</body>', encoding="utf-8")
    done = _browse(outer, scheme, "--dump-dom")
    [line] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert HEARD in line
    logs = re.findall(r"<pre>(.*?)</pre>", done.stdout)
    seen = {(probe["page"], probe["width"]): probe for probe in map(json.loads, map(html.unescape, logs))}
    assert set(seen) == {(name, width) for name in PAGES for width in WIDTHS}
    for (name, width), probe in seen.items():
        _check(probe, name, width, scheme, texts[name].count("<svg"))


def _check(probe: dict[str, Any], name: str, width: int, scheme: str, drawings: int) -> None:
    sections, more_than = PAGES[name]
    assert {section.key for section in sections} <= set(probe["sections"])
    assert len(probe["sizes"]) == drawings > more_than
    assert all(w >= 120 and h >= 60 for w, h in probe["sizes"]), (name, width, probe["sizes"])
    assert probe["needed"] <= width, (name, width)
    assert probe["scripts"] == 1  # the probe: what a sample or a run's name wrote stayed text
    assert probe["dark"] is (scheme == "dark") and probe["paper"] == f"rgb{SCHEMES[scheme][1]}"
