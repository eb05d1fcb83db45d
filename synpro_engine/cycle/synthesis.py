"""The stages around the generator: import, tune, generate, and the shards of what it wrote."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synpro_engine.backend import platform
from synpro_engine.config import UserError, atomic_write_text, json_text, remove_directory
from synpro_engine.cycle.corpus import TOKENIZER, documents_path, open_tokenizer, shards_path
from synpro_engine.cycle.probe import load_probe
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.weights import CHECKPOINT, load_model, weights_hash
from synpro_engine.data import (
    Document,
    Tokenizer,
    check_rows,
    document_ids,
    load_tokenizer,
    read_documents,
    stable_hash,
    start_id,
    write_shards,
)
from synpro_engine.dist import Topology, on_main, say
from synpro_engine.influence import TextInfluence, build_estimator, text_likelihood
from synpro_engine.model.build import build_model
from synpro_engine.model.pretrained import import_model
from synpro_engine.reward import Composer, build_composer
from synpro_engine.rl.reference_policy import prepare_policy
from synpro_engine.rl.trainer import tune
from synpro_engine.sampler import Sampler
from synpro_engine.synth import (
    GenerateConfig,
    Slice,
    generate_corpus,
    operation_named,
    read_yield,
    render_chat,
    stop_ids,
    work_list,
)
from synpro_engine.synth.generate import DOCUMENTS
from synpro_engine.train.checkpoint import CHECKPOINTS, save_checkpoint

CORPUS = "corpus"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The finished stages that tuning and generation read."""

    tokens: Path
    theta: Path
    probe: Path
    base: Path
    """The generator as imported: the judge of fluency, and the holder of the tokenizer."""
    generator: Path
    """The generator to start from (tune) or to sample from (generate)."""


def import_stage(into: Path, recipe: Recipe, tokens: Path, topology: Topology) -> None:
    """Bring the generator into a checkpoint of ours, with its tokenizer beside it."""
    generator, dtype = recipe.generator, platform.resolve_dtype(recipe.dtype)
    tokenizer_dir = into / TOKENIZER
    on_main(topology, lambda: tokenizer_dir.mkdir(exist_ok=True))
    if generator.model is not None:
        model = build_model(generator.model, topology, dtype=dtype, seed=recipe.seed + 1)
        tokenizer = open_tokenizer(tokens, topology)
    else:
        imported = import_model(
            generator.source, topology, tokenizer_dir=tokenizer_dir, dtype=dtype, seq_len=generator.seq_len
        )
        model, tokenizer = imported.model, on_main(topology, lambda: load_tokenizer(imported.tokenizer))
    check_rows(tokenizer, model.config.vocab_size, f"`generator`: {generator.source}")
    on_main(topology, lambda: _check_prompts(recipe.generate, tokenizer))
    on_main(topology, lambda: tokenizer.save(tokenizer_dir))
    save_checkpoint(into / CHECKPOINT, model, seed=recipe.seed)


def _check_prompts(config: GenerateConfig, tokenizer: Tokenizer) -> None:
    """Ask for each operation once, so that a chat format that cannot be had is told of before anything is trained."""
    for name in config.operations:
        operation = operation_named(name, prefill=config.prefill)
        render_chat(operation.messages("A text."), operation.prefill, tokenizer, config.chat_format)
    stop_ids(tokenizer, config.chat_format)


def build_rewards(recipe: Recipe, inputs: Inputs, topology: Topology) -> Composer:
    """The recipe's rewards over the models of this round; those without weight load nothing."""
    dtype, words = platform.resolve_dtype(recipe.dtype), open_tokenizer(inputs.tokens, topology)
    own = open_tokenizer(inputs.base, topology)
    influence_of: TextInfluence | None = None
    likelihood_of: Callable[[Sequence[str]], list[float]] | None = None
    if recipe.reward.uses("influence"):
        theta = load_model(inputs.theta, topology, dtype)
        probe = load_probe(inputs.probe, theta, dtype)
        influence = build_estimator(recipe.influence, theta, probe, start_id=start_id(words))
        same = own.fingerprint == words.fingerprint
        influence_of = TextInfluence(influence, words.encode, same_tokenizer=same)
    if recipe.reward.uses("quality"):
        judge = load_model(inputs.base, topology, dtype)
        likelihood_of = text_likelihood(judge, own.encode, start_id=start_id(own))
    return build_composer(recipe.reward, influence_of=influence_of, likelihood_of=likelihood_of, device=topology.device)


