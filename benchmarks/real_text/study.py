"""What is trained in the study, in which order, and by which commands of the engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from synpro_engine.cycle import Recipe, load_recipe
from synpro_engine.cycle.run_layout import TOKENIZE, TOKENIZER

RECIPE = Path(__file__).with_name("recipe.yaml")
SIZES = {"unique-2": 2, "unique-4": 4}
"""Trainings on so many times the bound text, all unique, by the settings of tuned repetition."""
UNTUNED = "untuned"
UNTUNED_SIZES = {f"{name}-{UNTUNED}": times for name, times in SIZES.items()}
"""The same by the settings of untuned repetition."""
FROM_SCRATCH = (UNTUNED, *SIZES, *UNTUNED_SIZES)
"""Trained from the first step on, for theta has read the bound text by the tuned settings."""
BASE = "repetition"
CURVES = {"tuned repetition": (BASE, *SIZES), "untuned repetition": (UNTUNED, *UNTUNED_SIZES)}
"""What multiples are of: names of trainings, from the fewest unique tokens on."""


@dataclass(frozen=True)
class Job:
    """One piece of the study. seed: of a training from scratch; None: an arm of the recipe, with all of its seeds."""

    name: str
    seed: int | None = None


@dataclass(frozen=True)
class Study:
    """The study of one recipe in one place. tuned: settings of tuned repetition, as overrides."""

    recipe_file: Path
    place: Path
    tuned: tuple[str, ...]

    @property
    def run(self) -> Path:
        """The directory of the run that all arms share."""
        return self.place / "run"

    def directory(self, job: Job) -> Path:
        """Where the run of a job stands."""
        return self.run if job.seed is None else self.place / job.name / f"seed-{job.seed}"

    def recipe(self, job: Job | None = None) -> Recipe:
        """The recipe as a job has it; None: as arms have it."""
        return load_recipe(str(self.recipe_file), self.tuned if job is None else self.settings(job))

    def settings(self, job: Job) -> Sequence[str]:
        """What a job's command changes of the recipe."""
        if job.seed is None:
            return self.tuned
        whole = self.recipe()
        own = [
            "arms={}",
            "seeds=[]",
            "held_out={}",
            f"pretrain.seed={job.seed}",
            f"pretrain.max_steps={whole.pretrain.max_steps + whole.continued.steps}",
        ]
        own = [*self.tuned, *own] if job.name in SIZES else own
        if job.name == UNTUNED:
            return own
        assert whole.corpus.max_train_tokens is not None
        tokens = (SIZES | UNTUNED_SIZES)[job.name] * whole.corpus.max_train_tokens
        # Losses a token compare under one vocabulary alone.
        return [*own, f"corpus.max_train_tokens={tokens}", f"tokenizer.path={self.tokenizer}"]

    @property
    def tokenizer(self) -> Path:
        """That of the shared run, which trainings on more text read theirs by."""
        return self.run / TOKENIZE / TOKENIZER

    def commands(self, job: Job) -> Iterator[list[str]]:
        """The engine's commands that do a job, or go on with it."""
        shared = [str(self.recipe_file), *self.tuned, "--dir", str(self.run)]
        if job.seed is None:
            yield ["pretrain", *shared]  # theta, which is looked at before an arm goes on from it
        elif job.name in SIZES | UNTUNED_SIZES and not self.tokenizer.exists():
            yield ["tokenize", *shared]
        what = ["evaluate", "--only", job.name] if job.seed is None else ["pretrain"]
        verb, *options = what
        yield [verb, str(self.recipe_file), *self.settings(job), *options, "--dir", str(self.directory(job))]

    def join(self) -> list[str]:
        """The engine's command that helps with what a job generates in the shared run."""
        return ["generate", str(self.recipe_file), *self.tuned, "--dir", str(self.run), "--join"]


def jobs(recipe: Recipe) -> list[Job]:
    """All there is to do: the first arm, the first seed from scratch, the other arms, the other seeds."""
    first, *others = map(Job, recipe.arms)
    seed, *seeds = recipe.seeds
    scratch = [[Job(name, one) for name in FROM_SCRATCH] for one in (seed, *seeds)]
    return [first, *scratch[0], *others, *(job for one in scratch[1:] for job in one)]


def expected(recipe: Recipe) -> list[tuple[str, int]]:
    """Arm and seed of every record that a whole study has, in the order of the jobs."""
    return [(job.name, seed) for job in jobs(recipe) for seed in (recipe.seeds if job.seed is None else (job.seed,))]
