"""Where everything of a run stands: the names of its stages and of the files in them. Nothing else spells one.

    config.yaml  environment.json  stages.jsonl  report.html  judges/  served/     of the run itself
    tokenize     references        held-out                      text as tokens, once
    import       pretrain                                        models, once
    round-N/     probe  tune-OPERATION  generate-OPERATION  shards  continue  decide
    repeat       evaluate                                        the other arm, and what came of it all
    unique                                                       organic text that only an oracle reads
    arms/NAME/   round-N/  continue  evaluate                    every other arm

What a package writes wherever it is asked to (checkpoints, metrics, a synthetic corpus) is named by that package.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from synpro_engine.data import Split

CONFIG, ENVIRONMENT, TIMES, REPORT = "config.yaml", "environment.json", "stages.jsonl", "report.html"
JUDGES = "judges"
"""Beside the stages: answers of remote judges, which every stage may use again."""
STACKS = "stacks"
"""Beside the stages: where each rank was when training hung."""
SERVED = "served"
"""Beside the stages: weights that a server is to generate with, each folder as long as its stage needs it."""

TOKENIZE, IMPORT, PRETRAIN, REPEAT, EVALUATE = "tokenize", "import", "pretrain", "repeat", "evaluate"
REFERENCES, HELD_OUT, ASKED = "references", "held-out", "asked"
"""Tasks from files as tokens, where there are any, and the questions among them that training asks."""

TOKENIZER = "tokenizer"
"""Of `tokenize` and `import`: the tokenizer's files."""
ACCOUNT, LEFT_OUT = "corpus.json", "left_out.jsonl"
"""Of `tokenize`: what became of the corpus, and the records that were left out."""
UNFINISHED = "work"
"""Of `tokenize` while it is made: what it needs to go on after a kill."""
TASKS, TASKS_LEFT_OUT = "tasks.json", "left_out"
"""Of `references` and `held-out`: what became of the tasks. Of these and `asked`: a folder with a list of the records
that were left out for each source."""
QUESTIONS = "questions"
"""Of `asked`: a folder with the multiple-choice questions of each source that has such."""
USED_SCORES = "scores"
"""Of `pretrain` and both arms: a folder with the scores, by source, that documents were repeated and ordered by."""
TRAINING_RESULT = "result.json"
"""Of `pretrain` and every arm: how training ended."""
WALK_STEPS = "steps.jsonl"
"""Of a probe that walked: its steps."""
ARMS, UNIQUE = "arms", "unique"
"""The folder of arms that a recipe names; organic text beyond the train split, which is also a source of its name."""
SYNTHETIC_ARM, REPETITION_ARM = "synthetic", "repetition"
"""The arms of a recipe that names none. Their stages stand beside `pretrain`, as they did before there were others."""
TITLES = {SYNTHETIC_ARM: "organic + synthetic", REPETITION_ARM: "repeat organic"}
"""What these are called where people read of them."""
DECISION = "decision.json"
"""Of a round's `decide`: whether another round follows, and why."""
CHECKPOINT, DIRECTION, DIRECTIONS = "checkpoint", "direction", "directions"
"""Of `import` and a probe: weights, or a direction in weight space; and of several references, a folder with the one of
each."""
CORPUS = "corpus"
"""Of `generate-OPERATION`: the synthetic corpus."""
SYNTHETIC, SYNTHETIC_TOKENS = "synthetic", "tokens.json"
"""Of a round's `shards`: the name of its token shards, and how many tokens each operation gave."""
MIXTURE = "mixture.json"
"""Of `generate-OPERATION`, where slices are shared by influence: what each operation earned, and the share of this."""
FILTERED, REMOVED = "filters.json", "removed.jsonl"
"""Of a round's `shards`: how much the filters kept and removed, and each text that they removed."""
STITCHED = "megadocs.jsonl.zst"
"""Of a round's `shards` with `mix.megadocs`: of which texts each document consists."""
EVALUATION = "results.json"
"""Of `evaluate`: what was measured."""
SAMPLE = 2000
"""Most texts of an operation, and of the organic ones, that `evaluate` measures: medians and ratios need no more."""

_ROUND = re.compile(r"round-\d+")
# No split has a name that begins like these.
_REFERENCE, _HELD_OUT = "reference-", "held-out-"


