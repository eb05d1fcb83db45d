"""Settings of training: the pretraining loop, its averages, teachers and guards, and when it is over.

A step is one optimizer step over one global batch.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator

from synpro_engine.config import Config
from synpro_engine.model.config import Recompute
from synpro_engine.model.dropout_config import DropoutConfig
from synpro_engine.storage.places import LocalPlace, Place
from synpro_engine.train.optimizer_config import OptimizerConfig, ScheduleConfig

OutputLayer = Literal["fused", "recomputed", "materialised"]
WeightsOf = Literal["raw", "ema", "average"]
"""Weights of a run: `raw`, as its last step left them, or one of its averages of those of many steps."""
TrackerName = Literal["wandb", "mlflow", "trackio"]


class PlateauConfig(Config):
    """When the reference loss counts as no longer improving."""

    rule: Literal["slope", "windows"] = "slope"
    """`slope`: a line through the last evaluations, as many as the noise in them asks for; the end is where the
    interval of its slope lies below what is wanted. `windows`: the mean of the last `window` evaluations against that
    of the `window` before, with no regard to noise. docs/plateau.md holds the two to a table."""
    window: int = Field(default=3, ge=1)
    """Evaluations that `min_improvement` is asked of."""
    min_improvement: float = Field(default=0.01, ge=0, lt=1)
    """Smallest relative fall of the loss in `window` evaluations (`window` x `eval_every` steps) that is progress."""
    patience: int = Field(default=1, ge=1)
    """Judgements in a row that find no progress before training stops."""
    max_steps: int | None = Field(default=None, gt=0)
    """Budget in optimizer steps: stop there, with an evaluation, even if the loss still improves."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Budget in trained tokens: stop at the step that reaches it."""


class AverageConfig(Config):
    """The plain mean of the weights after many steps (Izmailov et al., "stochastic weight averaging", 1803.05407)."""

    start: int = Field(default=0, ge=0)
    """Steps before the first weights that are taken, of pretraining and what goes on from it in all; until then the
    average is the weights as they are."""
    every: int = Field(default=1, gt=0)
    """Steps between weights that are taken."""


class EmaConfig(AverageConfig):
    """An exponential moving average: of what is taken, each counts `decay` times as much as the one after it.

    Without a bias towards the beginning: divided by the sum of these factors, as Adam's moments are (Kingma and Ba,
    arXiv 1412.6980, section 3), it is the plain mean at first and needs no warm-up of the decay.
    """

    decay: float = Field(default=0.99, gt=0, lt=1)
    """About 1 / (1 - decay) of the last weights count."""


class SkipConfig(Config):
    """Steps whose loss or gradient is not finite: they change nothing, and too many of them end the run."""

    max_in_row: int = Field(default=10, ge=0)
    """Most such steps in a row."""
    max_in_all: int = Field(default=100, ge=0)
    """Most such steps in the whole run."""


class DivergenceConfig(Config):
    """When training that only gets worse is ended: training and held-out loss are both out of bounds."""

    rise: float = Field(default=1.0, gt=0)
    """Nats per token above its best value at which a loss is out of bounds; above ln(vocabulary) it always is."""
    evaluations: int = Field(default=3, ge=1)
    """Evaluations in a row out of bounds that end the run; at its last step one is enough."""
    plateau_rise: float = Field(default=0.05, gt=0)
    """Where the plateau detector would end a run, and held-out losses and training loss (its mean since the evaluation
    before) are each above their lowest by more than this share of it, the run has diverged."""


class SpikeConfig(Config):
    """Steps that are finite and far above the last ones: a bad document, or the beginning of a divergence.

    Each is told, and stands in the log with its documents and its gradient's norms by layer.
    """

    action: Literal["tell", "skip", "stop"] = "tell"
    """What more is done: nothing; the step changes nothing and its batch is spent, as where it is not finite; or the
    run ends before it changes anything."""
    loss: float = Field(default=1.0, gt=0)
    """Nats per token above the median of the last steps."""
    norm: float = Field(default=10.0, gt=1)
    """Times the median gradient norm of the last steps."""
    window: int = Field(default=64, ge=8)
    """How many these are; the first ones of a run are held to nothing."""


