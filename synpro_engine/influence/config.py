"""Which estimator measures influence, as a setting; the evidence for the default is in docs/influence.md."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from synpro_engine.config import Config
from synpro_engine.influence.estimator import At


class EstimatorConfig(Config):
    """How the influence of a text is estimated."""

    # Rows at once and packing change a score by rounding alone, so no stage is redone for them.
    EXECUTION: ClassVar[frozenset[str]] = frozenset({"micro_batch", "packed"})

    estimator: Literal["auto", "two_forward", "dot", "jvp", "finite_difference"] = "auto"
    """`dot`: to first order, by one forward and one backward pass. `two_forward`: L(x; theta) - L(x; theta'), the
    paper's. `auto`: dot along a gradient, two_forward to a probe. `jvp` and `finite_difference` are slow, to check the
    others: `jvp` on one process, `finite_difference` in fp32. What predicts real steps best, and what each costs, is in
    docs/influence.md."""
    at: At = "theta"
    """Where a first-order estimate is taken: at `theta`, or at the `midpoint` of the displacement of a probe."""
    clip: float | None = Field(default=None, ge=0)
    """dot only: multiply a text's score by min(1, clip / norm of its gradient), as training's clipping does in a step
    on it alone, so that no text scores by its gradient's size: that of its mean loss, over all windows of a long text.
    Texts then run one by one. 0: off; where not given, 1 along a gradient and 0 along a displacement, where it is to
    agree with the others."""
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

    def resolved(self, *, tangent: bool) -> EstimatorConfig:
        """With what was left open decided: `tangent` says whether the direction is a gradient's.

        Raises ValueError for settings that then do not go together.
        """
        # Along a gradient to first order only: its length means nothing, so theta - v is no place to go to.
        name = ("dot" if tangent else "two_forward") if self.estimator == "auto" else self.estimator
        # 1 is training's own default. Among mates clipped scores ranked real steps no worse in any of three runs, in
        # the first at 0.94 against 0.83 (docs/influence.md).
        clip = float(tangent and name == "dot") if self.clip is None else self.clip
        if clip and name != "dot":
            raise ValueError(f"clip: is for dot, not for {name}")
        if self.at == "midpoint" and name == "two_forward":
            raise ValueError("at: a midpoint is for estimators of first order, such as dot, not for two_forward")
        # A packed row's gradient is the sum of its texts' gradients; their norms do not come out of it again.
        if self.packed and clip:
            raise ValueError("packed: wants clip 0 here, since a gradient norm is of one text at a time")
        return self.model_copy(update={"estimator": name, "clip": clip})
