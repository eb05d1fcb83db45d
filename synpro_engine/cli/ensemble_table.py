"""What `synpro ensemble` found, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from synpro_engine.cli.plan_table import aligned
from synpro_engine.cycle.scoring.ensemble import EnsembleQuestions, EnsembleResult


def lines(found: EnsembleResult) -> Iterator[str]:
    """Loss in nats a token: of each model, of all up to it together, and of all; and their answers to questions."""
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
    for name, asked in found.questions.items():
        yield from _answers(found, name, asked)


def _answers(found: EnsembleResult, name: str, asked: EnsembleQuestions) -> Iterator[str]:
    """How a set of questions was answered, by each model and all up to it."""
    yield f"{name}: {asked.questions:,} questions, of which guessing answers {asked.chance:.1%}".replace("%", " %")
    both = [(member.path, member.answers[name], member.answers_together[name]) for member in found.members]
    yield from aligned(
        [
            ("model", "accuracy", "together", "by bytes", "together", "bits a byte", "together"),
            *(
                (
                    path, f"{own.accuracy:.3f}", f"{all_.accuracy:.3f}", f"{own.accuracy_per_byte:.3f}",
                    f"{all_.accuracy_per_byte:.3f}", f"{own.bits_per_byte:.4f}", f"{all_.bits_per_byte:.4f}",
                )
                for path, own, all_ in both
            ),
        ]
    )  # fmt: skip
