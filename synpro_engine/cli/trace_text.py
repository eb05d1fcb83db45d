"""What a trace found, in lines for a reader."""

from __future__ import annotations

from collections.abc import Iterator

from synpro_engine.config import json_text
from synpro_engine.cycle.tracing import DocumentTrace, Life, SyntheticText, TokenPart, TokenTrace
from synpro_engine.report.terminal import printable

_SHOWN = 300  # characters of a text
_PLACES = 8


def lines(found: TokenTrace | DocumentTrace) -> Iterator[str]:
    """The lines, without newlines and without what could drive a terminal."""
    parts = _token(found) if isinstance(found, TokenTrace) else _document(found)
    return (printable(line) for line in parts)


def _token(found: TokenTrace) -> Iterator[str]:
    target = "without loss" if found.next_id is None else f"predicts {found.next_id}"
    yield f"{found.stage}, step {found.step}, row {found.row}, token {found.token}: id {found.id}, {target}"
    yield f"source     {found.source}, window {found.window}"
    own = _span(found.characters) if found.part is None else f", of {found.part.parts} texts"
    yield f"document   {found.document}, token {found.offset} of {found.document_tokens}{own}"
    if found.part is not None:
        yield _part(found.part, found.characters)
    yield f"text       ...{found.before}>>>{found.text}<<<{found.after}..."
    if found.synthetic is not None:
        yield from _synthetic(found.synthetic)


def _part(part: TokenPart, characters: tuple[int, int] | None) -> str:
    where = "in the separator in front of it" if part.offset < 0 else f"token {part.offset} of {part.tokens}"
    kind = "organic" if part.operation is None else part.operation
    return f"part       {part.number} ({kind}) {part.id}, {where}{_span(characters)}"


def _span(characters: tuple[int, int] | None) -> str:
    return "" if characters is None else f", characters {characters[0]}-{characters[1]}"


def _document(found: DocumentTrace) -> Iterator[str]:
    kind = "cut into pieces" if found.pieces else "left out" if found.left_out else f"organic, split {found.split}"
    kind = "organic, for oracles alone" if found.split == "unique" else kind
    kind = f"stitched of {len(found.parts)} texts" if found.parts else kind
    of = "" if found.arm is None else f", arm {found.arm}"
    yield f"{found.document}: {'synthetic' if found.synthetic is not None else kind}{of}"
    if found.also:
        have = "has" if len(found.also) == 1 else "have"
        yield f"also       {', '.join(found.also)} {have} another text of this id: --arm"
    if found.text is not None:
        yield f"text       {len(found.text)} characters: {_shortened(found.text)}"
    if found.synthetic is not None:
        yield from _synthetic(found.synthetic)
    yield from (f"piece      {piece}, split {split}" for split, piece in found.pieces)
    yield from (f"left out   {line['reason']}: {line['why']}" for line in found.left_out)
    if found.life is not None:
        yield _fate(found.life, found.document)
        yield from _read(found.life)
    for part in found.parts:
        yield f"part       {part.operation or 'organic'}, {part.id}, {part.tokens} tokens"
    for within in found.within:
        life = Life(fate="kept", tokens=within.tokens, read=within.read)
        yield _fate(life, f"again in {within.id} ({within.stage})")
    for made in found.made:
        where = ", ".join(f"{start}-{end}" for start, end in made.slices)
        yield _fate(made.life, f"{made.id} ({made.stage}, characters {where})")


def _fate(life: Life, what: str) -> str:
    if life.tokens is None:
        return f"{life.fate:<10} {what}" + f"; {life.why}" * (life.why is not None)
    trained = ", ".join(f"{read.tokens} by {read.stage}" for read in life.read if read.tokens)
    return f"{life.fate:<10} {what}, {life.tokens} tokens; trained on: {trained or 'none'}"


def _read(life: Life) -> Iterator[str]:
    for read in life.read:
        shown = ", ".join(f"step {step} row {row}" for step, row, _ in read.places[:_PLACES]) or "never"
        more = len(read.places) - _PLACES
        yield f"read       {read.stage}: {shown}" + f" and {more} more (--json has all)" * (more > 0)


def _synthetic(text: SyntheticText) -> Iterator[str]:
    # Records that older versions wrote say neither round nor probe nor judges, and refused answers have no rewards.
    origin = text.record["provenance"]
    yield f"made by    {text.stage}, sample {origin['member']}, seed {origin['seed']}"
    yield f"prompt     {origin['operation']}, version {origin['prompt_version']}"
    yield f"generator  {origin['generator']}, {json_text(origin['sampling'])}"
    rewards, judges = text.record.get("rewards", {}), origin.get("judges", {})
    yield f"rewards    {', '.join(f'{name} {value:.4g}' for name, value in rewards.items()) or 'none'}"
    for judge in dict.fromkeys(judges.values()):
        yield f"judged by  {judge}: {', '.join(name for name, its in judges.items() if its == judge)}"
    if origin.get("influence"):
        yield f"influence  measured with the probe {origin['influence']}"
    yield f"filters    {', '.join(f'{name} {value}' for name, value in text.filters.items()) or 'none'}"
    for passage in text.passages:
        yield f"from       {passage.document}, characters {passage.start}-{passage.end}: {_shortened(passage.text)}"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]}"
