"""What the influence benchmark runs: sizes, rates, seeds, and where things lie. Knows numbers only."""

from __future__ import annotations

from pydantic import Field, model_validator

from benchmarks.common.settings import Settings
from synpro_engine.train.optimizer_config import MuonConfig, OptimizerConfig, OptimizerName, ScheduleConfig


class TruthSettings(Settings):
    """One run."""

    vocab: int = Field(default=768, ge=300)
    layers: int = 3
    d_model: int = 64
    heads: int = 4
    ffn: int = 192
    seq_len: int = 128
    train_steps: int = Field(default=250, gt=0)
    """Steps from random weights to theta."""
    warmup_steps: int = 20
    batch: int = 16
    """Sequences of a step of training and of a probe."""
    lr: float = Field(default=2e-3, gt=0)
    """Of training, of the measured steps and of subsets; AdamW's, where matrices have Muon's."""
    optimizer_name: OptimizerName = "adamw"
    muon_lr: float = Field(default=0.02, gt=0)
    probe_lr: float = Field(default=5e-4, gt=0)
    probe_steps: tuple[int, int] = (10, 100)
    reference: int = Field(default=48, gt=0)
    """Pieces in the reference set and in the held-out one."""
    candidates: int = Field(default=512, gt=0)
    mates: int = Field(default=7, gt=0)
    """Sequences of training data that share the step with a candidate, where it is not alone."""
    group: int = Field(default=8, gt=0)
    """Candidates that go in or out of a subset together: neighbours of one kind."""
    subsets: int = Field(default=60, gt=0)
    subset_steps: int = Field(default=30, gt=0)
    subset_batch: int = Field(default=8, gt=0)
    checked: int = Field(default=48, gt=0)
    """Candidates that the slow oracles and the sweep over displacements look at."""
    scales: int = Field(default=13, gt=1)
    """The sweep halves the displacement so many times, less one."""

    @model_validator(mode="after")
    def _divides(self) -> TruthSettings:
        if self.candidates % self.group:
            raise ValueError(f"candidates ({self.candidates}) must be whole groups of {self.group}")
        if self.subset_steps * self.subset_batch % self.group:
            raise ValueError(f"a subset's {self.subset_steps} x {self.subset_batch} sequences must be whole groups")
        if 2 * self.groups_of_a_subset > self.candidates // self.group:
            raise ValueError(f"a half subset needs {4 * self.groups_of_a_subset * self.group // 2} candidates or more")
        return self

    @property
    def groups_of_a_subset(self) -> int:
        """Half of the pool: exactly what its steps use once."""
        return self.subset_steps * self.subset_batch // self.group

    @property
    def optimizer(self) -> OptimizerConfig:
        """AdamW or Muon with the engine's defaults (betas 0.9 and 0.95, decay 0.1, clipping at 1) but the rates."""
        return OptimizerConfig(name=self.optimizer_name, lr=self.lr, muon=MuonConfig(lr=self.muon_lr))

    @property
    def walks_keep_momentum(self) -> bool:
        """Whether a probe's AdamW steps can go on from theta's moments, as the paper's do."""
        return self.optimizer_name == "adamw"

    @property
    def schedule(self) -> ScheduleConfig:
        """Constant after the warm-up, so a step from theta is like any other."""
        return ScheduleConfig(warmup_steps=self.warmup_steps)
