"""Muon's next step as a function of its gradients, matrix by matrix, and its differential at typical steps.

Muon moves a matrix by its orthogonalised momentum U(N), in which every entry of a gradient reaches every entry of the
update: what AdamW's denominators are for it is the Jacobian J of U, in which a change dM of the momentum gives J dM. A
text's gradient g moves the reference by <g_ref, J g>, which is <J^T g_ref, g>: the direction is J^T g_ref, the mean of
it over the steps that stand for a typical one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synpro_engine.dist import sum_over
from synpro_engine.train.engine import Engine
from synpro_engine.train.homes import Work
from synpro_engine.train.muon import Muon
from synpro_engine.train.muon_update import (
    Place,
    Places,
    fused,
    gradient_share,
    looked_ahead,
    pulled_back,
    single_matrices,
    size_of,
)
from synpro_engine.train.optimizer import MOMENTUM
from synpro_engine.train.owned import Shard

_LEAST = 0.1
"""Momenta that are shorter count as so much of the sampled steps' root mean square."""

Tensors = Mapping[str, Tensor]
"""By the parameter's name, fp32 and of its local shape, the same on all replicas."""


@dataclass(frozen=True)
class _Sample:
    """What single matrices of one shape were orthogonalised from in a step: [B, M, N], on the host, and its size."""

    ahead_BMN: Tensor
    size: Tensor


class NextMuon:
    """The next step of an engine's Muon, of the matrices that it moves. Collective over the job.

    The steps that `linear` is the mean over are kept on the host: as many copies of all matrices, each at its home
    rank, in the precision that ranks send each other.
    """

    def __init__(self, engine: Engine, muon: Muon) -> None:
        config = engine.optimizer_config
        self._muon, self._config, self._model = muon, config.muon, engine.model
        self._lr = engine.lr * config.muon.lr / config.lr  # of one schedule
        self._parameters = {name: p for name, p in engine.model.named_parameters() if name in muon.names}
        self._names = {id(p): name for name, p in self._parameters.items()}
        self._sampled: dict[Places, list[_Sample]] = {}

    @property
    def gradient_share(self) -> float:
        """What a step's own gradient is multiplied by before it is orthogonalised."""
        return gradient_share(self._config)

    def update(self, clipped: Tensors, *, keep: bool) -> dict[str, Tensor]:
        """theta - theta' of a step with these clipped gradients, without decay.

        keep: the step becomes one that `linear` is the mean over.
        """

        def work(whole: dict[str, Tensor]) -> dict[str, Tensor]:
            if keep:
                self._keep(whole)
            return self._muon.updates(whole, self._config)

        made = self._on_whole(self._ahead(clipped, 1.0), work, self._muon.products(self._config))
        return {name: update.mul_(self._lr) for name, update in made.items()}

    def keep(self, gradients: Tensors, factor: float) -> None:
        """Make a step with `factor` times these gradients one that `linear` is the mean over."""
        for _, whole in self._muon.wholes(self._ahead(gradients, factor), self._muon.products(self._config)):
            self._keep(whole)

    def linear(self, gradient: Tensors) -> dict[str, Tensor]:
        """The mean of J^T `gradient`, at a rate of 1: what a small change of the momentum has to do with it."""

        def work(whole: dict[str, Tensor]) -> dict[str, Tensor]:
            config, found = self._model.config, dict[Place, Tensor]()
            for places, along in single_matrices(config, whole):
                found |= zip(places, self._mean_pulled(self._sampled[places], along), strict=True)
            return fused(config, found)

        return self._on_whole(lambda own: self._part(gradient, own), work, torch.float32)

    def _mean_pulled(self, samples: Sequence[_Sample], along_BMN: Tensor) -> Tensor:
        # A step whose momentum is next to nothing would rule the mean, by a J that holds for changes yet smaller. The
        # reference's own step is a sample too, so that its momentum bounds every matrix.
        least = _LEAST * torch.stack([sample.size for sample in samples]).square().mean(0).sqrt()
        total = torch.zeros_like(along_BMN)
        for sample in samples:
            # One at a time on the device.
            total += pulled_back(sample.ahead_BMN.to(along_BMN), along_BMN, self._config, least)
        return total.div_(len(samples))

    def _keep(self, whole: dict[str, Tensor]) -> None:
        for places, stack in single_matrices(self._model.config, whole):
            # Pageable memory: each is read once a reference, ahead of products that take far longer than the copy.
            sample = _Sample(stack.cpu(), size_of(stack, self._config))
            self._sampled.setdefault(places, []).append(sample)

    def _ahead(self, gradients: Tensors, factor: float) -> Callable[[Shard], Tensor]:
        """What a shard gives to the matrices that are orthogonalised; its momentum stays as it is."""

        def ahead(own: Shard) -> Tensor:
            gradient = self._part(gradients, own) * factor
            before = own.state[MOMENTUM] if own.state else torch.zeros_like(gradient)
            return looked_ahead(gradient, before.lerp(gradient, 1.0 - self._config.momentum), self._config)

        return ahead

    def _part(self, tensors: Tensors, own: Shard) -> Tensor:
        return tensors[self._names[id(own.parameter)]].reshape(-1)[own.start : own.stop]

    def _on_whole(self, of: Callable[[Shard], Tensor], work: Work, dtype: torch.dtype) -> dict[str, Tensor]:
        """`Muon.on_whole`, put together: by name, on every replica."""
        found = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self._parameters.items()}
        for rectangle, made in self._muon.on_whole(of, work, dtype):
            own = rectangle.shard
            rectangle.of(found[self._names[id(own.parameter)]].view(-1)[own.start : own.stop]).copy_(made)
        # Each entry is of one replica and 0 on the others, so the sum is exact.
        return {name: sum_over(self._model.topology.replicas, whole) for name, whole in found.items()}
