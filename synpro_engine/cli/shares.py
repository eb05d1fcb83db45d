"""One document's per-token shares for a reader: text in colours on a terminal, numbers in a file or a pipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TextIO

from synpro_engine.cycle.scoring.explain import Explanation
from synpro_engine.report.terminal import printable

# Backgrounds of the 256-colour table, pale to strong, on which black letters are read.
_RED, _GREEN = (224, 217, 210, 203), (194, 157, 114, 77)
_RESET = "\x1b[0m"
_SHARES_BY = {
    "loss token": "how much the loss of predicting this token falls",
    "site": "what the layers add where this token is predicted, to its own loss or to those of later tokens",
}


def show(explanation: Explanation, file: TextIO) -> None:
    """Write the explanation to `file`, coloured where that is a terminal and NO_COLOR is not set."""
    coloured = file.isatty() and not os.environ.get("NO_COLOR")
    lines = _text(explanation) if coloured else _table(explanation)
    file.writelines(line + "\n" for line in [*_head(explanation), *lines, *_total(explanation)])


def _head(explanation: Explanation) -> Iterator[str]:
    score = explanation.score
    yield f"{printable(explanation.id)}: influence {score.value:+.6f} nats per token ({explanation.estimator})"
    windows = f" in {score.windows} windows, none of which sees the one before" * (score.windows > 1)
    yield f"{score.tokens} tokens{windows}, loss {score.loss:.4f} nats per token"
    meaning = _SHARES_BY[explanation.shares_by]
    yield f"a share is a token's part of the influence: {meaning}; positive helps the reference"


def _total(explanation: Explanation) -> Iterator[str]:
    shares = [share for _, share in explanation.pieces]
    up, down = sum(share for share in shares if share > 0), sum(share for share in shares if share < 0)
    yield f"total {sum(shares):+.6f} = {up:+.6f} of positive and {down:+.6f} of negative shares"


def _table(explanation: Explanation) -> Iterator[str]:
    yield ""
    for text, share in explanation.pieces:
        yield f"{share:+.6f}\t{ascii(text) if not text.isprintable() else repr(text)}"
    yield ""


def _text(explanation: Explanation) -> Iterator[str]:
    sizes = sorted(abs(share) for _, share in explanation.pieces)
    # The size from which the strongest colour stands: one token in fifty has more, so that one does not hide all.
    scale = sizes[int(0.98 * (len(sizes) - 1))] if sizes else 0.0
    steps = len(_RED) + 1
    low = [_painted(f" {-scale * (index + 1) / steps:+.1e} ", _RED[index]) for index in reversed(range(len(_RED)))]
    high = [_painted(f" {scale * (index + 1) / steps:+.1e} ", _GREEN[index]) for index in range(len(_GREEN))]
    yield "share at least: " + "".join([*low, "  0  ", *high])
    yield ""
    yield "".join(_painted(text, _background(share, scale)) for text, share in explanation.pieces)
    yield ""


def _background(share: float, scale: float) -> int | None:
    """None for the fifth of the scale around 0."""
    if not scale or not abs(share) >= scale / (len(_RED) + 1):
        return None
    step = min(len(_RED), int(abs(share) / scale * (len(_RED) + 1))) - 1
    return (_GREEN if share > 0 else _RED)[step]


def _painted(text: str, background: int | None) -> str:
    """One piece; line ends stay, other control characters could drive the terminal."""
    parts = [printable(part) for part in text.split("\n")]
    if background is None:
        return "\n".join(parts)
    shown = [*(part + "↵" for part in parts[:-1]), parts[-1]]  # a coloured line end must be seen
    return "\n".join(f"\x1b[30;48;5;{background}m{part}{_RESET}" if part else "" for part in shown)
