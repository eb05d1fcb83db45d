"""What `synpro ensemble` found, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from synpro_engine.cli.plan_table import aligned
from synpro_engine.cycle.scoring.ensemble import EnsembleResult


def lines(found: EnsembleResult) -> Iterator[str]:
    """Loss in nats a token: of each model, of all up to it together, and of all."""
    texts = list(found.texts)
    yield ", ".join(f"{name}: {found.texts[name].tokens:,} tokens" for name in texts) + f"; windows of {found.seq_len}"
    head = ("model", *(column for name in texts for column in (name, "together")))
    rows = [
        (member.path, *(f"{of[name]:.4f}" for name in texts for of in (member.loss, member.together)))
        for member in found.members
    ]
    yield from aligned([head, *rows])
    shown = ", ".join(
        f"{name} {found.loss[name]:.4f} nats a token"
        + (f" ({found.bits_per_byte[name]:.4f} bits a byte)" if name in found.bits_per_byte else "")
        for name in texts
    )
    yield f"the {len(found.members)} together, by the mean of their probabilities: {shown}"
