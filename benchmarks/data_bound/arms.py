"""The arms: what each changes of untuned repetition, and the sweeps that tune two of them."""

from __future__ import annotations

from dataclasses import dataclass

BATCH_TOKENS = 16 * 256
UNIQUE = 300_000
EPOCHS = 12
MEMBERS = (1, 2, 3, 4)
"""Seeds of the models that the student learns from."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train on so much text."""

    about: str
    settings: tuple[str, ...] = ()
    sweep: str | None = None
    """Whose best recipe it begins from, in place of untuned repetition."""
    unique: int = UNIQUE
    epochs: int = EPOCHS
    seeds: tuple[int, ...] = (1, 2, 3)
    teachers: str | None = None
    """The arm whose models it learns from."""

    @property
    def length(self) -> list[str]:
        """Settings of as many steps as its epochs take, with a decay of the rate over the last 40 % of them."""
        steps = round(self.unique * self.epochs / BATCH_TOKENS)
        return [
            f"corpus.max_train_tokens={self.unique}",
            f"pretrain.max_steps={steps}",
            f"pretrain.schedule.total_steps={steps}",
            f"pretrain.schedule.decay_steps={round(0.4 * steps)}",
            f"pretrain.eval_every={max(1, steps // 16)}",
        ]


_DROPOUT = ("pretrain.dropout.embedding=0.1", "pretrain.dropout.residual=0.1")
_EMA = ("pretrain.ema.decay=0.99", "pretrain.evaluate_with=ema")
ARMS = {
    "untuned": Arm(about="AdamW, decay 0.1"),
    "tuned": Arm(about="AdamW, rate and decay tuned", sweep="tuned"),
    "muon": Arm(about="Muon, decay 0.1", settings=("pretrain.optimizer.name=muon",)),
    "dropout": Arm(about="dropout 0.1", settings=_DROPOUT),
    "ema": Arm(about="EMA 0.99", settings=_EMA),
    "all": Arm(about="optimizer, decay and dropout tuned together, EMA", sweep="all", seeds=(*MEMBERS, 5)),
    "student": Arm(
        about="the same, learning from four of them",
        sweep="all",
        settings=("pretrain.distill.share=0.7",),
        seeds=(11, 12, 13),
        teachers="all",
    ),
    "unique-600k": Arm(about="untuned, twice the text", unique=600_000, epochs=10),
    "unique-1200k": Arm(about="untuned, four times the text", unique=1_200_000, epochs=8, seeds=(1,)),
    "unique-2400k": Arm(about="untuned, eight times the text", unique=2_400_000, epochs=5, seeds=(1,)),
    "tuned-600k": Arm(about="tuned, twice the text", sweep="tuned", unique=600_000, epochs=10, seeds=(1,)),
    "tuned-1200k": Arm(about="tuned, four times the text", sweep="tuned", unique=1_200_000, epochs=8, seeds=(1,)),
    "tuned-2400k": Arm(about="tuned, eight times the text", sweep="tuned", unique=2_400_000, epochs=5, seeds=(1,)),
}
CURVES = {
    "untuned repetition": ("untuned", "unique-600k", "unique-1200k", "unique-2400k"),
    "tuned repetition": ("tuned", "tuned-600k", "tuned-1200k", "tuned-2400k"),
}
"""Whose losses say what so many unique tokens are worth; the first of each is among the arms that are compared."""
LARGER = tuple(name for names in CURVES.values() for name in names[1:])
"""Arms of more text, which are on the curves alone."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A call of `synpro sweep`."""

    over: tuple[str, ...]
    trials: int
    settings: tuple[str, ...] = ()


SWEEPS = {
    "tuned": Sweep(
        over=("pretrain.optimizer.weight_decay=0.1..3:log", "pretrain.optimizer.lr=5e-4..8e-3:log"), trials=8
    ),
    "all": Sweep(
        over=(
            "pretrain.optimizer.name=adamw,muon",
            "pretrain.optimizer.weight_decay=0.2..3:log",
            "pretrain.dropout.residual=0..0.2:0.05",
        ),
        trials=10,
        settings=("pretrain.dropout.embedding=0.1", *_EMA),
    ),
}
