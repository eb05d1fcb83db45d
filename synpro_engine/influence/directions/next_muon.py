"""Muon's next step as a function of its gradients, matrix by matrix, and its differential at typical steps.

Muon moves a matrix by its orthogonalised momentum U(N), in which every entry of a gradient reaches every entry of the
update: what AdamW's denominators are for it is the Jacobian J of U, in which a change dM of the momentum gives J dM. A
text's gradient g moves the reference by <g_ref, J g>, which is <J^T g_ref, g>: the direction is J^T g_ref, the mean of
it over the steps that stand for a typical one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from synpro_engine.dist import sum_over
from synpro_engine.train.engine import Engine
from synpro_engine.train.homes import Work
from synpro_engine.train.muon import Muon
from synpro_engine.train.muon_update import each_matrix, gradient_share, looked_ahead, pulled_back
from synpro_engine.train.optimizer import MOMENTUM
from synpro_engine.train.owned import Shard

Tensors = Mapping[str, Tensor]
"""By the parameter's name, fp32 and of its local shape, the same on all replicas."""


class NextMuon:
    """The next step of an engine's Muon, of the matrices that it moves. Collective over the job."""

    def __init__(self, engine: Engine, muon: Muon) -> None:
        config = engine.optimizer_config
        self._muon, self._config, self._model = muon, config.muon, engine.model
        self._lr = engine.lr * config.muon.lr / config.lr  # of one schedule
        self._parameters = {name: p for name, p in engine.model.named_parameters() if name in muon.names}
        self._names = {id(p): name for name, p in self._parameters.items()}
        # Whole matrices, each on the rank that works on it.
        self._sampled: dict[str, list[Tensor]] = {}

    @property
    def gradient_share(self) -> float:
        """What a step's own gradient is multiplied by before it is orthogonalised."""
        return gradient_share(self._config)

    def update(self, clipped: Tensors) -> dict[str, Tensor]:
        """theta - theta' of a step with these clipped gradients, without decay."""
        return self._update(clipped, lambda whole: None)

    def sample(self, clipped: Tensors) -> dict[str, Tensor]:
        """The same, and the step becomes one that `linear` is the mean over."""
        return self._update(clipped, self._keep)

    def keep(self, clipped: Tensors) -> None:
        """Make a step with these gradients one that `linear` is the mean over."""

        def keep(whole: dict[str, Tensor]) -> dict[str, Tensor]:
            self._keep(whole)
            return whole

        self._on_whole(self._ahead(clipped), keep, self._muon.products(self._config))

    def linear(self, gradient: Tensors) -> dict[str, Tensor]:
        """The mean of J^T `gradient`, at a rate of 1: what a small change of the momentum has to do with it."""

        def pull(along: Tensor, *ahead: Tensor) -> Tensor:
            return torch.stack([pulled_back(at.float(), along, self._config) for at in ahead]).mean(0)

        def work(whole: dict[str, Tensor]) -> dict[str, Tensor]:
            by_step = zip(*(self._sampled[key] for key in whole), strict=True)
            return each_matrix(self._model.config, pull, whole, *(dict(zip(whole, at, strict=True)) for at in by_step))

        return self._on_whole(lambda own: self._part(gradient, own), work, torch.float32)

    def _update(self, clipped: Tensors, see: Callable[[dict[str, Tensor]], None]) -> dict[str, Tensor]:
        def work(whole: dict[str, Tensor]) -> dict[str, Tensor]:
            see(whole)
            return self._muon.updates(whole, self._config)

        made = self._on_whole(self._ahead(clipped), work, self._muon.products(self._config))
        return {name: update.mul_(self._lr) for name, update in made.items()}

    def _keep(self, whole: dict[str, Tensor]) -> None:
        for key, ahead in whole.items():
            self._sampled.setdefault(key, []).append(ahead)

    def _ahead(self, clipped: Tensors) -> Callable[[Shard], Tensor]:
        """What a shard gives to the matrices that are orthogonalised; its momentum stays as it is."""

        def ahead(own: Shard) -> Tensor:
            gradient = self._part(clipped, own)
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
