"""The probe: theta' is theta after K of its optimizer's steps on reference data (SynPro, arXiv 2605.17849: AdamW's).

As a model, or as the displacement theta - theta'. Also the settings of the probe that is no walk; see `next_step`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator

from synpro_engine.config import Config
from synpro_engine.data import TokenLoader
from synpro_engine.dist import Stopped, progress, sum_over
from synpro_engine.influence.directions.direction import Direction, weights_of
from synpro_engine.influence.directions.optimizer_state import optimizer_values
from synpro_engine.model.model import Model
from synpro_engine.model.shared_rows import documents_apart
from synpro_engine.train.checkpoint import load_checkpoint
from synpro_engine.train.divergence import SkipGuard
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss, count_labels
from synpro_engine.train.optimizer_config import OptimizerConfig

_DEFAULTS = OptimizerConfig()


class ProbeConfig(Config):
    """What stands for training on the reference.

    `next_step`: its gradient, as the optimizer's next step on training's own batches would meet it
    (`next_step_direction`), which predicted real steps best. `walk`: theta', after steps of pretraining's optimizer on
    the reference; the paper's are 100 of AdamW, of 64 x 2048 tokens at a constant 1e-4, and it measures influence by
    `two_forward`.
    """

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"micro_batch"})

    kind: Literal["next_step", "walk"] = "next_step"
    """`next_step`: a direction from the reference gradient. `walk`: weights that trained on the reference."""
    reference_tokens: int = Field(default=262144, gt=0)
    """next_step: tokens at the head of the reference split that the gradient is taken on."""
    sampled_steps: int = Field(default=8, gt=0)
    """next_step: batches of training text whose mean update is the step that the gradient is taken ahead by, and whose
    mean squared gradients enter the second moment (at which Muon's matrices are differentiated)."""
    steps: int = Field(default=100, gt=0)
    """walk: steps K of pretraining's optimizer on the reference split."""
    lr: float = Field(default=1e-4, gt=0)
    """walk: constant learning rate; AdamW's. Muon's matrices have one that is as much larger as in pretraining."""
    global_batch: int = Field(default=64, gt=0)
    """walk: sequences of each step, over all data-parallel ranks."""
    micro_batch: int = Field(default=8, gt=0)
    """Sequences that one rank forwards at once."""
    keep_momentum: bool = True
    """walk: go on from pretraining's moments (the paper), under the betas, eps and clip that made them, or from zero
    under the defaults, which keeps the direction of the reference data free of what pretraining was about to do. What
    is set of Muon is pretraining's in both cases."""
    weight_decay: float = Field(default=0.1, ge=0)
    """walk: decoupled weight decay, times each parameter's rate; with 0 the displacement holds nothing but
    gradients."""
    control: bool = False
    """walk: take off what a walk as long on training text does; what is left is kept as a direction."""

    @model_validator(mode="after")
    def _control_of_a_walk(self) -> ProbeConfig:
        if self.control and self.kind != "walk":
            raise ValueError("control: is for kind walk; the next step's direction has no walk to take off")
        return self


@dataclass(frozen=True)
class ProbeStep:
    """One step's mean cross-entropy on its reference batch (nats per token) and its gradient norm."""

    step: int
    loss: float
    grad_norm: float


def run_probe(
    theta: Path, model: Model, loader: TokenLoader, config: ProbeConfig, *, optimizer: OptimizerConfig = _DEFAULTS
) -> list[ProbeStep]:
    """Turn `model` into theta': load the checkpoint `theta` and take `config.steps` steps on `loader`'s batches.

    The loss is pure cross-entropy (no z-loss). optimizer: what theta's moments were made under, and takes the steps.
    Collective. Raises UserError when momentum is to be kept and the checkpoint holds no optimizer state, or another
    optimizer's.
    """
    return walk(start_probe(theta, model, config, optimizer=optimizer), loader, config)


def start_probe(theta: Path, model: Model, config: ProbeConfig, *, optimizer: OptimizerConfig = _DEFAULTS) -> Engine:
    """Load `theta` into `model`, ready for the probe's first step; collective, UserError as `run_probe`."""
    # A second moment under another beta2 or eps is another step; one that begins at zero is the probe's own.
    made = optimizer if config.keep_momentum else _DEFAULTS
    # Rates of one schedule: matrices, and parts with a rate of their own, move as much more than the rest as they did.
    muon = optimizer.muon.model_copy(update={"lr": optimizer.muon.lr * config.lr / optimizer.lr})
    own = OptimizerConfig(
        name=optimizer.name, lr=config.lr, weight_decay=config.weight_decay, beta1=made.beta1, beta2=made.beta2,
        eps=made.eps, clip=made.clip, rates=optimizer.rates, muon=muon,
    )  # fmt: skip
    engine = Engine(model, own)
    load_checkpoint(theta, model, engine, optimizer_state=config.keep_momentum)
    engine.restart_schedule()
    return engine


def walk(engine: Engine, loader: TokenLoader, config: ProbeConfig) -> list[ProbeStep]:
    """Take the probe's steps. Collective.

    Raises DivergedError when too many of them, or the last, are not finite, and Stopped when the job is asked to stop;
    a probe then begins anew.
    """
    topology, steps = engine.model.topology, []
    guard = SkipGuard(what="probe", lr_key="probe.lr")
    with progress(config.steps, "probe", "step", topology) as bar:
        for index in range(config.steps):
            batch = loader.next_batch()
            # A step's mean is over the labels of all ranks, of which each may hold another number.
            labels = sum_over(topology.dp, count_labels(batch.labels_BS).to(topology.device)).clamp_min(1)
            # Of one size in a pipeline, whose stages are told one shape for all.
            microbatches = batch.split(config.micro_batch, equal=topology.pp.size > 1)
            done = engine.step(
                microbatches, LanguageModelLoss(), denominator=int(labels),
                rows_of=lambda batch: documents_apart(batch, topology.device),
            )  # fmt: skip
            # A probe of skipped steps would be theta itself, along which every score is 0.
            guard.add(index + 1, done.loss, done.grad_norm, done.lr, skipped=done.skipped)
            steps.append(ProbeStep(index + 1, done.loss, done.grad_norm))
            bar.set_postfix(loss=f"{done.loss:.3f}")
            bar.update()
            if done.stop and index + 1 < config.steps:
                raise Stopped(f"probe: stopped after step {index + 1}; it begins anew")
    guard.end()
    return steps


def probe_direction(
    theta: Path,
    model: Model,
    loader: TokenLoader,
    config: ProbeConfig,
    *,
    control: TokenLoader | None = None,
    optimizer: OptimizerConfig = _DEFAULTS,
) -> Direction:
    """theta - theta' of a probe on `loader`'s batches, in fp32 from the optimizer's master weights.

    control: organic data for a second probe of the same length, from the same theta, whose displacement is taken off:
    momentum, decay and what any training does are then gone, and the reference's own part is left. Afterwards `model`
    holds theta. optimizer and UserError: as of `run_probe`. Collective.
    """
    v = _displacement_of_walk(theta, model, loader, config, optimizer)
    return v if control is None else v.minus(_displacement_of_walk(theta, model, control, config, optimizer))


def _displacement_of_walk(
    theta: Path, model: Model, loader: TokenLoader, config: ProbeConfig, optimizer: OptimizerConfig
) -> Direction:
    engine = start_probe(theta, model, config, optimizer=optimizer)
    # Weights in the model's dtype to put back, masters to subtract: steps of 1e-4 are often lost in bf16 weights.
    weights, before = weights_of(model), optimizer_values(engine, "param")
    walk(engine, loader, config)
    after = optimizer_values(engine, "param")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return Direction({name: before[name] - after[name] for name in before})
