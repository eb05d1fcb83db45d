"""The whole loop as a list of stages: the one place that knows in which order things are made from what.

Knows names and dependencies; each stage's work is in `corpus`, `pretraining`, `synthesis` and `evaluation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from synpro_engine.backend import platform
from synpro_engine.cycle.corpus import build_corpus, shard_paths
from synpro_engine.cycle.evaluation import evaluate_stage
from synpro_engine.cycle.external import fingerprint, fingerprint_shards
from synpro_engine.cycle.pretraining import arm_stage, pretrain_stage
from synpro_engine.cycle.probe import probe_stage
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.stages import Stage
from synpro_engine.cycle.synthesis import (
    Inputs,
    generate_stage,
    import_stage,
    synthetic_shards_stage,
    tune_stage,
)
from synpro_engine.dist import Topology, on_main, say


class Plan:
    """The stages of one run, as its recipe, its directory and this rank's place make them."""

    def __init__(self, recipe: Recipe, directory: Path, topology: Topology) -> None:
        """What lies outside the directory is taken as rank 0 sees it. Collective."""
        self.recipe, self.directory, self.topology = recipe, directory, topology
        self._external = on_main(topology, lambda: _external(recipe))

    def theta(self, number: int) -> str:
        """Name of the stage whose weights round `number` (from 1) starts from."""
        return "pretrain" if number == 1 else f"round-{number - 1}/continue"

    def _generator(self, operation: str, number: int) -> str:
        """The stage whose generator round `number` samples from; 0 is the generator as imported."""
        return f"round-{number}/tune-{operation}" if number and operation in self.recipe.tune else "import"

    def stages(self) -> Iterator[Stage]:
        """All stages in order."""
        recipe, topology, tokens = self.recipe, self.topology, self.directory / "tokenize"
        corpus = partial(
            build_corpus,
            corpus=recipe.corpus,
            tokenizer=recipe.tokenizer,
            seed=recipe.seed,
            vocab_size=recipe.model.vocab_size,
            tell=partial(say, topology),
        )
        yield self._stage(
            "tokenize",
            "tokenize",
            lambda into: on_main(topology, lambda: corpus(into), label="tokenize"),
            ("corpus", "tokenizer"),
        )
        work = partial(import_stage, recipe=recipe, tokens=tokens, topology=topology)
        yield self._stage("import", "import", work, ("generator", "dtype"), "tokenize")
        yield self._stage(
            "pretrain",
            "pretrain",
            partial(pretrain_stage, recipe=recipe, tokens=tokens, topology=topology),
            ("model", "pretrain", "dtype"),
            "tokenize",
        )
        for number in range(1, recipe.rounds + 1):
            yield from self._round(number)
        yield from self._ending()

    def _round(self, number: int) -> Iterator[Stage]:
        recipe, topology, directory = self.recipe, self.topology, self.directory
        tokens, theta, prefix = directory / "tokenize", self.theta(number), f"round-{number}"
        work = partial(probe_stage, recipe=recipe, tokens=tokens, theta=directory / theta, topology=topology)
        yield self._stage(f"{prefix}/probe", "probe", work, ("model", "pretrain", "probe", "dtype"), "tokenize", theta)
        for operation in recipe.tune:
            yield self._synthesis("tune", operation, number, self._generator(operation, number - 1))
        for operation in recipe.generate.operations:
            yield self._synthesis("generate", operation, number, self._generator(operation, number))
        generated = {op: f"{prefix}/generate-{op}" for op in recipe.generate.operations}
        corpora = {operation: directory / name for operation, name in generated.items()}
        work = partial(synthetic_shards_stage, tokens=tokens, corpora=corpora, topology=topology)
        yield self._stage(f"{prefix}/shards", "generate", work, (), "tokenize", *generated.values())
        yield self._arm(f"{prefix}/continue", theta, number, recipe.continued.steps)

    def _synthesis(self, kind: str, operation: str, number: int, generator: str) -> Stage:
        theta, probe, directory = self.theta(number), f"round-{number}/probe", self.directory
        inputs = Inputs(
            tokens=directory / "tokenize",
            theta=directory / theta,
            probe=directory / probe,
            base=directory / "import",
            generator=directory / generator,
        )
        work = partial(
            tune_stage if kind == "tune" else generate_stage,
            recipe=self.recipe,
            operation=operation,
            inputs=inputs,
            topology=self.topology,
            number=number,
        )
        parents = dict.fromkeys(("tokenize", theta, probe, "import", generator))
        return self._stage(
            f"round-{number}/{kind}-{operation}",
            kind,
            work,
            (kind, "generate", "reward", "influence", "dtype"),
            *parents,
        )

    def _arm(self, name: str, start: str, rounds: int, steps: int) -> Stage:
        """An arm that trains on from `start` with the synthetic text of the first `rounds` rounds."""
        synthetic = {f"round-{number}": f"round-{number}/shards" for number in range(1, rounds + 1)}
        work = partial(
            arm_stage,
            recipe=self.recipe,
            tokens=self.directory / "tokenize",
            start=self.directory / start,
            synthetic={source: self.directory / stage for source, stage in synthetic.items()},
            steps=steps,
            topology=self.topology,
        )
        return self._stage(
            name, "evaluate", work, ("model", "pretrain", "continued", "dtype"), "tokenize", start, *synthetic.values()
        )

    def _ending(self) -> Iterator[Stage]:
        recipe, directory, last = self.recipe, self.directory, self.recipe.rounds
        yield self._arm("repeat", "pretrain", 0, recipe.continued.steps * last)
        arms = {
            "at the plateau": "pretrain",
            "organic + synthetic": f"round-{last}/continue",
            "repeat organic": "repeat",
        }
        corpora = {op: f"round-{last}/generate-{op}" for op in recipe.generate.operations}
        pair = (self.theta(last), f"round-{last}/probe")
        work = partial(
            evaluate_stage,
            recipe=recipe,
            tokens=directory / "tokenize",
            arms={name: directory / stage for name, stage in arms.items()},
            pair=(directory / pair[0], directory / pair[1]),
            corpora={operation: directory / stage for operation, stage in corpora.items()},
            topology=self.topology,
        )
        parents = dict.fromkeys(("tokenize", *arms.values(), *pair, *corpora.values()))
        yield self._stage("evaluate", "evaluate", work, ("influence", "dtype"), *parents)

    def _stage(self, name: str, command: str, work: Any, sections: tuple[str, ...], *parents: str) -> Stage:
        """`sections` of the recipe are what the result depends on, beside its parents and the seed."""
        settings = self.recipe.model_dump(mode="json")
        config = {section: settings[section] for section in sections} | {"seed": self.recipe.seed}
        if "dtype" in config:
            config["dtype"] = str(platform.resolve_dtype(self.recipe.dtype)).removeprefix("torch.")
        config |= {key: digest for key, digest in self._external.items() if key.split(".")[0] in sections}
        return Stage(name=name, command=command, work=work, config=config, parents=parents, seed=self.recipe.seed)


def _external(recipe: Recipe) -> dict[str, str]:
    """Digests of what the recipe reads from outside the run's directory, by key."""
    sources = {
        "corpus.source": recipe.corpus.source,
        "tokenizer.path": recipe.tokenizer.path,
        "generator.source": recipe.generator.source,
    }
    found = {key: fingerprint(source) for key, source in sources.items()}
    if recipe.corpus.shards is not None:
        found["corpus.shards"] = fingerprint_shards(shard_paths(recipe.corpus))
    return found
