"""The table of awkward answers as a page: `python tests/synth/answers_page.py > docs/answers.md`.

The table is `awkward_answers.yaml`; the page is made from it alone, and a test holds the two together.
"""

from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_name("awkward_answers.yaml")
COMMAND = "python tests/synth/answers_page.py > docs/answers.md"
HEAD = f"""\
# What is read from an answer

Generators are small and their answers are awkward. `synpro_engine/synth/parse.py` (`tables.py` and `steps.py` for their
forms) reads what can be told, and counts what it takes away. Every answer below is a test; this page is made from
[the table](../tests/synth/awkward_answers.yaml) by `{COMMAND}`.

- **Nothing is cut in silence.** `cut` counts characters, white space aside, by cause: with those of the text and of the
  form that was asked for they are all of the answer. They stand beside every text of a corpus (`cut` in
  `docs-*.jsonl.zst`), are summed in `_about/yield.json`, and stand in the report. `synth/parsed.py` explains the
  causes.
- **Text is left as it is written.** Brackets, tags, formulas, HTML entities and markdown within a text are text. A slot
  is what the prompt's own pattern leaves: an entry or a line that *is* `[topic]` or `...`. One bad entry never costs
  the others.
- **Talk about the answer** is told by what it says of the rewriting, or to the user, in English, and only before and
  after the text. A text about grammar or constitutions keeps its lines; one that ends in a speaker's "I have rephrased
  the text" loses that line, and the count shows it.
- **Reading is tolerant, the reward is not.** `exact` says whether an answer begins with the operation's heading (in any
  case) and has no other one, nor this one twice. Tuning gives all other answers 0, though generation reads them: a
  generator learns the form, and no text is thrown away for a "Sure!".
- **Known limits.** Keys, such as `Topic` and `Content`, stand before each value: translated keys, JSON, HTML lists and
  tables that have them in their head alone are refused. Questions behind the heading of a list of them need none, where
  none of them has one. A paragraph behind an entry, after a blank line and not indented, counts as `outside`, as do
  code blocks, tables and headings within one. A paraphrase without any heading is refused, since nothing tells it from
  talk.
"""


def rows() -> list[dict[str, Any]]:
    """The table: `name`, `group`, `operation`; `answer` (what a model wrote behind the heading) or `whole` (all of an
    answer); `finished: false` where its tokens were used up; then what it gives: `text`, `entries` or `refused`, `cut`
    where that is not nothing, and `exact: false`."""
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))


def page() -> str:
    """All of docs/answers.md."""
    lines, group = [HEAD], None
    for row in rows():
        if row["group"] != group:
            group = row["group"]
            lines.append(f"\n## {group}\n\n| answer | as written | what it gives | cut |\n|---|---|---|---|\n")
        name = row["name"] + ("" if row.get("finished", True) else " (tokens used up)")
        written = row["answer"] if "answer" in row else row["whole"]
        cut = ", ".join(f"{cause} {count}" for cause, count in row.get("cut", {}).items())
        inexact = "" if row.get("exact", True) or "refused" in row else "; not exact"
        place = "" if "answer" in row else "*whole answer:* "
        lines.append(f"| {name} | {place}{_code(written)} | {_given(row)} | {cut}{inexact} |\n")
    return "".join(lines)


def _given(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"refused: {row['refused']}"
    if "entries" in row and len(row["entries"]) > 8:
        return f"{len(row['entries'])} entries"
    if "entries" in row:
        return "<br>".join(f"{_code(topic)}: {_code(content)}" for topic, content in row["entries"])
    return "the same" if row["text"] == row.get("answer") else _code(row["text"])


def _code(text: str) -> str:
    """Text in one cell of a table, letter by letter but for line ends."""
    shown = text.replace("\r", "␍").replace("\t", "⇥").replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    shown = shown.replace("`", "&#96;").replace("*", "&#42;").replace("_", "&#95;").replace("\n", "↵<br>")
    return f"<code>{shown}</code>" if text else "(nothing)"


if __name__ == "__main__":
    print(page(), end="")
