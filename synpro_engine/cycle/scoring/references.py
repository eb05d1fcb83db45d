"""Directions of reference files that are named for one scoring, in place of a run's probe.

They are kept beside the scores, so that an interrupted scoring goes on along the same ones. They are made by backward
passes in the layout that trains, where ranks may share sequences, and are files to whoever scores in another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from synpro_engine.config import UserError, first_difference, read_manifest
from synpro_engine.cycle.cycle import Cycle
from synpro_engine.cycle.external import fingerprint
from synpro_engine.cycle.run_layout import PRETRAIN, TOKENIZE, shards_path
from synpro_engine.cycle.scoring.model_pair import ModelPair, reading_of
from synpro_engine.cycle.sections import ReferenceConfig
from synpro_engine.cycle.settings import SettingsOf
from synpro_engine.cycle.steps.probe import next_steps, save_directions
from synpro_engine.cycle.steps.tasks import TaskWriter
from synpro_engine.cycle.steps.weights import load_model, stage_checkpoint
from synpro_engine.data import TokenCorpus, check_rows, open_shards, reference_windows
from synpro_engine.dist import Topology, on_main, say, shared_artifact
from synpro_engine.influence import Direction, mean_direction, mean_gradient
from synpro_engine.model.model import Model

KIND = "reference-directions"
Named = Iterator[tuple[str | None, Direction]]
"""The direction of all references (None), and where there are several that of each."""


def pair_of_run(cycle: Cycle, references: Mapping[str, ReferenceConfig], place: Path) -> ModelPair:
    """A run's newest theta, and along what its next step would help `references`, as its `probe` settings say.

    The directions are brought to `place`, where they may be already. Collective, and the layout of pretraining is then
    in force. Raises UserError for files without tasks, and for a `place` that holds the directions of others.
    """
    pair, layout = ModelPair.of_run(cycle, place), cycle.recipe.layout_of(PRETRAIN, cycle.topology.world_size)
    assert layout is not None
    topology = cycle.topology.divided(layout)
    weights = {name: reference.weight for name, reference in references.items()}
    settings = SettingsOf(cycle.recipe).probe.model_copy(update={"references": weights})

    def made(model: Model, corpora: Mapping[str, TokenCorpus]) -> Named:
        checkpoint = stage_checkpoint(pair.theta, topology)
        return next_steps(settings, cycle.directory / TOKENIZE, corpora, checkpoint, model)

    # Capped as the recipe's own references are: the same file then is the same tasks.
    cap, seed = cycle.recipe.corpus.max_held_out_tokens, settings.seed
    capped = {name: one.model_copy(update={"max_tokens": one.max_tokens or cap}) for name, one in references.items()}
    _bring(place, capped, pair, made, {"probe": settings.probe.recorded(), "seed": seed}, topology, seed=seed)
    return pair


def pair_of_checkpoint(
    theta: Path,
    references: Mapping[str, ReferenceConfig],
    place: Path,
    tokenizer: Path | None,
    topology: Topology,
    *,
    rows: int,
) -> ModelPair:
    """The same of a checkpoint: along the gradients as they are, for nothing says what it would read next.

    tokenizer: None takes the one that theta's run recorded. rows: windows at once.
    """
    tokens, dtype = reading_of(theta, tokenizer, topology)
    pair = ModelPair(theta=theta, probe=place, tokenizer=tokens, dtype=dtype)
    weights = {name: reference.weight for name, reference in references.items()}

    def made(model: Model, corpora: Mapping[str, TokenCorpus]) -> Named:
        dp, seq_len = topology.dp, model.config.seq_len
        batches = reference_windows(corpora, weights, seq_len, batch_size=rows, dp_rank=dp.rank, dp_size=dp.size)
        alone = {name: mean_gradient(model, of, label=f"{name} gradient") for name, of in batches.items()}
        yield None, mean_direction(alone, weights)
        if len(alone) > 1:
            yield from alone.items()

    _bring(place, references, pair, made, {}, topology)
    return pair


def _bring(
    place: Path,
    references: Mapping[str, ReferenceConfig],
    pair: ModelPair,
    made: Callable[[Model, Mapping[str, TokenCorpus]], Named],
    settings: Mapping[str, object],
    topology: Topology,
    *,
    seed: int = 0,
) -> None:
    checkpoint = stage_checkpoint(pair.theta, topology)
    config = on_main(topology, lambda: {**_made_from(references, checkpoint), **settings})
    if on_main(topology, lambda: _is_there(place, config)):
        return
    model = load_model(pair.theta, topology, pair.dtype)
    check_rows(pair.tokenizer, model.config.vocab_size, str(pair.theta), "; see --tokenizer")
    for parameter in model.parameters():  # frozen, they would have no gradient
        parameter.requires_grad_(True)
    with shared_artifact(topology, place, KIND, config) as directory:
        writer = TaskWriter(directory, pair.tokenizer, model.config.seq_len, seed, tell=partial(say, topology))
        on_main(topology, lambda: _tokenise(writer, references))
        corpora = {name: open_shards(shards_path(directory, name), pair.tokenizer) for name in references}
        save_directions(directory, model, made(model, corpora))


def _made_from(references: Mapping[str, ReferenceConfig], checkpoint: Path) -> dict[str, object]:
    named = {
        name: {**one.recorded(), "weight": one.weight, "content": fingerprint(one.source)}
        for name, one in references.items()
    }
    return {"theta": read_manifest(checkpoint).content_hash, "references": named}


def _is_there(place: Path, config: Mapping[str, object]) -> bool:
    if not place.exists():
        return False
    difference = first_difference(read_manifest(place).config, config)
    if difference is not None:
        raise UserError(f"{place}: holds the directions of other references: {difference}; give another --output")
    return True


def _tokenise(writer: TaskWriter, references: Mapping[str, ReferenceConfig]) -> None:
    for name, one in references.items():
        try:
            writer.write(name, one, one.max_tokens)
        except UserError as error:
            raise UserError(f"--reference {one.source}: {error}") from None