class DistillConfig(Config):
    """Learning from models that were trained before (Hinton et al., arXiv 1503.02531), beside the labels."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"teachers"})  # their content is recorded, not their place
    LATER: ClassVar[frozenset[str]] = frozenset({"mixture"})

    teachers: tuple[LocalPlace, ...] = Field(min_length=1)
    """Finished stages or checkpoints, such as `runs/one/pretrain`, of this tokenizer; of several the mean of their
    probabilities is learnt. Each is held whole beside the model that trains, and reads its texts, with nothing left out
    where `dropout` leaves tokens out for the model."""
    share: float = Field(default=0.5, gt=0, le=1)
    """Of the teachers in what is minimised: (1 - share) of the labels' cross-entropy, and share times temperature^2 of
    the divergence from the teachers."""
    temperature: float = Field(default=1.0, gt=0)
    """By which both sides' logits are divided in the divergence."""
    mixture: tuple[PositiveFloat, ...] | None = None
    """Each teacher's weight in the mean, in their order; they count in proportion to their sum. None: all alike."""

    @model_validator(mode="after")
    def _a_weight_each(self) -> DistillConfig:
        if self.mixture is not None and len(self.mixture) != len(self.teachers):
            raise ValueError(f"mixture: {len(self.mixture)} weights for {len(self.teachers)} teachers")
        return self


class StragglerConfig(Config):
    """Ranks that compute slower than the others, which wait for them."""

    every: int = Field(default=100, ge=1)
    """Steps between two that are timed on every rank."""
    ratio: float = Field(default=1.3, gt=1)
    """Times the ranks' median at which a rank counts as slow; the same one at two looks in a row is told."""


