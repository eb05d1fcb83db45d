"""Settings of the optimizer, and of how its rate and weight decay move with the step."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from synpro_engine.config import Config

OptimizerName = Literal["adamw", "muon"]
MuonScale = Literal["spectral", "adamw_rms"]


class MuonConfig(Config):
    """Muon (Jordan et al., 2024) for the matrices of blocks, which move by their orthogonalised momentum."""

    lr: float = Field(default=0.02, gt=0)
    """Peak learning rate of the matrices, on the same schedule as AdamW's. With `scale: adamw_rms` it is AdamW's size
    that suits, such as 1e-3."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    nesterov: bool = True
    """Orthogonalise the momentum of one step later instead of this one's."""
    steps: int = Field(default=5, ge=1, le=20)
    """Newton-Schulz iterations."""
    coefficients: Literal["quintic", "polar_express"] = "quintic"
    """Of the iterations: `quintic` as in the first Muon, which leaves singular values between about 0.7 and 1.2, or
    `polar_express` (arXiv 2505.16932), whose steps are each the best for what is left and tend to 1."""
    scale: MuonScale = "spectral"
    """`spectral`: times sqrt(max(1, rows / columns)). `adamw_rms`: times 0.2 sqrt(max(rows, columns)), so that an
    update's entries are about as large as AdamW's (arXiv 2502.16982)."""
    products: Literal["weights", "bfloat16"] = "weights"
    """What the iterations multiply, and ranks send each other: the weights' dtype, or bfloat16 for fp32 weights too, as
    torch's Muon does. Much quicker on GPUs and on CPUs with AMX; layouts then agree to bf16's precision only."""
    normalise_rows: bool = False
    """Divide each row of the momentum by its norm first (MuonEq-R, arXiv 2603.28254)."""


class DecayScheduleConfig(Config):
    """How weight decay moves with the step, from `weight_decay` to `final`; see `optimizer.decay_at`.

    Steps are counted as the learning rate's schedule counts them.
    """

    kind: Literal["constant", "linear", "cosine"] = "constant"
    final: float = Field(default=0.0, ge=0, le=3)
    """Weight decay from `total_steps` on; linear and cosine only. It may lie above `weight_decay`."""
    hold_steps: int = Field(default=0, ge=0)
    """Steps before it begins to move."""
    total_steps: int | None = Field(default=None, gt=0)
    """Step at which it is at `final`; needed by linear and cosine."""

    @model_validator(mode="after")
    def _complete(self) -> DecayScheduleConfig:
        if self.kind != "constant" and (self.total_steps is None or self.total_steps <= self.hold_steps):
            raise ValueError(f"a {self.kind} decay schedule needs total_steps above hold_steps ({self.hold_steps})")
        return self


class RatesConfig(Config):
    """What AdamW's rate is multiplied by for parts of a model; recipes for little text have one for each."""

    embedding: float = Field(default=1.0, gt=0)
    """Token embedding, with an output layer that is tied to it."""
    output: float = Field(default=1.0, gt=0)
    """An output layer of its own."""
    vectors: float = Field(default=1.0, gt=0)
    """Norms and biases."""


class OptimizerConfig(Config):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) with clipping by the global gradient norm, or Muon beside it."""

    LATER: ClassVar[frozenset[str]] = frozenset({"decay_schedule", "decoupled_decay", "rates"})

    name: OptimizerName = "adamw"
    """`muon`: Muon for the matrices of the blocks, with q, k, v and a gated layer's two taken apart, and AdamW for
    embedding, output layer, norms and biases."""
    lr: float = Field(default=6e-4, gt=0)
    """AdamW's peak learning rate; the schedule multiplies it by a factor in [0, 1]."""
    rates: RatesConfig = RatesConfig()
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0, le=3)
    """Decay of every parameter but the token embedding (norm weights included), times the parameter's rate. Text that
    is read many times wants up to 30 times the usual 0.1 (Kim et al., arXiv 2509.14786)."""
    decay_schedule: DecayScheduleConfig = DecayScheduleConfig()
    decoupled_decay: bool = False
    """Decay is times the schedule's factor alone, and not times the rate (Loshchilov and Hutter's Algorithm 2): the
    share of a weight that goes in a step at the peak, the same under every rate, and much smaller numbers."""
    clip: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 switches clipping off (the norm is still reported)."""
    muon: MuonConfig = MuonConfig()
    """Counts where `name` is `muon`."""

    @model_validator(mode="after")
    def _decay_leaves_something(self) -> OptimizerConfig:
        # Undecoupled, a rate that high fails by its updates, and is told as a divergence.
        for name, decay in (("weight_decay", self.weight_decay), ("decay_schedule.final", self.decay_schedule.final)):
            if self.decoupled_decay and decay >= 1:
                raise ValueError(f"{name}: with decoupled_decay {decay} takes all of a weight in one step")
        return self


class ScheduleConfig(Config):
    """How the learning rate moves with the step; see `schedule.lr_factor` for the formulas."""

    kind: Literal["constant", "cosine", "wsd"] = "constant"
    """`wsd` is warm-up, stable, decay (Hu et al., arXiv 2404.06395)."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear rise; the first step already trains at 1 / warmup_steps of the peak."""
    total_steps: int | None = Field(default=None, gt=0)
    """Step at which cosine or wsd reaches its floor; needed by those two. Arms go on from theta's step,
    so with arms it is theirs that it is to end with."""
    decay_steps: int | None = Field(default=None, gt=0)
    """Length of wsd's decay, at the end of total_steps; needed by wsd."""
    decay_shape: Literal["linear", "sqrt"] = "sqrt"
    """wsd only: `1 - t`, or `1 - sqrt(t)` (Haegele et al., arXiv 2405.18392)."""
    floor: float = Field(default=0.1, ge=0, le=1)
    """Fraction of the peak at the end of cosine or wsd."""

    @model_validator(mode="after")
    def _complete(self) -> ScheduleConfig:
        if self.kind == "constant":
            return self
        if self.total_steps is None or self.total_steps <= self.warmup_steps:
            raise ValueError(f"a {self.kind} schedule needs total_steps above warmup_steps ({self.warmup_steps})")
        if self.kind == "wsd" and (self.decay_steps is None or self.decay_steps > self.total_steps - self.warmup_steps):
            raise ValueError("a wsd schedule needs decay_steps of at most total_steps - warmup_steps")
        return self
