"""Digests of what stages read from outside the run's directory, so that a changed file makes a stage another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from synpro_engine.config import UserError, json_text, read_manifest
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.config.own_code import own_reference
from synpro_engine.cycle.arm_files import judge_files, learnt_from
from synpro_engine.cycle.external import asked_keys, fingerprint, is_put_away, task_keys
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import (
    ASKED,
    HELD_OUT,
    IMPORT,
    PRETRAIN,
    REFERENCES,
    TOKENIZE,
    UNIQUE,
    Round,
    seeded,
    training_of_arm,
)

Contents = dict[str, dict[str, str]]
"""By stage: digests by key."""
_Recorded = dict[tuple[str, str], str]
"""By key and the place that it names: digests."""
_OUTSIDE: dict[str, tuple[str, ...]] = {
    TOKENIZE: ("corpus.source", "corpus.shards", "tokenizer.path"),
    UNIQUE: ("corpus.source", "corpus.shards"),
    IMPORT: ("generator.source",),
}
"""Keys that name what a stage reads from outside the run's directory."""


def contents_of(recipe: Recipe, stored: Recipe | None, directory: Path) -> Contents:
    """By the stage that reads it: digests of what the recipe names outside the run's directory, by key.

    stored: the recipe of the run that is there. Of a file that is gone, but stands in it under the same path, it is the
    one that the finished stage recorded, or that of another arm which it shares: a corpus may be put away once it is
    tokenised, and there is nothing to make the stage from anew.
    """
    references, held_out = task_keys(recipe)
    outside = dict(_OUTSIDE)
    if recipe.corpus.validation_shards is not None:  # not of runs of before it was there
        outside[TOKENIZE] += ("corpus.validation_shards",)
    keys = outside | {REFERENCES: references, HELD_OUT: held_out, ASKED: asked_keys(recipe)}
    keys |= {PRETRAIN: learnt_from(recipe.pretrain, recipe.mix)}
    recorded: _Recorded = {}
    contents = _digests(keys, recipe, stored, directory, recorded)
    for name in recipe.all_arms:
        before = stored.of_arm(name) if stored is not None and name in stored.all_arms else None
        own = recipe.of_arm(name)
        contents |= _digests(_keys_of_arm(recipe, own, name), own, before, directory, recorded)
        for stage, key, file in _own_files(own, _rounds(recipe, name)):
            contents.setdefault(stage, {})[key] = fingerprint(file)
    return contents


def places_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """By stage of an arm: the places that the arm's settings name, by key, whatever lies there."""
    places: dict[str, dict[str, Any]] = {}
    for name in recipe.all_arms:
        own = recipe.of_arm(name)
        for stage, keys in _keys_of_arm(recipe, own, name).items():
            places[stage] = {key: own.at(key) for key in keys}
        for stage, key, file in _own_files(own, _rounds(recipe, name)):
            places.setdefault(stage, {})[key] = file
    return places


def _digests(
    keys: Mapping[str, Sequence[str]], recipe: Recipe, stored: Recipe | None, directory: Path, recorded: _Recorded
) -> Contents:
    """recorded: of what stands, as finished stages have it; those of `keys` are added."""
    contents: Contents = {}
    for stage, names in keys.items():
        standing: dict[str, str] = {}
        if stored is not None:
            # Under another path a file that is gone is a slip, and not one that was put away.
            same = [key for key in names if _is_there(stored, key) and stored.at(key) == recipe.at(key)]
            gone = {key: (key, json_text(recipe.at(key))) for key in same if _stands(recipe, key)}
            if (directory / stage / MANIFEST).exists():
                own = read_manifest(directory / stage).config.get("contents", {})
                recorded |= {place: own[key] for key, place in gone.items() if key in own}
            # Of what arms share the stage stands under the first one's name alone.
            standing = {key: recorded[place] for key, place in gone.items() if place in recorded}
        if names or stage in (REFERENCES, HELD_OUT):
            # What an earlier stage read under the same key is the same content, and is looked at once.
            known = {key: digest for earlier in contents.values() for key, digest in earlier.items()} | standing
            contents[stage] = {key: known.get(key) or _content(recipe, key) for key in names}
    return contents


def _stands(recipe: Recipe, key: str) -> bool:
    """Whether nothing is read under a key, so that what was recorded stands, of whatever version."""
    value = recipe.at(key)
    unread = key == "corpus.source" and recipe.corpus.shards is not None
    return unread or value == "random" or is_put_away(value)


def _rounds(recipe: Recipe, arm: str) -> list[Round]:
    return [Round(number, arm) for number in range(1, recipe.rounds + 1)] if recipe.all_arms[arm].in_rounds else []


def _keys_of_arm(recipe: Recipe, own: Recipe, name: str) -> dict[str, tuple[str, ...]]:
    """By stage of an arm: keys of judges that it asks, of teachers and of scores."""
    rounds, files, named = _rounds(recipe, name), judge_files(own.reward), own.reward.judges

    def asked(operation: str, also: Sequence[str] = ()) -> dict[str, str]:
        # Of judges that a question is put to those alone that are asked: another's files leave a stage as it is.
        weighed = {*also, *own.reward.weights(operation)}
        return {key: reward for key, reward in files.items() if reward not in named.asked or reward in weighed}

    keys = {this.tune(operation): tuple(asked(operation)) for this in rounds for operation in own.tune}
    for this in rounds:
        for operation in own.generate.names:
            of_texts = asked(operation, own.asked_of_texts).items()
            keys[this.generate(operation)] = tuple(key for key, reward in of_texts if own.generate.measures(reward))
    trained = [this.arm for this in rounds] or [training_of_arm(name)]
    return keys | {
        seeded(stage, seed): learnt_from(own.pretrain, own.mix) for stage in trained for seed in recipe.arm_seeds
    }


def _own_files(own: Recipe, rounds: Sequence[Round]) -> Iterator[tuple[str, str, str]]:
    """Stage, key and file of each piece of the user's own code that an arm's rounds run."""
    for operation, file in own.generate.files.items():
        for stage in (stage for this in rounds for stage in (this.tune(operation), this.generate(operation))):
            yield stage, "generate.operations", str(file)
    for this in rounds:
        for operation, config in own.tune.items():
            if (code := own_reference(config.surrogate)) is not None:
                yield this.tune(operation), f"tune.{operation}.surrogate", str(code.file)
        for name, reference in own.reward.functions.items():
            code = own_reference(reference)
            assert code is not None, "the settings were checked"
            for stage in _stages_that_measure(own, this, name):
                yield stage, f"reward.functions.{name}", str(code.file)


def _content(recipe: Recipe, key: str) -> str:
    try:
        return fingerprint(recipe.at(key))
    except UserError as error:
        raise UserError(f"`{key}`: {error}") from None


def _stages_that_measure(recipe: Recipe, this: Round, reward: str) -> list[str]:
    """The stages of a round that ask a reward of the user's own."""
    weighing = [name for name in recipe.generate.names if recipe.reward.weights(name).get(reward)]
    generated = [this.generate(name) for name in weighing if recipe.generate.measures(reward)]
    return [this.tune(name) for name in weighing if name in recipe.tune] + generated


def _is_there(recipe: Recipe, key: str) -> bool:
    """Whether the recipe has what the key names: tasks of a name, judges from files, and teachers it may lack."""
    section, name, *_ = key.split(".")
    if name == "distill":
        return recipe.pretrain.distill is not None
    if section == "mix":
        return recipe.mix.from_file
    if section == "reward":
        return key in judge_files(recipe.reward)
    return section not in ("references", "held_out") or name in recipe.at(section)
