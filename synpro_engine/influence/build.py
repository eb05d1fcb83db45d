"""An estimator from its settings."""

from __future__ import annotations

from synpro_engine.config import UserError
from synpro_engine.influence.config import EstimatorConfig
from synpro_engine.influence.directions import Direction, displacement
from synpro_engine.influence.estimator import Estimator
from synpro_engine.influence.first_order import DotInfluence, JvpInfluence
from synpro_engine.influence.two_forward import FiniteDifferenceInfluence, TwoForwardInfluence
from synpro_engine.model.model import Model


def build_estimator(
    config: EstimatorConfig, theta: Model, probe: Model | Direction, *, start_id: int, keep: int = 4096
) -> Estimator:
    """The estimator of `config` for theta and its probe, given as a model or as a direction, as theta - theta' is.

    start_id: the id that separates documents. keep: sequences remembered. Raises UserError where the setting does not
    fit the layout, the weights' precision or the direction.
    """
    try:
        config = config.resolved(tangent=isinstance(probe, Direction) and probe.tangent)
        return _built(config, theta, probe, start_id, keep)
    except ValueError as error:
        raise UserError(f"`estimator` {config.estimator}: {error}") from error


def _built(config: EstimatorConfig, theta: Model, probe: Model | Direction, start_id: int, keep: int) -> Estimator:
    size, packed, at = config.micro_batch, config.packed, config.at
    if config.estimator == "two_forward":
        return TwoForwardInfluence(theta, probe, start_id=start_id, micro_batch=size, packed=packed, keep=keep)
    v = displacement(theta, probe) if isinstance(probe, Model) else probe
    if config.estimator == "dot":
        return DotInfluence(
            theta, v, start_id=start_id, at=at, micro_batch=size, clip=config.clip or 0.0, packed=packed, keep=keep
        )
    if config.estimator == "jvp":
        return JvpInfluence(theta, v, start_id=start_id, at=at, micro_batch=size, keep=keep)
    return FiniteDifferenceInfluence(theta, v, start_id=start_id, at=at, step=config.step, micro_batch=size, keep=keep)
