"""How sources share the samples: weights, and which source gives the next sample.

The state is the number of samples that each source has given, so a run goes on from where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, model_validator

from synpro_engine.config import Config, UserError
from synpro_engine.data.corpus import TokenCorpus


class SourceConfig(Config):
    """One tokenised corpus of a mixture. Without weight and epochs it counts by its tokens."""

    name: str = Field(min_length=1)
    """Its name in the logs and in the checkpoint's data position."""
    path: str = Field(min_length=1)
    """A shard directory."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the samples relative to the other weights; all sources have one or none has."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over this source relative to the others (1 where another source names it)."""

    @model_validator(mode="after")
    def _one_of(self) -> SourceConfig:
        if self.weight is not None and self.epochs is not None:
            raise ValueError("give a weight or epochs, not both")
        return self

    @property
    def directory(self) -> Path:
        """`path` as a Path."""
        return Path(self.path)


def mixture_weights(sources: Sequence[SourceConfig], corpora: Mapping[str, TokenCorpus]) -> dict[str, float]:
    """Return a weight for each source: its own, or tokens x epochs (x 1: the sources concatenated and shuffled).

    Raises UserError where a name is used twice, or some sources have weights and others none.
    """
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise UserError(f"sources: a name is used twice ({', '.join(names)})")
    weights = {source.name: source.weight for source in sources if source.weight is not None}
    if weights and len(weights) < len(sources):
        missing = next(name for name in names if name not in weights)
        raise UserError(f"sources: `{missing}` has no weight, others do; give each one or none")
    return weights or {s.name: float(corpora[s.name].num_tokens * (s.epochs or 1.0)) for s in sources}


class Blend:
    """Deals samples to sources so that after each one every source has its share to within one sample.

    Tijdeman's algorithm for the chairman assignment problem (Discrete Mathematics 32, 1980): among the sources
    that lag far enough, the one whose next sample is due first. Always serving the largest lag is simpler, but
    with many sources its error grows beyond one sample.
    """

    def __init__(self, weights: Mapping[str, float], drawn: Mapping[str, int] | None = None) -> None:
        """`weights` are of any sum, and of 0 for sources that give none; `drawn` the samples given so far (none)."""
        total = sum(weights.values())
        self.drawn = {name: (drawn or {}).get(name, 0) for name in weights}
        self._shares = {name: weight / total for name, weight in weights.items() if weight}
        # Tijdeman's constant: with it no source is ever more than 1 - 1/(2n - 2) samples from its share.
        self._slack = 1 / (2 * len(self._shares) - 2) if len(self._shares) > 1 else 0.0

    def next(self) -> str:
        """Return the name of the source of the next sample and count it."""
        # From the counts alone, so that they are all the state there is.
        position = sum(self.drawn.values()) + 1
        # A hair below the bound, so that rounding cannot leave no source at all.
        lagging = [n for n, w in self._shares.items() if w * position - self.drawn[n] >= self._slack - 1e-9]
        chosen = min(lagging, key=lambda n: (self.drawn[n] + 1 - self._slack) / self._shares[n])
        self.drawn[chosen] += 1
        return chosen

    def skip(self, samples: int) -> None:
        """Count so many samples as given, as `next` would."""
        if len(self.drawn) == 1:  # years of pretraining in no time
            self.drawn = {name: count + samples for name, count in self.drawn.items()}
            return
        for _ in range(samples):
            self.next()
