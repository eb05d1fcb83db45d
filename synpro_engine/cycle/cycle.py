"""The whole loop as a list of stages: the one place that knows in which order things are made from what.

Knows names and dependencies; each stage's work is in `corpus`, `pretraining`, `synthesis` and `evaluation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from synpro_engine.backend import platform
from synpro_engine.config import UserError, atomic_write_text, read_manifest, read_yaml, to_yaml
from synpro_engine.cycle.corpus import build_corpus
from synpro_engine.cycle.evaluation import evaluate_stage
from synpro_engine.cycle.export import export_stage
from synpro_engine.cycle.external import fingerprint
from synpro_engine.cycle.preflight import check_recipe
from synpro_engine.cycle.pretraining import arm_stage, pretrain_stage
from synpro_engine.cycle.probe import probe_stage
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.stages import Stage, run_stages, stage_times
from synpro_engine.cycle.summary import report_data, write_environment
from synpro_engine.cycle.synthesis import (
    Inputs,
    generate_stage,
    import_stage,
    synthetic_shards_stage,
    tune_stage,
)
from synpro_engine.dist import Topology, barrier, on_main, say
from synpro_engine.report import closing_summary, write_report

CONFIG = "config.yaml"
REPORT = "report.html"
# A run may go on in another layout: what is computed is the same up to rounding.
_FREE = ("parallel",)


class Cycle:
    """One run: a recipe, its directory and this rank's place."""

    def __init__(self, recipe: Recipe, directory: Path, topology: Topology) -> None:
        self.recipe, self.directory, self.topology = recipe, directory, topology
        sources = {
            "corpus.source": recipe.corpus.source,
            "tokenizer.path": recipe.tokenizer.path,
            "generator.source": recipe.generator.source,
        }
        self._external = {key: fingerprint(source) for key, source in sources.items()}

    def claim_directory(self) -> None:
        """Store the resolved recipe in the directory; UserError when another recipe's run is there. Collective.

        A directory in which no stage was ever finished may be claimed by another recipe.
        """
        on_main(self.topology, self._claim)

    def _claim(self) -> None:
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"{self.directory}: is a file; --dir names the run's directory")
        if (self.directory / CONFIG).exists() and stage_times(self.directory):
            self._check_config()
        self.directory.mkdir(parents=True, exist_ok=True)
        atomic_write_text(self.directory / CONFIG, to_yaml(self.recipe))
        write_environment(self.directory, self.topology)

    def open_directory(self) -> None:
        """Make sure that this recipe's run is there, and change nothing; UserError when it is not. Collective."""

        def check() -> None:
            if not (self.directory / CONFIG).exists():
                raise UserError(f"{self.directory}: no run is there; `synpro run` makes one")
            self._check_config()

        on_main(self.topology, check)

    def _check_config(self) -> None:
        difference = _first_difference(read_yaml(self.directory / CONFIG), self.recipe.model_dump(mode="json"))
        if difference:
            raise UserError(f"{self.directory}: holds a run of another config: {difference}; give another --dir")

    def run(self, until: str | None = None) -> None:
        """Bring the run up to the stages of command `until`, or through all of them and the report. Collective."""
        if until in (None, "tune", "generate", "evaluate"):
            check_recipe(self.recipe, self.topology)
        self.claim_directory()
        run_stages(self.directory, list(self.stages()), self.topology, until)
        if until is None:
            self.write_report()

    def write_report(self) -> None:
        """Write `report.html` from what is there. Collective."""

        def write() -> None:
            data = report_data(self.directory, self.recipe, list(self.stages()))
            write_report(data, self.directory / REPORT)
            say(self.topology, closing_summary(data, self.directory / REPORT))

        on_main(self.topology, write)
        barrier(self.topology)

    def export(self, stage: str, output: Path) -> None:
        """Write one stage's weights as a Hugging Face directory. Collective."""
        export_stage(self.directory, stage, output, self.recipe, self.topology)

    @property
    def probe_pair(self) -> tuple[str, str]:
        """Names of the stages of theta and of the newest finished probe made from it.

        Raises UserError when there is no probe yet, and when theta was made anew since: the two would not belong
        together, and their difference would be no influence of anything.
        """
        for number in range(self.recipe.rounds, 0, -1):
            theta, probe = self._theta(number), f"round-{number}/probe"
            if (self.directory / probe).exists():
                made_from = read_manifest(self.directory / probe).parents.get(theta)
                if made_from != read_manifest(self.directory / theta).content_hash:
                    raise UserError(f"{self.directory / probe}: was made from another {theta}; `synpro probe` mends it")
                return theta, probe
        raise UserError(f"{self.directory}: no probe yet; `synpro probe` makes it")

    def _theta(self, number: int) -> str:
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
        )
        yield self._stage(
            "tokenize", "tokenize", lambda into: on_main(topology, lambda: corpus(into)), ("corpus", "tokenizer")
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
        tokens, theta, prefix = directory / "tokenize", self._theta(number), f"round-{number}"
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
        theta, probe, directory = self._theta(number), f"round-{number}/probe", self.directory
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
        pair = (self._theta(last), f"round-{last}/probe")
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


def _first_difference(theirs: Any, ours: Any, path: str = "") -> str:
    """The first key where two resolved configs differ, in words; "" when they agree."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            if not path and key in _FREE:
                continue
            found = _first_difference(theirs.get(key), ours.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return ""
    return "" if theirs == ours else f"`{path}` is {theirs} there, {ours} here"
