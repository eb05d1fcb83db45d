"""The page in a real browser: headless Chromium, driven from its command line."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from synpro_engine.report.data import SECTIONS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium found (chromium, chromium-browser, google-chrome)"
)

WIDTHS = (1280, 480, 360)
# The page forbids scripts; copies without that ban carry this one. They stand in frames of one outer page, because a
# headless window cannot be narrower than 500 pixels, and write what they measure where --dump-dom shows it.
PROBE = """<script>
const sizes = [...document.querySelectorAll("svg")].map(s => s.getBoundingClientRect()).map(r => [r.width, r.height]);
const seen = {sizes, width: innerWidth, needed: document.documentElement.scrollWidth,
  scripts: document.scripts.length, sections: [...document.querySelectorAll("section")].map(s => s.id)};
const log = parent.document.createElement("pre");
log.textContent = JSON.stringify(seen);
parent.document.body.append(log);
</script></body>"""


def _browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    fixed = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [CHROMIUM, *fixed, profile, "--window-size=1280,2400", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture
def page(full_page: str, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(full_page, encoding="utf-8")
    return path


def test_browser_paints_the_page_without_complaint(page: Path) -> None:
    picture = page.with_name("report.png")
    log = _browse(page, f"--screenshot={picture}", "--enable-logging=stderr").stderr
    assert "CONSOLE" not in log, log
    with Image.open(picture) as image:
        assert image.size == (1280, 2400)
        colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert colours is not None
    painted = {colour for _, colour in colours}
    assert {(0, 114, 178), (254, 254, 254)} <= painted  # the bars' blue and the paper: the style was applied
    assert max(number for number, _ in colours) < 0.98 * 1280 * 2400


def test_at_any_width_every_figure_has_a_size_and_nothing_scrolls_sideways(page: Path) -> None:
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    copy = html.escape(text.replace("</body>", PROBE), quote=True)
    outer = page.with_name("frames.html")
    frames = "".join(f'<iframe style="width:{w}px;height:900px;border:0" srcdoc="{copy}"></iframe>' for w in WIDTHS)
    outer.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body>{frames}</body>', encoding="utf-8")
    logs = re.findall(r"<pre>(.*?)</pre>", _browse(outer, "--dump-dom").stdout)
    seen = {probe["width"]: probe for probe in map(json.loads, map(html.unescape, logs))}
    assert set(seen) == set(WIDTHS)
    for width, probe in seen.items():
        assert {section.key for section in SECTIONS} <= set(probe["sections"])
        assert len(probe["sizes"]) == text.count("<svg") > 20
        assert all(w >= 120 and h >= 60 for w, h in probe["sizes"]), (width, probe["sizes"])
        assert probe["needed"] <= width
        assert probe["scripts"] == 1  # the probe: what a sample wrote stayed text