def _round_seed(recipe: Recipe, number: int) -> int:
    """A seed of its own for each round, or a later round would write the first one's texts again."""
    return recipe.seed if number == 1 else stable_hash(recipe.seed, "round", str(number)) >> 1


def _slices(recipe: Recipe, tokens: Path, seed: int) -> list[Slice]:
    """The slices that generation will see, each once: tuning practises on those."""
    items = work_list(read_documents(str(documents_path(tokens, "train"))), recipe.generate, seed)
    first = recipe.generate.operations[0]
    return [item.slice for item in items if item.operation == first]


def tune_stage(into: Path, recipe: Recipe, operation: str, inputs: Inputs, topology: Topology, number: int) -> None:
    """Tune one operation's generator with GRPO; the tuned weights end in `policy`."""
    config, seed = recipe.tune[operation], _round_seed(recipe, number)
    policy = load_model(inputs.generator, topology, platform.resolve_dtype(recipe.dtype))
    for parameter in policy.parameters():
        parameter.requires_grad_(True)
    reference_policy = prepare_policy(policy, config)
    result = tune(
        config,
        policy=policy,
        reference_policy=reference_policy,
        tokenizer=open_tokenizer(inputs.base, topology),
        operation=operation_named(operation, prefill=config.prefill),
        slices=_slices(recipe, inputs.tokens, seed),
        scorer=build_rewards(recipe, inputs, topology),
        reward_weights=recipe.reward.weights(operation),
        directory=into,
        seed=seed,
        label=f"tune {operation}",
    )
    if result.first_reward is not None and result.last_reward is not None:  # a step was left to do
        rewards = f"mean reward {result.first_reward:.3f} at first, {result.last_reward:.3f} at last"
        say(topology, f"tuned {operation}: {rewards}")
    # The policy is whole; what was kept to resume from (optimizer state, a second copy of the weights) is not needed.
    on_main(topology, lambda: remove_directory(into / CHECKPOINTS))


def generate_stage(into: Path, recipe: Recipe, operation: str, inputs: Inputs, topology: Topology, number: int) -> None:
    """Generate one operation's synthetic documents over the corpus, with rewards and provenance."""
    model = load_model(inputs.generator, topology, platform.resolve_dtype(recipe.dtype))
    composer = build_rewards(recipe, inputs, topology)
    report = generate_corpus(
        into / CORPUS,
        read_documents(str(documents_path(inputs.tokens, "train"))),
        Sampler(model),
        open_tokenizer(inputs.base, topology),
        recipe.generate.model_copy(update={"operations": (operation,)}),
        topology,
        generator_hash=weights_hash(model),
        seed=_round_seed(recipe, number),
        scorer=composer.rows,
        prefix="" if number == 1 else f"round-{number}/",
    )
    say(topology, f"generated {operation}: {report.summary}")
    if composer.faults:
        say(topology, f"generated {operation}: {composer.faults} rewards were no number in range and are not recorded")


def synthetic_shards_stage(into: Path, tokens: Path, corpora: Mapping[str, Path], topology: Topology) -> None:
    """Tokenise a round's synthetic documents for the pretrained model; `corpora` are generate stages by operation."""
    tokenizer = open_tokenizer(tokens, topology)

    def write() -> None:
        counts = {}
        found = {name: list(synthetic_documents(path)) for name, path in corpora.items()}
        if not any(found.values()):
            raise UserError("no completion was accepted, so there is no synthetic text to train on; see the rejects")
        for name, documents in found.items():
            counts[name] = sum(len(document_ids(tokenizer, document.text)) for document in documents)
        write_shards(itertools.chain(*found.values()), tokenizer, shards_path(into, "synthetic"))
        atomic_write_text(into / "tokens.json", json_text(counts, indent=2) + "\n")

    on_main(topology, write, label="tokenize the synthetic texts")


def synthetic_documents(stage: Path) -> Iterator[Document]:
    """What a `generate` stage accepted; nothing where it accepted nothing."""
    if read_yield(stage / CORPUS).accepted:
        yield from read_documents(str(stage / CORPUS / DOCUMENTS))
