"""Which estimator measures influence, as a setting.

Knows the estimators by name and what each needs; the evidence for a default is in the documentation.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from synpro_engine.config import Config, UserError
from synpro_engine.influence.direction import Direction, displacement
from synpro_engine.influence.dot import DotInfluence
from synpro_engine.influence.estimator import At, Estimator
from synpro_engine.influence.oracles import FiniteDifferenceInfluence, JvpInfluence
from synpro_engine.influence.scores import Influence
from synpro_engine.model.model import Model


class EstimatorConfig(Config):
    """How the influence of a text is estimated."""

    estimator: Literal["two_forward", "dot", "jvp", "finite_difference"] = "two_forward"
    """`two_forward`: L(x; theta) - L(x; theta'). `dot`: its first order, by one forward and one backward pass.
    `jvp` and `finite_difference` are slow, to check the others: `jvp` on one process, `finite_difference` in fp32."""
    at: At = "midpoint"
    """Where a first-order estimate is taken: at `theta`, or at the `midpoint` of the displacement."""
    step: float = Field(default=0.1, gt=0)
    """finite_difference only: how far to step to either side, as a part of the displacement."""
    micro_batch: int = Field(default=16, gt=0)
    """Rows that run at once."""
    packed: bool = False
    """Put several short texts into one row, kept apart in attention (two_forward and dot)."""

    @model_validator(mode="after")
    def _packable(self) -> EstimatorConfig:
        if self.packed and self.estimator in ("jvp", "finite_difference"):
            raise ValueError(f"packed is not for {self.estimator}")
        return self


def build_estimator(
    config: EstimatorConfig, theta: Model, probe: Model | Direction, *, start_id: int, keep: int = 4096
) -> Estimator:
    """The estimator of `config` for theta and its probe, given as a model or as the direction theta - theta'.

    start_id: the id that separates documents. keep: sequences remembered. Raises UserError where the setting does not
    fit the layout or the weights' precision.
    """
    size, packed = config.micro_batch, config.packed
    if config.estimator == "two_forward":
        return Influence(theta, probe, start_id=start_id, micro_batch=size, packed=packed, keep=keep)
    v = displacement(theta, probe) if isinstance(probe, Model) else probe
    if config.estimator == "dot":
        return DotInfluence(theta, v, start_id=start_id, at=config.at, micro_batch=size, packed=packed, keep=keep)
    try:
        if config.estimator == "jvp":
            return JvpInfluence(theta, v, start_id=start_id, at=config.at, micro_batch=size, keep=keep)
        return FiniteDifferenceInfluence(
            theta, v, start_id=start_id, at=config.at, step=config.step, micro_batch=size, keep=keep
        )
    except ValueError as error:
        raise UserError(f"`estimator` {config.estimator}: {error}") from error
