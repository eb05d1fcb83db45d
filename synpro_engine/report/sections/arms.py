"""The arms after the plateau: their losses while they train, and on text that none has seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from statistics import fmean

from synpro_engine.evaluate import bits_per_byte
from synpro_engine.report import svg
from synpro_engine.report.looks import look_of
from synpro_engine.report.numbers import half_interval, standard_error
from synpro_engine.report.sections.pretraining import Curve, Pretraining, label_loss_axes
from synpro_engine.report.svg import Panel

_FEW_SEEDS = 3  # from which on an interval is drawn: that of two is over ten times as wide as what they are apart
_TAIL = 0.5  # of pretraining an arm's panel shows as a share of the arm's own length, so that the arms fill it


@dataclass(frozen=True, kw_only=True)
class SourceLoss:
    """The part of a `HeldOutLoss` that is on documents of one source."""

    nats: float | None
    tokens: int
    utf8_bytes: int
    documents: int

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per UTF-8 byte, NaN where they are not finite."""
        return bits_per_byte(nan if self.nats is None else self.nats, self.utf8_bytes) if self.utf8_bytes else None


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Cross-entropy of one model on text that no arm has seen. `nats` is the sum over `tokens` predicted tokens, which
    spell `utf8_bytes` bytes; None where it is not finite, for which JSON has no number."""

    name: str
    nats: float | None
    tokens: int
    utf8_bytes: int
    documents: int | None = None
    text: str = "validation"
    """The validation split, or held-out tasks, of whose prompts no token counts."""
    seed: int | None = None
    """With which it was trained, where that is not the run's own."""
    by_source: Mapping[str, SourceLoss] = field(default_factory=dict)
    """Of the validation split, where its documents are of several sources, by these."""

    @property
    def per_token(self) -> float | None:
        """Mean cross-entropy in nats per token, NaN where it is not finite; depends on the tokenizer."""
        return self._sum / self.tokens if self.tokens else None

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per UTF-8 byte, NaN where they are not finite; does not depend on the tokenizer."""
        return bits_per_byte(self._sum, self.utf8_bytes) if self.utf8_bytes else None

    @property
    def _sum(self) -> float:
        return nan if self.nats is None else self.nats


@dataclass(frozen=True, kw_only=True)
class DataEfficiency:
    """What a table of a plain recipe's losses says of a model's: a multiple of the unique tokens, as `6.1x`."""

    name: str
    value: str
    unique_tokens: int


@dataclass(frozen=True, kw_only=True)
class Compared:
    """An arm's nats per token on a text, over its seeds; `difference` is of the same seeds of the arm compared with.

    `error` is the difference's standard error over seeds, None of one alone: it knows of the order that was read, and
    of no other theta and no other synthetic text.
    """

    name: str
    text: str
    by_seed: Mapping[int | None, float]
    difference: float | None = None
    error: float | None = None

    @property
    def mean(self) -> float:
        """Over seeds."""
        return fmean(self.by_seed.values())


def over_seeds(curves: Sequence[Curve]) -> Curve:
    """One curve of an arm's, each of another seed: their mean, at the steps that all of them have.

    The band is the 95 % interval of the mean by Student's t, and of two seeds from the one to the other.
    """
    if len(curves) == 1:
        return curves[0]
    of_seeds = [dict(zip(curve.steps, curve.loss, strict=True)) for curve in curves]
    steps = sorted(set(of_seeds[0]).intersection(*of_seeds[1:]))
    losses = [[losses[step] for losses in of_seeds] for step in steps]
    bands = [_band(values) for values in losses]
    return Curve(
        name=curves[0].name,
        kind=curves[0].kind,
        steps=tuple(steps),
        loss=tuple(fmean(values) for values in losses),
        seeds=len(curves),
        low=tuple(low for low, _ in bands),
        high=tuple(high for _, high in bands),
    )


def _band(losses: Sequence[float]) -> tuple[float, float]:
    if len(losses) < _FEW_SEEDS:
        return min(losses), max(losses)
    mean, half = fmean(losses), half_interval(losses)
    return mean - half, mean + half


@dataclass(frozen=True, kw_only=True)
class Arms:
    """Losses of the arms; those on held-out text also of the model that they went on from. Curves are over seeds."""

    curves: tuple[Curve, ...] = ()
    held_out: tuple[HeldOutLoss, ...] = ()
    compared_with: str | None = None
    """The arm that the others are held against; None where no arms are named."""
    read_otherwise: tuple[str, ...] = ()
    """Arms whose `pretrain.separate_documents` is not the recipe's."""

    @property
    def several(self) -> bool:
        """Whether seeds are told."""
        return any(row.seed is not None for row in self.held_out)

    @property
    def by_source(self) -> list[HeldOutLoss]:
        """Those that are told by source."""
        return [row for row in self.held_out if row.by_source]

    @property
    def compared(self) -> list[Compared]:
        """Each arm on each text; nothing where there is no arm to compare with."""
        losses: dict[tuple[str, str], dict[int | None, float]] = {}
        for row in self.held_out if self.compared_with is not None else ():
            if row.per_token is not None:
                losses.setdefault((row.name, row.text), {})[row.seed] = row.per_token
        found = []
        for (name, text), by_seed in losses.items():
            base = losses.get((self.compared_with or "", text), {})
            pairs = [by_seed[seed] - base[seed] for seed in by_seed if seed in base and name != self.compared_with]
            error = standard_error(pairs) if len(pairs) > 1 else None
            mean = fmean(pairs) if pairs else None
            found.append(Compared(name=name, text=text, by_seed=by_seed, difference=mean, error=error))
        return found

    def panels(self, pretraining: Pretraining) -> list[Panel]:
        """Loss of the arms after the plateau, one panel for each kind of text it was measured on."""
        return [self._loss(kind, pretraining) for kind in dict.fromkeys(curve.kind for curve in self.curves)]

    def _loss(self, kind: str, pretraining: Pretraining) -> Panel:
        curves = [curve for curve in self.curves if curve.kind == kind]
        ends = [step for curve in curves for step in (*curve.steps[:1], *curve.steps[-1:])]
        shown_from = min(ends) - _TAIL * (max(ends) - min(ends)) if ends else float("-inf")
        names = list(dict.fromkeys(curve.name for curve in self.curves))
        with svg.panel(
            f"arms-{kind}",
            f"Loss of each arm on {kind} text",
            title=f"{'Training' if kind == 'train' else kind.capitalize()} loss of the arms",
            caption=f"Cross-entropy of each arm on {_which_text(kind)}; grey is the common past before the plateau."
            f"{_which_band(curves)}",
            height=300,
        ) as panel:
            axes = panel.axes
            for before in (curve for curve in pretraining.curves if curve.kind == kind):
                tail = [at for at, step in enumerate(before.steps) if step >= shown_from]
                steps, losses = [before.steps[at] for at in tail], [before.loss[at] for at in tail]
                axes.plot(steps, losses, color=svg.GREY, lw=1.2, **svg.point_marks(before.steps))
            for curve in curves:
                colour, dash = look_of(curve.name, names)
                width = 1.0 if kind == "train" else 1.7
                marks = svg.point_marks(curve.steps)
                if curve.seeds > 1:
                    svg.band(axes, curve.steps, curve.low, curve.high, colour)
                axes.plot(curve.steps, curve.loss, color=colour, ls=dash, lw=width, label=curve.name, **marks)
            label_loss_axes(axes)
            if pretraining.plateau is not None:
                pretraining.plateau.mark(axes)
            svg.legend_above(axes, columns=2)
        return panel


def _which_text(kind: str) -> str:
    if kind == "train":
        return "its own training text, which is another for each arm: these lines must not be compared"
    return f"the same {kind} text"


def _which_band(curves: Sequence[Curve]) -> str:
    """What lines and bands are of; nothing where each line is one seed's."""
    seeds = {curve.name: curve.seeds for curve in curves}
    if max(seeds.values()) == 1:
        return ""
    kinds = {
        "the 95 % interval of the mean (Student's t)": any(number >= _FEW_SEEDS for number in seeds.values()),
        "from the lower to the higher of two seeds": 2 in seeds.values(),
    }
    told = ", or ".join(kind for kind, drawn in kinds.items() if drawn)
    if len(set(seeds.values())) == 1:
        return f" Lines are means over {max(seeds.values())} seeds at the steps that all have, bands {told}."
    number = ", ".join(f"{name}: {number}" for name, number in seeds.items())
    return f" Lines are means over seeds ({number}) at the steps that all have, bands {told}."
