"""How sources share the samples: weights, and which source gives the next sample.

The state is the number of samples that each source has given, so a run goes on from where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from synpro_engine.config import Config, UserError
from synpro_engine.data.corpus import TokenCorpus

_TOGETHER = 1 << 16  # positions looked at at once
_NEAR = 1e-6  # rounding of shares of billions of samples


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
        """Count so many samples as given, as `next` would; years of pretraining in no time."""
        if len(self._shares) == 1:
            self.drawn[next(iter(self._shares))] += samples
            return
        ahead = self._ahead(samples)
        if ahead is not None:
            self.drawn |= ahead
            return
        for _ in range(samples):
            self.next()

    def _ahead(self, samples: int) -> dict[str, int] | None:
        """What has been drawn so many samples on; None where counts are not as `next` left them.

        Sample k of a source may come from position (k - 1 + slack) / share on and is due at (k - slack) / share, and
        the earliest due is served first. So samples due until some time wait for none that are due later: as in any
        queue with one served at a time (Lindley), of those N positions on as many are served as the least over all p of
        what may come until p, and N - p. Far back that is N: there all that may come is due in time.
        """
        names, begin = list(self._shares), sum(self.drawn.values())
        share_n, drawn_n = np.array([self._shares[n] for n in names]), np.array([self.drawn[n] for n in names])
        end = begin + samples
        if np.abs(drawn_n - share_n * begin).max() >= 1:
            return None
        # Due by then, and so given; of what may come beside it some is.
        found_n = np.maximum(drawn_n, np.floor(share_n * end + self._slack - _NEAR).astype(np.int64))
        most_n = self._may_come(np.array([end]), share_n)[0]
        open_ = [(i, k) for i in range(len(names)) for k in range(int(found_n[i]) + 1, int(most_n[i]) + 1)]
        if open_:
            last_Cn = np.array([self._not_behind(i, k, share_n) for i, k in open_])
            without_Cn = last_Cn.copy()
            without_Cn[np.arange(len(open_)), [i for i, _ in open_]] -= 1
            served = self._served(begin, end, share_n, drawn_n, np.concatenate([last_Cn, without_Cn]))
            for (i, _), given in zip(open_, served[: len(open_)] > served[len(open_) :], strict=True):
                found_n[i] += given
        return dict(zip(names, found_n.tolist(), strict=True)) if found_n.sum() == end else None

    def _may_come(self, positions_P: NDArray[np.int64], share_n: NDArray[np.float64]) -> NDArray[np.int64]:
        """Samples of each source that may come until a position, [P, n]; as `next` says it, to the last bit."""
        due_Pn = share_n * positions_P[:, None]
        whole_Pn = np.floor(due_Pn)
        return whole_Pn.astype(np.int64) + (due_Pn - whole_Pn >= self._slack - 1e-9)

    def _not_behind(self, source: int, sample: int, share_n: NDArray[np.float64]) -> list[int]:
        """The last sample of each source that goes before `sample` of `source`, or is it."""
        due, found = (sample - self._slack) / float(share_n[source]), list[int]()
        for i, share in enumerate(share_n.tolist()):
            last = int(share * due + self._slack) + 2
            # Of two that are due at one time the first source is served.
            while ((last - self._slack) / share, i) > (due, source):
                last -= 1
            found.append(last)
        return found

    def _served(
        self, begin: int, end: int, share_n: NDArray[np.float64], drawn_n: NDArray[np.int64], last_Cn: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """How many samples up to `last` are served from `begin` to `end`, [C]."""
        served_C = np.full(len(last_Cn), end - begin)
        # Before, all that may come is due by `end`.
        far = end - int((1 - 2 * self._slack) / share_n.min()) - 2
        for start in range(max(begin, far) + 1, end + 1, _TOGETHER):
            positions_P = np.arange(start, min(start + _TOGETHER, end + 1))
            may_Pn = self._may_come(positions_P, share_n)
            for c, last_n in enumerate(last_Cn):
                waiting_P = np.maximum(np.minimum(may_Pn, last_n) - drawn_n, 0).sum(1) + end - positions_P
                served_C[c] = min(served_C[c], waiting_P.min())
        return served_C
