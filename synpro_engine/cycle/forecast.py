"""What a run will take, before anything of it starts: tokens, FLOPs, a rank's memory, disk and time, stage by stage.

Counted from the recipe and the layout; nothing is built and no weight is read. What cannot be known beforehand is
counted at its bound (every completion as long as it may be, every slice full) or left open, and `remarks` say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from synpro_engine.backend import platform
from synpro_engine.config import UserError
from synpro_engine.cycle.arm_files import judge_files
from synpro_engine.cycle.external import is_put_away, task_keys
from synpro_engine.cycle.graph import Graph
from synpro_engine.cycle.layouts import check_recipe, check_trained, teacher_shapes
from synpro_engine.cycle.plan import planned
from synpro_engine.cycle.rates import Rates
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import EVALUATE, IMPORT, PRETRAIN, SAMPLE, TOKENIZE, UNIQUE
from synpro_engine.cycle.stages import Stage
from synpro_engine.data import find_files, find_source
from synpro_engine.dist import Layout
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.pretrained import read_shape
from synpro_engine.storage import RemoteFile
from synpro_engine.train.footprint import Footprint
from synpro_engine.train.metrics import flops_per_token

_CHARS_PER_TOKEN = 4.3
"""Of English prose in a vocabulary of 100,000; with a small one tokens are shorter, and the corpus is more of them."""
_COMPRESSION = 3.0
"""Of text by zstd and gzip."""
_TRAINED, _WEIGHTS, _TEACHERS = "weights, gradients, optimizer", "weights that are read", "teachers"
_REFERENCE, _CRITIC, _ACTIVATIONS = "reference policy", "critic", "activations"
_PAGES, _ASKED, _GENERATOR, _JUDGES = "keys and values", "pretrained model and probe", "generator as it came", "judges"
NEEDED = {
    _TRAINED: "rollout, update",
    _WEIGHTS: "all along",
    _TEACHERS: "-",
    _REFERENCE: "reference",
    _CRITIC: "update",
    _ACTIVATIONS: "update",
    _PAGES: "rollout",
    _ASKED: "score",
    _GENERATOR: "score",
    _JUDGES: "score",
}
"""What a stage holds, and the phases of a step of tuning in which it is needed. `reference` is the pass ahead of the
updates; what is needed in them is there in it too."""
_PHASES = ("rollout", "score", "reference", "update")
_PARKED = frozenset({_REFERENCE, _ASKED, _GENERATOR, _JUDGES})
"""What `residency: parked` keeps on the host in other phases."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one stage takes. FLOPs are of the whole job, `held` is of the fullest rank in bytes, `disk` what stays."""

    stage: str
    tokens: float | None = None
    """That pass through a model: trained on, scored or sampled; None where the corpus' size is not known."""
    flops: float = 0.0
    """In matrix products: forward and backward passes, and what is read before sampling."""
    sampled: float = 0.0
    """Tokens drawn one after the other; their FLOPs are not what their time hangs on, and are in `flops` too."""
    held: Mapping[str, float] = field(default_factory=dict)
    """What stands in memory, by one of the names in `NEEDED`."""
    moves: frozenset[str] = frozenset()
    """Of these, what is in a device's memory in the phases that need it alone."""
    disk: float = 0.0
    layout: Layout | None = None
    """Of its models; None where it has none."""

    @property
    def memory(self) -> float:
        """Of the fullest rank, in bytes, and in the fullest phase where something moves."""
        return max(map(self.in_phase, _PHASES))

    def in_phase(self, phase: str) -> float:
        """Of the fullest rank in a phase of a step of tuning, in bytes."""
        return sum(size for name, size in self.held.items() if name not in self.moves or phase in NEEDED[name])

    @property
    def parked(self) -> float:
        """Of a rank's host, in bytes, which stay there."""
        return sum(size for name, size in self.held.items() if name in self.moves & _PARKED)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Costs by stage in the order of the run."""

    recipe: Recipe
    ranks: int
    dtype: torch.dtype
    per_token: float
    """FLOPs of a token of pretraining, which its rate is of: forward and backward, and forward of each teacher."""
    costs: tuple[Cost, ...]
    remarks: tuple[str, ...]

    def seconds(self, cost: Cost, rates: Rates) -> float | None:
        """How long a stage takes; None where a rate that it needs is not known."""
        # Only rates that this stage needs: a plan without a sampler's rate still times pretraining.
        if (cost.flops and rates.trained is None) or (cost.sampled and rates.sampled is None) or cost.tokens is None:
            return None
        # Sampling is bound by memory and by one token after the other, so its time goes by tokens and not by FLOPs.
        drawn = cost.sampled / rates.sampled if rates.sampled else 0.0
        return drawn + (cost.flops / (rates.trained * self.per_token) if rates.trained else 0.0)


def forecast(recipe: Recipe, ranks: int) -> Forecast:
    """Count a run of `recipe` on so many ranks; UserError for a layout that cannot run it."""
    check_recipe(recipe, ranks)
    counter = _Counter(recipe, ranks)
    costs = tuple(replace(cost, layout=recipe.layout_of(cost.stage, ranks)) for cost in counter.stages())
    remarks = tuple(counter.remarks)
    per_token = counter.per_token + counter.per_token_taught
    return Forecast(
        recipe=recipe, ranks=ranks, dtype=counter.theta.dtype, per_token=per_token, costs=costs, remarks=remarks
    )


class _Counter:
    """Sizes that several stages share. A generator whose shape is not known takes nothing."""

    def __init__(self, recipe: Recipe, ranks: int) -> None:
        self.recipe, self._ranks, self.remarks = recipe, ranks, list[str]()
        dtype, shape = platform.resolve_dtype(recipe.dtype), self._generator()
        if shape is not None:
            check_trained(recipe, shape)
        own, generators = (recipe.layout_of(stage, ranks) for stage in (PRETRAIN, IMPORT))
        assert own is not None and generators is not None
        pretrain = recipe.pretrain
        kept, apart = len(pretrain.averages), pretrain.separate_documents
        self.theta = Footprint(recipe.model, own, dtype, pretrain.optimizer.name, pretrain.recompute, kept, apart)
        self.teachers = self._teachers(own, dtype)
        self.judge = Footprint(recipe.model, generators, dtype)  # theta, or its probe, beside a generator
        self.generator = None if shape is None else Footprint(shape, generators, dtype)
        in_job = recipe.reward.judges.in_job
        # By the reward; judges that are one model are loaded once.
        models = {judge.connection: (f"reward.judges.{name}.model", judge) for name, judge in in_job.items()}
        sizes = {one: self._shape(key, judge.model, judge.seq_len) for one, (key, judge) in models.items()}
        self.in_job = {
            name: Footprint(size, generators, dtype)
            for name, judge in in_job.items()
            if (size := sizes[judge.connection]) is not None
        }
        # The corpus and models are looked into below, and say so themselves.
        looked_into = {f"reward.judges.{name}.model" for name in in_job}
        files = ("tokenizer.path", *sum(task_keys(recipe), ()), *judge_files(recipe.reward))
        files += ("mix.organic.scores",) if recipe.mix.from_file else ()
        gone = [key for key in files if key not in looked_into and is_put_away(recipe.at(key))]
        self.remarks += [f"`{key}`: {recipe.at(key)} is not there" for key in gone]
        if any(reference.source is not None for reference in recipe.references.values()):
            self.remarks.append("references from files are counted as full as their caps allow")
        if recipe.generate.server is not None:
            self.remarks.append("`generate.server` samples: --sampled-per-s is its rate, and its memory is not counted")
        if recipe.pretrain.tasks_every:
            self.remarks.append("questions (`pretrain.tasks_every`) are not counted")
        if recipe.corpus.max_held_out_tokens is None:
            self.remarks.append("without `corpus.max_held_out_tokens` evaluations are not counted")
        # As Megatron's `DType.optimal_dtype` decides.
        self.stored = 2 if recipe.model.vocab_size < 65_500 else 4  # bytes of a token in a shard
        self.train_tokens = self._train_tokens()
        self.remarks += self._read_too_often()

    def stages(self) -> Iterator[Cost]:
        """Of all stages that there may come to be, in their order."""
        graph, generated = planned(self.recipe, self._ranks), dict[str, Cost]()
        recipe = self.recipe
        for stage in graph.stages:
            self.recipe = graph.recipes[stage.name]
            cost = self._stage(graph, stage, generated)
            if "/generate-" in stage.name:
                generated[stage.name] = cost
            yield cost
        self.recipe = recipe

    def _stage(self, graph: Graph, stage: Stage, generated: Mapping[str, Cost]) -> Cost:
        """What a stage takes, with the recipe as its arm has it. generated: costs of stages whose texts are read."""
        name, kind, tokens = stage.name, stage.name.rpartition("/")[2], self.train_tokens
        if name in graph.trainings:
            return self._training(name, graph.trainings[name].settings.pretrain.max_steps)
        if name == TOKENIZE:
            stored = 0.0 if tokens is None else tokens * (_CHARS_PER_TOKEN / _COMPRESSION + self.stored)
            return Cost(stage=name, tokens=tokens, disk=stored)
        if name == UNIQUE:
            most = float(self.recipe.most_unique_tokens)
            return Cost(stage=name, tokens=most, disk=most * (_CHARS_PER_TOKEN / _COMPRESSION + self.stored))
        if name == IMPORT:
            generator = self.generator
            loaded = (generator.weights, generator.saved()) if generator else (0.0, 0.0)
            return Cost(stage=name, tokens=0, held={_WEIGHTS: loaded[0]}, disk=loaded[1])
        if kind == "probe":
            return self._probe(name)
        if stage.command == "tune":
            return self._tune(name, kind.removeprefix("tune-"))
        if kind.startswith("generate-"):
            return self._generate(name, kind.removeprefix("generate-"))
        if kind == "shards":
            made = next(of.values() for this, of in graph.generated.items() if this.shards == name)
            drawn = _sampled([generated[one] for one in made])
            shards = None if drawn is None or self._stitched is None else drawn + self._stitched
            return Cost(stage=name, tokens=shards, disk=(shards or 0.0) * self.stored)
        if kind == EVALUATE:
            return self._evaluation(graph, stage, [generated[one] for one in stage.parents if one in generated])
        return Cost(stage=name, tokens=0)

    def _evaluation(self, graph: Graph, stage: Stage, made: Sequence[Cost]) -> Cost:
        """Of models on what is held out; of a sample of the last round's texts, and their sources."""
        recipe = self.recipe
        cap, new = recipe.corpus.max_held_out_tokens or 0, recipe.generate.sampling.max_new_tokens
        of_each = cap + sum(tasks.max_tokens or cap for tasks in recipe.held_out.values())
        held_out = float(graph.measured[stage.name]) * of_each
        texts = 2 * sum(min(cost.sampled, SAMPLE * new) for cost in made)
        flops = (held_out / 3 + texts * self._passes) * self.per_token
        tokens = None if _sampled(made) is None else held_out + texts
        return Cost(stage=stage.name, tokens=tokens, flops=flops, held={_WEIGHTS: 2 * self.theta.weights})

    def _read_too_often(self) -> Iterator[str]:
        """What is wrong where organic documents may not be read as often as the steps ask for."""
        recipe, organic = self.recipe, self.recipe.mix.organic
        if organic is None or organic.max_epochs is None or self.train_tokens is None:
            return
        each = organic.repeats if isinstance(organic.repeats, tuple) else (organic.repeats,)
        step = recipe.pretrain.global_batch * recipe.model.seq_len
        # The arm that repeats organic text reads most of it.
        wanted, passes = recipe.continued.steps * recipe.rounds * step, 0
        if recipe.mix.in_pretraining is None:  # which reads all documents alike, and each pass that it begins counts
            passes = math.ceil(recipe.pretrain.max_steps * step / self.train_tokens)
        else:
            wanted += recipe.pretrain.max_steps * step
        there = self.train_tokens * max(0, organic.max_epochs - passes) * sum(one > 0 for one in each) / len(each)
        if wanted > there:
            behind = f" behind up to {passes} passes of pretraining" if passes else " in all"
            yield (
                f"`mix.organic.max_epochs`: {organic.max_epochs} allow {there:,.0f} organic tokens{behind}, and"
                f" training asks for {wanted:,.0f}"
            )

    @property
    def _stitched(self) -> float | None:
        """Organic tokens in a round's megadocs, as if all documents had all their generations."""
        config, generate = self.recipe.mix.megadocs, self.recipe.generate
        if config is None or not config.with_source:
            return 0.0
        if self.train_tokens is None:
            return None
        generations = len(generate.names) * generate.samples
        return self.train_tokens * config.share * math.ceil(generations / config.generations)

    @property
    def _passes(self) -> float:
        """What influence takes of a text, in forward and backward passes: two forwards, or one of each kind."""
        return 2 / 3 if self.recipe.probe.kind == "walk" else 1.0

    @property
    def per_token(self) -> float:
        """FLOPs of a forward and a backward pass of the pretrained model."""
        return flops_per_token(self.recipe.model, self.recipe.model.seq_len)

    @property
    def per_token_taught(self) -> float:
        """FLOPs of the teachers' forward passes."""
        length = self.recipe.model.seq_len  # the student's, which they read
        return sum(flops_per_token(teacher.model, length) for teacher in self.teachers) / 3

    @property
    def _held_out(self) -> float:
        """Tokens of one evaluation, on the validation split and all references."""
        cap = self.recipe.corpus.max_held_out_tokens or 0
        return float(cap + sum(one.max_tokens or cap for one in self.recipe.references.values()))

    def _teachers(self, layout: Layout, dtype: torch.dtype) -> list[Footprint]:
        """Those that pretraining learns from; each is whole in the student's layout, on all data-parallel ranks."""
        shapes = teacher_shapes(self.recipe)
        faults = [shape for _, shape in shapes if isinstance(shape, UserError)]
        self.remarks += [f"`pretrain.distill.teachers`: {fault}; what it takes is left out" for fault in faults]
        return [Footprint(shape, layout, dtype) for _, shape in shapes if not isinstance(shape, UserError)]

    def _generator(self) -> ModelConfig | None:
        config = self.recipe.generator
        if config.model is not None:
            return config.model
        return self._shape("generator.source", config.source, config.seq_len)

    def _shape(self, key: str, source: str, seq_len: int | None) -> ModelConfig | None:
        try:
            return read_shape(source, seq_len)
        except UserError as error:
            self.remarks.append(f"`{key}`: {error}; what it takes is left out")
            return None

    def _train_tokens(self) -> float | None:
        """The cap, or what the files' sizes suggest, whichever is less."""
        corpus, cap = self.recipe.corpus, self.recipe.corpus.max_train_tokens
        try:
            if corpus.shards is None:
                tokens = sum(map(_characters, find_source(corpus.source).files)) / _CHARS_PER_TOKEN
            else:
                shards = (file.tokens for _, file in find_files(corpus.shard_paths))
                tokens = sum(file.stat().st_size for file in shards) / self.stored
        except UserError as error:
            known = "taken to be the cap" if cap is not None else "not known without `corpus.max_train_tokens`"
            self.remarks.append(f"{error}: the size of the corpus is {known}")
            return cap
        tokens *= corpus.split.train
        if cap is not None and cap <= tokens:
            return cap
        self.remarks.append("the size of the corpus is guessed from the sizes of its files")
        return tokens

    def _training(self, stage: str, steps: int) -> Cost:
        model, config = self.recipe.model, self.recipe.pretrain
        tokens = float(steps) * config.global_batch * model.seq_len
        # The one before the first step, and those on the way, or the one at the end where there are none.
        evaluated = self._held_out * (1 + (steps // config.eval_every if config.eval_every else 1))
        return Cost(
            stage=stage,
            tokens=tokens,
            # A pass that is only read is a third of one that is trained on: no backward, which is two.
            flops=(tokens + evaluated / 3) * self.per_token + tokens * self.per_token_taught,
            held=self._trained(self.theta, config.micro_batch) | {_TEACHERS: sum(one.weights for one in self.teachers)},
            disk=(config.keep_checkpoints + (steps // config.keep_every if config.keep_every else 0))
            * self.theta.saved(optimizer=True),
        )

    def _probe(self, stage: str) -> Cost:
        model, probe, walks = self.recipe.model, self.recipe.probe, self.recipe.probe.kind == "walk"
        if walks:
            tokens = float(probe.steps) * probe.global_batch * model.seq_len * (2 if probe.control else 1)
        else:
            tokens = float(probe.sampled_steps) * self.recipe.pretrain.global_batch * model.seq_len
            tokens += min(probe.reference_tokens or self._held_out / 2, self._held_out / 2)
            products = (
                torch.bfloat16 if self.recipe.pretrain.optimizer.muon.products == "bfloat16" else self.theta.dtype
            )
            # And the reference's own.
            if waits := self.theta.sampled(probe.sampled_steps + 1, products):
                self.remarks.append(
                    f"{stage}: {waits / 2**30:,.2f} GiB a rank of Muon's sampled momenta wait in the host's memory"
                )
        return Cost(
            stage=stage,
            tokens=tokens,
            flops=tokens * self.per_token,
            held=self._trained(replace(self.theta, averages=0), probe.micro_batch),
            disk=self.theta.saved() if walks else model.parameter_count() * 4.0,
        )

    def _trained(self, theta: Footprint, rows: int) -> dict[str, float]:
        return {_TRAINED: theta.training, _ACTIVATIONS: theta.activations(rows, self.recipe.model.seq_len)}

    def _tune(self, stage: str, operation: str) -> Cost:
        config, prompt = self.recipe.tune[operation], self.recipe.prompt.max_tokens
        new, reference = config.sampling.max_new_tokens, bool(config.kl_beta)
        texts = float(config.steps) * config.prompts_per_step * config.group_size
        weights = self.recipe.reward.weights(operation)
        measured = float(len(config.held_out.due(config.steps))) * config.held_out.slices * config.held_out.members
        flops = self._judged(texts + measured, new, weights)
        held = {_PAGES: config.sampler.cache_mib * 2.0**20, **self._judges(weights)}
        if self.generator is not None:
            # Read and drawn, read again by the reference, the policy itself and a critic, and updated on.
            again = reference + (config.importance is not None) + (config.critic is not None)
            # Of weights that do not train no gradients are made, which are a third of a step's work.
            updated = 1 if config.lora is None else 2 / 3
            passes = (1 + again) / 3 + config.updates_per_rollout * (updated + (config.critic is not None))
            # A prompt is read once for its completions, as many as stand in a micro-batch.
            read = prompt / min(config.group_size, config.micro_batch) + new
            drawn_from = prompt / config.held_out.members + new  # a token of what is held out is only read
            flops += (texts * read * passes + measured * drawn_from / 3) * flops_per_token(
                self.generator.model, prompt + new
            )
            blocks = config.train_last_blocks or self.generator.model.layers
            # What does not train is the reference policy's too; with adapters that is every weight.
            if config.lora is not None:
                held[_TRAINED] = self.generator.adapting(config.lora.rank, blocks)
            elif config.train_last_blocks is None:
                held[_TRAINED], held[_REFERENCE] = self.generator.training, reference * self.generator.weights
            else:
                held[_TRAINED] = self.generator.partly(blocks)
                held[_REFERENCE] = reference * self.generator.weights_of(blocks)
            if config.critic is not None:
                trained = config.critic.train_last_blocks
                held[_CRITIC] = self.generator.training if trained is None else self.generator.partly(trained)
            held[_ACTIVATIONS] = self.generator.activations(config.micro_batch, math.ceil(read))
            if config.train_last_blocks is not None and (reference or config.importance is not None):
                # What the blocks that do not train make of a step is kept for its updates.
                held[_ACTIVATIONS] += self.generator.hidden(config.prompts_per_step * config.group_size * read)
        disk = self.generator.saved() if self.generator else 0.0
        texts += measured
        tokens = texts * (prompt + new)
        moves = frozenset[str]()
        if config.residency == "parked":
            # Each call of the sampler has pages of its own, unless graphs hold their addresses.
            moves = _PARKED if config.sampler.graphs else _PARKED | {_PAGES}
        sampled = texts * new
        cost = Cost(stage=stage, tokens=tokens, flops=flops, sampled=sampled, held=held, disk=disk, moves=moves)
        if cost.parked:
            self.remarks.append(
                f"{stage}: {cost.parked / 2**30:,.2f} GiB a rank are parked in pinned memory of the host"
            )
        return cost

    def _generate(self, stage: str, operation: str) -> Cost:
        config, tokens = self.recipe.generate, self.train_tokens
        measured = self.recipe.measured(operation) | dict.fromkeys(self.recipe.asked_of_texts, 1.0)
        new, held = config.sampling.max_new_tokens, self._judges(measured)
        if config.server is None:
            held[_PAGES] = config.sampler.cache_mib * 2.0**20
        slices = config.max_slices if tokens is None else max(1.0, tokens * _CHARS_PER_TOKEN / config.max_chars)
        if slices is None:
            return Cost(stage=stage, held=held)
        # By influence it may be less from the second round on.
        share = config.most_share if config.mixture == "influence" else config.shares.get(operation, 1.0)
        texts = max(1.0, share * min(slices, config.max_slices or slices)) * config.samples
        # The slice itself: the words of the prompt around it are few beside it.
        read = min(config.max_chars / _CHARS_PER_TOKEN, self.recipe.prompt.max_tokens)
        flops = self._judged(texts, new, measured)
        # With token files, which only texts of the pretrained model's own tokenizer have: rather too much.
        written = texts * new * (_CHARS_PER_TOKEN / _COMPRESSION + (0 if config.join else self.stored))
        if self.generator is not None:
            held[_WEIGHTS] = self.generator.weights  # a server's answers are checked by them
            if config.server is None:
                flops += texts * (read + new) * flops_per_token(self.generator.model, int(read + new)) / 3
            else:
                written += self.generator.saved()  # what the server loads
        tokens = texts * (read + new)
        return Cost(stage=stage, tokens=tokens, flops=flops, sampled=texts * new, held=held, disk=written)

    def _judged(self, texts: float, length: float, weights: Mapping[str, float]) -> float:
        """FLOPs of the rewards that ask a model, of each text and of its source: influence, and the generator's own."""
        tokens = 2 * texts * length
        flops = tokens * self._passes * self.per_token if weights.get("influence") else 0.0
        if weights.get("quality") and self.recipe.reward.measures("quality") and self.generator is not None:
            flops += tokens * flops_per_token(self.generator.model, int(length)) / 3
        return flops + sum(
            # What questions begin with is read once, and their words are few beside the texts.
            tokens * flops_per_token(judge.model, int(length)) / 3
            for judge in self._models(weights)
        )

    def _judges(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Memory of the models that rewards ask: theta, its probe, the generator as it came, and judges' own."""
        return {
            _ASKED: 2 * self.judge.weights,
            _GENERATOR: self.generator.weights if self.generator else 0.0,
            _JUDGES: sum(judge.weights for judge in self._models(weights)),
        }

    def _models(self, weights: Mapping[str, float]) -> list[Footprint]:
        """The models in the job that judge what has a weight, each once."""
        config = self.recipe.reward.judges.in_job
        asked = {config[name].connection: judge for name, judge in self.in_job.items() if weights.get(name)}
        return list(asked.values())


def _sampled(made: Iterable[Cost]) -> float | None:
    """Tokens that several stages draw; None where that of one is not known."""
    costs = list(made)
    return None if any(cost.tokens is None for cost in costs) else sum(cost.sampled for cost in costs)


def _characters(file: Path | RemoteFile) -> float:
    """About how many characters of text a corpus file holds."""
    plain = file.suffix.lower() in (".jsonl", ".ndjson", ".json", ".txt")
    return file.stat().st_size * (1.0 if plain else _COMPRESSION)
