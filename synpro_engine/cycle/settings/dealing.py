"""A recipe, dealt out to its stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synpro_engine.backend import platform
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import held_out_shards, reference_shards
from synpro_engine.cycle.sections import TaskConfig
from synpro_engine.cycle.settings.of_stages import (
    ArmSettings,
    AskedOfGenerator,
    DecideSettings,
    Dtype,
    EvaluateSettings,
    GenerateSettings,
    ImportSettings,
    PretrainSettings,
    ProbeSettings,
    ShardsSettings,
    TasksSettings,
    TokenizeSettings,
    TuneSettings,
    UniqueSettings,
)
from synpro_engine.synth import PAPER, SliceConfig


class SettingsOf:
    """A recipe, dealt out to its stages. None learns its layout: it is handed its place in it, and saves none."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._seed = recipe, recipe.seed
        # Resolved, so that `auto` on another machine is a change of the stage where it means another type.
        self._dtype: Dtype = "bfloat16" if "bfloat16" in str(platform.resolve_dtype(recipe.dtype)) else "float32"

    @property
    def tokenize(self) -> TokenizeSettings:
        """Of `tokenize`."""
        recipe = self._recipe
        return TokenizeSettings(
            corpus=recipe.corpus,
            tokenizer=recipe.tokenizer,
            vocab_size=recipe.model.vocab_size,
            tasks=self._reference_files | self._held_out,
            seed=self._seed,
        )

    @property
    def _references(self) -> dict[str, float]:
        return {reference_shards(name, c.source): c.weight for name, c in self._recipe.references.items()}

    @property
    def _reference_files(self) -> dict[str, TaskConfig]:
        named = self._recipe.references.items()
        # Without the weight, which says nothing of tokens.
        fields = set(TaskConfig.model_fields)
        return {
            reference_shards(name, c.source): TaskConfig.model_validate(c.model_dump(include=fields))
            for name, c in named
            if c.source is not None
        }

    @property
    def _questions(self) -> tuple[str, ...]:
        return tuple(map(held_out_shards, self._recipe.asked)) if self._recipe.pretrain.tasks_every else ()

    @property
    def _held_out(self) -> dict[str, TaskConfig]:
        return {held_out_shards(name): config for name, config in self._recipe.held_out.items()}

    @property
    def references(self) -> TasksSettings | None:
        """Of `references`; None where none is read from files."""
        files = self._reference_files
        return self._tasks(files, held_out=("validation",), searched=tuple(files)) if files else None

    @property
    def held_out(self) -> TasksSettings | None:
        """Of `held-out`; None where there are no such tasks."""
        sets = self._held_out
        return self._tasks(sets, held_out=tuple(sets), searched=("train", *self._references)) if sets else None

    @property
    def asked(self) -> TasksSettings | None:
        """Of `asked`: the questions that are put to models while they train; None where there are none."""
        sets = {held_out_shards(name): self._recipe.held_out[name] for name in self._recipe.asked}
        return self._tasks(sets, held_out=(), searched=()) if sets else None

    def _tasks(
        self, sets: dict[str, TaskConfig], *, held_out: tuple[str, ...], searched: tuple[str, ...]
    ) -> TasksSettings:
        recipe = self._recipe
        return TasksSettings(
            sets=sets,
            max_tokens=recipe.corpus.max_held_out_tokens,
            seq_len=recipe.model.seq_len,
            held_out=held_out,
            searched=searched,
            seed=self._seed,
        )

    @property
    def generator(self) -> ImportSettings:
        """Of `import`."""
        recipe = self._recipe
        arms = {name: recipe.of_arm(name) for name, arm in recipe.arms.items() if arm.in_rounds} or {"": recipe}
        return ImportSettings(
            generator=recipe.generator.model_copy(update={"parallel": None}),
            asked={
                name: AskedOfGenerator(operations=own.generate.names, prompt=own.prompt, filter=own.filter)
                for name, own in arms.items()
            },
            dtype=self._dtype,
            seed=self._seed,
        )

    @property
    def pretrain(self) -> PretrainSettings:
        """Of `pretrain`."""
        recipe = self._recipe
        return PretrainSettings(
            model=recipe.model,
            pretrain=recipe.pretrain.model_copy(update={"parallel": None, "seed": None}),
            references=self._references,
            questions=self._questions,
            organic=recipe.mix.in_pretraining,
            dtype=self._dtype,
            seed=self._training_seed,
        )

    @property
    def _training_seed(self) -> int:
        seed = self._recipe.pretrain.seed
        return self._seed if seed is None else seed

    def arm(
        self,
        steps: int,
        *,
        synthetic: bool,
        rounds: bool = True,
        seed: int | None = None,
        unique_tokens: int | None = None,
    ) -> ArmSettings:
        """Of an arm of so many steps: pretraining's, a decaying schedule goes on where it was.

        synthetic: whether it reads anything beside organic text. rounds: whether it ends where `continued` says, if
        that is earlier. seed: another one than pretraining's. unique_tokens: the most of an oracle's text.
        """
        recipe = self._recipe
        # Without a plateau, so that all arms take as many steps and the comparison is of the text alone.
        plateau = recipe.continued.plateau if rounds else None
        ending = {"max_steps": steps, "plateau": plateau, "in_run": None, "parallel": None, "seed": None}
        pretrain = recipe.pretrain.model_copy(update=ending)
        continued = recipe.continued if synthetic else None
        return ArmSettings(
            model=recipe.model,
            pretrain=pretrain,
            references=self._references,
            questions=self._questions,
            continued=continued,
            train_from=recipe.continued.train_from,
            organic=recipe.mix.organic,
            synthetic=recipe.mix.synthetic if synthetic else None,
            unique_tokens=unique_tokens,
            dtype=self._dtype,
            seed=self._training_seed if seed is None else seed,
        )

    def unique(self, max_tokens: int) -> UniqueSettings:
        """Of `unique`."""
        recipe = self._recipe
        threads = recipe.tokenizer.threads
        return UniqueSettings(corpus=recipe.corpus, max_tokens=max_tokens, threads=threads, seed=self._seed)

    @property
    def decide(self) -> DecideSettings:
        """Of a round's `decide`."""
        return DecideSettings(cycle=self._recipe.cycle)

    @property
    def probe(self) -> ProbeSettings:
        """Of a round's probe."""
        recipe, training = self._recipe, self._recipe.pretrain
        return ProbeSettings(
            model=recipe.model,
            references=self._references,
            probe=recipe.probe,
            optimizer=training.optimizer,
            schedule=training.schedule,
            global_batch=training.global_batch,
            mask_repetitions=training.mask_repetitions,
            separate_documents=training.separate_documents,
            dtype=self._dtype,
            seed=self._seed,
        )

    def tune(self, operation: str, number: int) -> TuneSettings:
        """Of tuning `operation` in round `number`."""
        recipe = self._recipe
        # What chooses slices and nothing else of `generate`: changing how texts are sampled must not undo the tuning.
        slices = SliceConfig.model_validate(recipe.generate.model_dump(include=set(SliceConfig.model_fields)))
        tune = recipe.tune[operation]
        return TuneSettings(tune=tune, slices=slices, **self._synthesis(operation, number, without=tune.without))

    def generate(self, operation: str, number: int) -> GenerateSettings:
        """Of generation by `operation` in round `number`."""
        # One operation at a time: adding another to the recipe leaves the finished stages
        # of the first ones as they are.
        generate = self._recipe.generate.only(operation)
        return GenerateSettings(generate=generate, **self._synthesis(operation, number, self._recipe.asked_of_texts))

    def _synthesis(
        self, operation: str, number: int, also: Sequence[str] = (), without: Sequence[str] = ()
    ) -> dict[str, Any]:
        recipe = self._recipe
        weights = {name: recipe.reward.weights(name) for name in (*PAPER, operation)}
        weights[operation] = {name: weight for name, weight in weights[operation].items() if name not in without}
        reward = recipe.reward.weighing(weights, also)
        return {
            "operation": operation,
            "prompt": recipe.prompt,
            # Those of the paper's operations are recorded in every run that there is. Of the others this one's alone:
            # an operation that is added or weighted otherwise leaves the stages of the rest as they are.
            # So is it with questions of the user's own.
            "reward": reward.asking((*also, *recipe.reward.weights(operation))),
            "influence": recipe.influence,
            "dtype": self._dtype,
            "seed": self._seed,
            "round": number,
        }

    @property
    def shards(self) -> ShardsSettings:
        """Of a round's synthetic shards."""
        recipe = self._recipe
        held_out = (
            ("validation", *map(held_out_shards, recipe.held_out)) if recipe.filter.max_leaked is not None else ()
        )
        return ShardsSettings(filter=recipe.filter, held_out=held_out, megadocs=recipe.mix.megadocs, seed=self._seed)

    @property
    def evaluate(self) -> EvaluateSettings:
        """Of `evaluate`."""
        recipe = self._recipe
        return EvaluateSettings(
            held_out=("validation", *map(held_out_shards, recipe.held_out)),
            influence=recipe.influence,
            seq_len=recipe.model.seq_len,
            separate_documents=recipe.pretrain.separate_documents,
            micro_batch=recipe.pretrain.micro_batch,
            dtype=self._dtype,
        )