@dataclass(frozen=True)
class Round:
    """The stages of one round of an arm, by its number from 1."""

    number: int
    of_arm: str = SYNTHETIC_ARM

    @property
    def name(self) -> str:
        """What the round's text is called among sources; ids of its documents begin with it from round 2 on."""
        return f"round-{self.number}"

    @property
    def place(self) -> str:
        """The directory of the round's stages."""
        return f"{place_of_arm(self.of_arm)}{self.name}"

    @property
    def probe(self) -> str:
        """What helping the reference means for theta."""
        return f"{self.place}/probe"

    @property
    def own_probe(self) -> str:
        """The same of an arm whose first probe is another one than that of all arms."""
        return f"{ARMS}/{self.of_arm}/{self.name}/probe"

    def tune(self, operation: str) -> str:
        """The generator of one operation, tuned."""
        return f"{self.place}/tune-{operation}"

    def generate(self, operation: str) -> str:
        """The synthetic documents of one operation."""
        return f"{self.place}/generate-{operation}"

    def served(self, operation: str, weights: str) -> str:
        """The folder of a generator that is served, and what its server calls it; weights: their hash."""
        return f"{operation}-{self.number}-{weights[:12]}"

    @property
    def shards(self) -> str:
        """The round's synthetic documents as the pretrained model's tokens."""
        return f"{self.place}/shards"

    @property
    def arm(self) -> str:
        """Training on with the synthetic text."""
        return f"{self.place}/continue"

    @property
    def decide(self) -> str:
        """Whether another round follows."""
        return f"{self.place}/decide"

    @property
    def theta(self) -> str:
        """The stage whose weights the round starts from."""
        return PRETRAIN if self.number == 1 else Round(self.number - 1, self.of_arm).arm


def place_of_arm(arm: str) -> str:
    """The folder of an arm's stages with a slash behind it; nothing for the arm whose rounds are the run's own."""
    return "" if arm == SYNTHETIC_ARM else f"{ARMS}/{arm}/"


def training_of_arm(arm: str) -> str:
    """The stage of an arm that trains on once, and in no rounds."""
    return REPEAT if arm == REPETITION_ARM else f"{ARMS}/{arm}/continue"


def evaluation_of_arm(arm: str) -> str:
    """The stage that measures an arm of a recipe that names its arms."""
    return f"{ARMS}/{arm}/{EVALUATE}"


def seeded(stage: str, seed: int | None) -> str:
    """The name of a training stage with another seed than the run's; None: the run's own."""
    return stage if seed is None else f"{stage}-seed-{seed}"


def is_round(directory: Path) -> bool:
    """Whether a directory has the name of a round's."""
    return _ROUND.fullmatch(directory.name) is not None


def round_folders(run: Path) -> list[Path]:
    """The folders of all rounds of a run, of every arm."""
    return sorted(path for path in (*run.glob("*"), *run.glob(f"{ARMS}/*/*")) if is_round(path))


def run_of(stage: Path, name: str) -> Path:
    """The run's directory, from the path and the name of one of its stages."""
    # By the name's depth: a round's stages lie one folder deeper than the others.
    return stage.parents[name.count("/")]


def tokenizer_stage(stage: str) -> str:
    """The stage that holds the tokenizer of a stage's weights: a generator's came with it."""
    return IMPORT if stage == IMPORT or "/tune-" in stage else TOKENIZE


def model_of(stage: str) -> Literal["pretrain", "generator"] | None:
    """Whose layout a stage runs in, by the section of a recipe that may set it; None where no model is asked."""
    name = stage.rpartition("/")[2]
    if name in (TOKENIZE, REFERENCES, HELD_OUT, ASKED, UNIQUE, "shards", "decide"):
        return None
    return "generator" if name == IMPORT or name.startswith(("tune-", "generate-")) else "pretrain"


def shares_sequences(stage: str) -> bool:
    """Whether context-parallel ranks share a stage's sequences: where they are trained on, and by the probe."""
    return model_of(stage) == "pretrain" and stage.rpartition("/")[2] != EVALUATE


def documents_path(stage: Path, split: Split | Literal["unique"]) -> Path:
    """The documents of a split inside the `tokenize` artifact, or those of `unique` inside its own."""
    return stage / "documents" / f"{split}.jsonl.zst"


def shards_path(stage: Path, name: str) -> Path:
    """The token shards of a split or a synthetic source inside their artifact."""
    return stage / "shards" / name


def questions_path(stage: Path, name: str) -> Path:
    """The questions of held-out tasks, by the name of their shards, inside the `asked` artifact."""
    return stage / QUESTIONS / f"{name}.jsonl"


def reference_shards(name: str, source: str | None) -> str:
    """What the shards of the reference `name` are called: those without a source of their own are the split's."""
    return "reference" if source is None else f"{_REFERENCE}{name}"


def held_out_shards(name: str) -> str:
    """What the shards of the held-out tasks `name` are called."""
    return f"{_HELD_OUT}{name}"


def task_key(shards: str) -> str:
    """The key of a recipe that names the source of a reference or held-out tasks."""
    section = "references" if shards.startswith(_REFERENCE) else "held_out"
    return f"{section}.{shards.removeprefix(_REFERENCE).removeprefix(_HELD_OUT)}"


def measured_path(tokens: Path, name: str) -> Path:
    """The shards of a split, a reference or held-out tasks by their name; `tokens` is the `tokenize` stage."""
    prefixes = {_REFERENCE: REFERENCES, _HELD_OUT: HELD_OUT}
    stages = [tokens.with_name(stage) for prefix, stage in prefixes.items() if name.startswith(prefix)]
    return shards_path(stages[0] if stages else tokens, name)
