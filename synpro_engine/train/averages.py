"""Averages of the weights that training goes through: fp32, of each rank's own share, like the optimizer's states.

An average is one number beside each fp32 master weight that this rank's optimizer owns. It is updated after a step, and
takes the masters' place while the model is to hold it: the two exchange their contents, so that no third copy is needed
and what was there comes back bit for bit. Equal weights have equal averages, entry by entry, however they are cut.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from synpro_engine.train.config import AverageConfig, EmaConfig
from synpro_engine.train.owned import MegatronOptimizer, Shard, owned_shards

_EXCHANGED = 1 << 24  # entries at once: what an exchange takes of memory for a moment


class WeightAverage:
    """One running average of the weights of an engine. taken: how many weights are in it."""

    def __init__(self, config: AverageConfig, optimizer: MegatronOptimizer) -> None:
        self.config = config
        self.taken = 0
        self._shards = list(owned_shards(optimizer))
        sizes = [shard.main.numel() for shard in self._shards]
        device = self._shards[0].main.device if self._shards else None
        self.memory = torch.empty(sum(sizes), dtype=torch.float32, device=device)
        """All that this rank holds of it."""
        self._of = dict(zip((s.main for s in self._shards), self.memory.split(sizes), strict=True))

    def of(self, shard: Shard) -> Tensor:
        """The average of a shard of the same optimizer, flat and fp32: the very memory."""
        return self._of[shard.main]

    @torch.no_grad()
    def add(self, step: int) -> None:
        """Take the weights after `step` steps, if they are to be taken."""
        if step <= self.config.start or step % self.config.every:
            return
        self.taken += 1
        share = share_of_newest(self.config, self.taken)
        for shard, average in self._pairs():
            main = shard.main.detach().view(-1)
            # The first weights are not added to what lies there: a NaN would stay one even times 0.
            average.copy_(main) if self.taken == 1 else average.lerp_(main, share)

    @torch.no_grad()
    def exchange(self) -> None:
        """Let the average and this rank's master weights change places, and the model's weights follow the latter.

        Other ranks' shares of the model stay as they were: they have to be gathered afterwards.
        """
        for shard, average in self._pairs():
            main = shard.main.detach().view(-1)
            for here, there in zip(main.split(_EXCHANGED), average.split(_EXCHANGED), strict=True):
                held = here.clone()
                here.copy_(there)
                there.copy_(held)
            # Of an fp32 parameter the master is a view, and this copies it onto itself.
            shard.parameter.detach().view(-1)[shard.start : shard.stop].copy_(main)

    def _pairs(self) -> Iterator[tuple[Shard, Tensor]]:
        return ((shard, self.of(shard)) for shard in self._shards)


def share_of_newest(config: AverageConfig, taken: int) -> float:
    """The factor of the newest of `taken` weights in their average; the average before has what is left.

    1 / n of a plain mean; of an exponential one (1 - d) / (1 - d^n), which makes the factors of all n weights
    d^(n-i) over their sum.
    """
    assert taken > 0
    if isinstance(config, EmaConfig):
        return (1.0 - config.decay) / (1.0 - config.decay**taken)
    return 1.0 / taken