class TrainConfig(Config):
    """One run of pretraining."""

    # They may change without a stage being made anew: at most sums are rounded in another order, and a spike that is
    # skipped from here on is why a run is gone on with.
    EXECUTION: ClassVar[frozenset[str]] = frozenset(
        "micro_batch output_layer overlap_gradients overlap_weights checkpoint_every keep_checkpoints keep_every"
        " checkpoint_copy async_checkpoints recompute offload_layers log_every tensorboard loggers logger_project skip"
        " divergence spike stragglers layer_norms_every".split()
    )

    LATER: ClassVar[frozenset[str]] = frozenset(
        "dropout ema average evaluate_with hand_on distill separate_documents tasks_every".split()
    )

    max_steps: int = Field(gt=0)
    """Optimizer steps of this run (a plateau may end it earlier)."""
    global_batch: int = Field(default=32, gt=0)
    """Sequences in one optimizer step, over all data-parallel ranks."""
    micro_batch: int = Field(default=8, gt=0)
    """Sequences that one rank forwards at once; the rest is gradient accumulation."""
    z_loss: float = Field(default=1e-4, ge=0)
    """Weight of mean(logsumexp(logits)^2); trained on, never part of a reported loss."""
    output_layer: OutputLayer = "fused"
    """`fused` makes the loss and its gradients together, block by block; `recomputed` makes the logits again in the
    backward pass; `materialised` holds every logit."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    dropout: DropoutConfig = DropoutConfig()
    plateau: PlateauConfig | None = None
    """Stop when the reference loss stops improving; None trains for max_steps."""
    skip: SkipConfig = SkipConfig()
    divergence: DivergenceConfig | None = DivergenceConfig()
    """End a run whose losses leave all bounds, as a fault; None lets it go on."""
    spike: SpikeConfig | None = SpikeConfig()
    """What happens at steps far above those before; None looks at none."""
    stragglers: StragglerConfig | None = StragglerConfig()
    """Tell of ranks that keep the others waiting, where there are several; None times none."""
    ema: EmaConfig | None = None
    """Keep an exponential moving average of the weights, in fp32, a share on each data-parallel rank."""
    average: AverageConfig | None = None
    """Keep a plain mean of the weights likewise."""
    evaluate_with: WeightsOf = "raw"
    """The weights that held-out losses are of, by which the plateau and divergence go."""
    hand_on: WeightsOf | None = None
    """The weights that later stages and `synpro export` are given; those of `evaluate_with` where not given."""
    eval_every: int = Field(default=50, ge=0)
    """Steps between evaluations on the reference set; 0 evaluates only at the end."""
    tasks_every: int = Field(default=0, ge=0)
    """Steps between looks at the multiple-choice questions among `held_out`, which are also asked at the beginning and
    at the end; 0 asks none. Nothing goes by them."""
    checkpoint_every: int = Field(default=200, ge=0)
    """Steps between checkpoints to resume from; 0 saves only at the end."""
    distill: DistillConfig | None = None
    """Teachers; None learns from labels alone. With `output_layer: fused`."""
    separate_documents: bool = False
    """Keep the documents of a window from seeing each other: each is read as in a row of its own, behind the EOS in
    front of it. In training, on held-out text and on references alike; attention then goes by a mask."""
    recompute: Recompute = "none"
    """What the backward pass makes again rather than have it kept: `mlp`, each feed-forward part, which is up to half
    of what is kept, for a fifth more work; `full`, each layer, of which its input alone is kept, for a third more.
    Losses and gradients are the same bits on a CPU."""
    offload_layers: int = Field(default=0, ge=0)
    """Layers, of the whole model, whose activations wait in host memory between the forward and the backward pass; with
    `recompute: full` that is what each of them is given. The same bits, in less memory of a GPU."""
    overlap_gradients: bool = False
    """Sum gradients over data-parallel ranks while the backward pass still runs."""
    overlap_weights: bool = False
    """Gather what data-parallel ranks updated while the next step reads its batch and runs its forward pass; with
    `overlap_gradients`. Whatever else reads the weights waits for them: the numbers are the same bits."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept; older ones are removed once a newer one is complete."""
    keep_every: int = Field(default=0, ge=0)
    """Steps between checkpoints that stay for ever, a multiple of `checkpoint_every`; 0 keeps none but the newest."""
    checkpoint_copy: Place | None = None
    """A second place, a directory or an address such as `s3://bucket/runs/one`, to which each checkpoint is copied in
    the background once it is written, and the record of the steps; a stage has a folder of its own there. A run goes on
    from the newest sound checkpoint of both places."""
    async_checkpoints: bool = False
    """Copy the state to host memory and train on while it is written. A rank holds its part of a checkpoint twice then,
    the copy in pinned memory where it trains on a GPU."""
    log_every: int = Field(default=1, ge=1)
    """Steps between lines of metrics."""
    layer_norms_every: int = Field(default=0, ge=0)
    """Steps between lines with the gradient's norm by layer, which is one more reading of it; 0 writes them of steps
    that went wrong alone."""
    tensorboard: bool = True
    """Also write TensorBoard events."""
    loggers: tuple[TrackerName, ...] = ()
    """Also write to these trackers, by their own settings and variables (docs/trackers.md). One that fails is told, and
    the run goes on without it."""
    logger_project: str = Field(default="synpro", min_length=1)
    """The trackers' project; MLflow's experiment."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.plateau is not None and self.eval_every == 0:
            raise ValueError("plateau detection needs eval_every above 0")
        if self.overlap_weights and not self.overlap_gradients:  # which cuts the weights into buckets
            raise ValueError("overlap_weights: goes with overlap_gradients")
        if self.keep_every and (self.checkpoint_every == 0 or self.keep_every % self.checkpoint_every):
            raise ValueError(f"keep_every: {self.keep_every} is not a multiple of checkpoint_every")
        if self.distill is not None and self.output_layer != "fused":
            raise ValueError(f"distill: goes with output_layer fused, not {self.output_layer}")
        for key, wanted in (("evaluate_with", self.evaluate_with), ("hand_on", self.hand_on)):
            if wanted not in (None, "raw", *self.averages):
                raise ValueError(f"{key}: {wanted} is not kept; give `{wanted}`, such as `{wanted}: {{start: 0}}`")
        return self

    @property
    def averages(self) -> dict[WeightsOf, AverageConfig]:
        """The averages that are kept, by name."""
        kept: dict[WeightsOf, AverageConfig | None] = {"ema": self.ema, "average": self.average}
        return {name: config for name, config in kept.items() if config is not None}

    @property
    def given(self) -> WeightsOf:
        """The weights that whoever reads a checkpoint is given."""
        return self.hand_on or self.evaluate_with
