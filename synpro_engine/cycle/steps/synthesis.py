"""The stages around the generator: import, tune and generate."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from synpro_engine.backend import platform
from synpro_engine.config import UserError, atomic_write_text, json_text, read_json, read_manifest, remove_directory
from synpro_engine.cycle.run_layout import (
    CHECKPOINT,
    CORPUS,
    MIXTURE,
    TOKENIZER,
    Round,
    documents_path,
)
from synpro_engine.cycle.settings import (
    AskedOfGenerator,
    GenerateSettings,
    ImportSettings,
    SynthesisSettings,
    TuneSettings,
)
from synpro_engine.cycle.steps.corpus import open_tokenizer
from synpro_engine.cycle.steps.judging import asked_of_all, judge_versions, open_judges, tell_judged
from synpro_engine.cycle.steps.mixing import earned_mixture
from synpro_engine.cycle.steps.probe import load_probe, probe_hash
from synpro_engine.cycle.steps.serving import serve
from synpro_engine.cycle.steps.weights import load_model, weights_hash
from synpro_engine.data import (
    Split,
    Tokenizer,
    check_rows,
    load_tokenizer,
    read_documents,
    stable_hash,
    start_id,
)
from synpro_engine.data.encoding import token_counter
from synpro_engine.dist import Topology, gather_objects, on_main, say
from synpro_engine.influence import TextInfluence, build_estimator, text_likelihood
from synpro_engine.model.build import build_model
from synpro_engine.model.pretrained import import_model
from synpro_engine.reward import Composer, build_composer
from synpro_engine.reward.canary import Canary
from synpro_engine.reward.judges.in_job import ModelClient
from synpro_engine.rl.held_out import KIND
from synpro_engine.rl.policy import prepare_policy
from synpro_engine.rl.trainer import TuneResult, tune
from synpro_engine.sampler import Sampler
from synpro_engine.synth import (
    GenerateConfig,
    Operation,
    Producer,
    Prompter,
    Slice,
    SliceConfig,
    choose_slices,
    generate_corpus,
    join_generation,
    operation_named,
)
from synpro_engine.train.checkpoint import save_checkpoint
from synpro_engine.train.checkpoint_directory import CHECKPOINTS
from synpro_engine.train.metrics import METRICS, read_metrics
from synpro_engine.train.parking import Reading

_CHOSEN = "slices"
"""Of a tuning that is under way: the slices that it works on, by split."""
_JUDGE = "judge/"
"""Begins the names of counts of judges in a tuning's metrics."""


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
    judges: Path
    """Where answers of remote judges are kept: of the run, for all of its stages."""
    served: Path
    """Where weights lie that a server generates with, likewise."""


def import_stage(into: Path, settings: ImportSettings, tokens: Path, topology: Topology) -> None:
    """Bring the generator into a checkpoint of ours, with its tokenizer beside it."""
    # Now, for the filters' turn comes after everything that takes long.
    on_main(topology, lambda: _in_each_arm(settings, lambda asked: asked.filter.check_libraries()))
    generator, dtype = settings.generator, platform.resolve_dtype(settings.dtype)
    tokenizer_dir = into / TOKENIZER
    on_main(topology, lambda: tokenizer_dir.mkdir(exist_ok=True))
    if generator.model is not None:
        # Another seed than the pretrained model's, which may have the same shape and would have the same weights.
        model = build_model(generator.model, topology, dtype=dtype, seed=settings.seed + 1)
        tokenizer = open_tokenizer(tokens, topology)
    else:
        imported = import_model(
            generator.source, topology, tokenizer_dir=tokenizer_dir, dtype=dtype, seq_len=generator.seq_len
        )
        model, tokenizer = imported.model, on_main(topology, lambda: load_tokenizer(imported.tokenizer))
    check_rows(tokenizer, model.config.vocab_size, f"`generator`: {generator.source}")
    # Now, for the first prompt is otherwise rendered after pretraining.
    on_main(topology, lambda: _in_each_arm(settings, lambda asked: _check_prompts(asked, tokenizer)))
    on_main(topology, lambda: tokenizer.save(tokenizer_dir))
    save_checkpoint(into / CHECKPOINT, model, seed=settings.seed)


def _in_each_arm(settings: ImportSettings, check: Callable[[AskedOfGenerator], None]) -> None:
    """UserError of the first arm that fails, by its name."""
    for arm, asked in settings.asked.items():
        try:
            check(asked)
        except UserError as error:
            raise UserError(f"arms.{arm}: {error}" if arm else str(error)) from None


def _check_prompts(asked: AskedOfGenerator, tokenizer: Tokenizer) -> None:
    """Ask for each operation once, so that a chat format that cannot be had is told of before anything is trained."""
    for name in asked.operations:
        prompter = Prompter(operation_named(name), tokenizer, asked.prompt)
        prompter.ask("A text.")
        _ = prompter.stop_ids


class Rewards(NamedTuple):
    """What scores texts, and the models and directions that it reads."""

    composer: Composer
    reads: Reading


def build_rewards(settings: SynthesisSettings, inputs: Inputs, topology: Topology) -> Rewards:
    """The rewards over the models of this round; those without weight load nothing."""
    dtype, reward = platform.resolve_dtype(settings.dtype), settings.own_reward
    pretrained = open_tokenizer(inputs.tokens, topology)
    generators, reads = open_tokenizer(inputs.base, topology), Reading()
    influence_of: TextInfluence | None = None
    likelihood_of: Callable[[Sequence[str]], list[float]] | None = None
    # A model of theta's size, twice, only where its answer has a weight.
    if reward.uses("influence"):
        theta = load_model(inputs.theta, topology, dtype)
        probe = load_probe(inputs.probe, theta, dtype)
        influence = build_estimator(settings.influence, theta, probe, start_id=start_id(pretrained))
        # With one tokenizer a text was encoded when it was read, and need not be again.
        same = generators.encoding == pretrained.encoding
        influence_of = TextInfluence(influence, pretrained.encode, same_tokenizer=same)
        reads += influence.reads()
    if reward.measures("quality"):
        judge = load_model(inputs.base, topology, dtype)
        likelihood_of = text_likelihood(judge, generators.encode, start_id=start_id(generators))
        reads += Reading((judge,))
    judges = open_judges(reward, inputs.judges, topology, dtype)
    clients = {id(judge.client): judge.client for judge in judges}.values()
    reads += Reading(tuple(client.model for client in clients if isinstance(client, ModelClient)))
    composer = build_composer(
        reward, influence_of=influence_of, likelihood_of=likelihood_of, judges=judges, device=topology.device
    )
    return Rewards(composer, reads)


def _round_seed(settings: SynthesisSettings) -> int:
    """A seed of its own for each round, or a later round would write the first one's texts again."""
    seed, number = settings.seed, settings.round
    return seed if number == 1 else stable_hash(seed, "round", str(number)) >> 1


def tune_stage(into: Path, settings: TuneSettings, inputs: Inputs, topology: Topology) -> None:
    """Tune one operation's generator with GRPO; the tuned weights end in `policy`.

    It practises on the slices that generation will see.
    """
    operation, config, seed = operation_named(settings.operation), settings.tune, _round_seed(settings)
    tokenizer = open_tokenizer(inputs.base, topology)

    def slices(split: Split, most: int, seed: int) -> list[Slice]:
        wanted = settings.slices.model_copy(update={"max_slices": most})
        kept, documents = into / _CHOSEN / f"{split}.json", documents_path(inputs.tokens, split)
        return chosen_to_tune(kept, documents, wanted, seed, tokenizer, operation, topology)

    policy = load_model(inputs.generator, topology, platform.resolve_dtype(settings.dtype))
    # `load_model` freezes what it loads.
    for parameter in policy.parameters():
        parameter.requires_grad_(True)
    # Before the first update, since it is a copy of the policy as it is now.
    reference_policy = prepare_policy(policy, config)
    scorer, reads = build_rewards(settings, inputs, topology)
    # Twice what it can ask for, of which some may be too long: a corpus has more slices than memory holds prompts.
    most = min(settings.slices.max_slices or sys.maxsize, 2 * config.steps * config.prompts_per_step)
    result = tune(
        config,
        policy=policy,
        reference_policy=reference_policy,
        prompter=Prompter(operation, tokenizer, settings.prompt),
        slices=slices("train", most, seed),
        scorer=scorer,
        reads=reads,
        canary=Canary(scorer, tokenizer.encode) if config.judge_canary.every else None,
        # The same ones in each round and for each seed, so that their curves can be compared.
        held_out=slices("validation", 2 * config.held_out.slices, seed=0) if config.held_out.every else None,
        reward_weights=settings.reward.weights(operation.name),
        directory=into,
        seed=seed,
        label=f"tune {operation.name}",
    )
    _tell_tuned(into, operation.name, result, topology)
    asked = on_main(topology, lambda: _asked_while_tuning(into))
    tell_judged(f"tuned {operation.name}", settings.own_reward, asked, topology)
    # The policy is whole; what was kept to resume from (optimizer state, a second copy of the weights) is not needed.
    on_main(topology, lambda: [remove_directory(into / name) for name in (CHECKPOINTS, _CHOSEN)])


def chosen_to_tune(
    kept: Path,
    documents: Path,
    config: SliceConfig,
    seed: int,
    tokenizer: Tokenizer,
    operation: Operation,
    topology: Topology,
) -> list[Slice]:
    """The slices of these documents that a generator is tuned or measured on, as rank 0 reads them. Collective.

    kept: a file of the stage, for to choose by tokens takes hours of a large corpus. The stage's inputs are the same
    ones at each start; how many slices are held out may be another number.
    """
    asked = {"slices": config.recorded(), "seed": seed}

    def chosen() -> list[Slice]:
        stored = read_json(kept) if kept.exists() else {}
        if stored.get("asked") == asked:
            return [Slice(**fields) for fields in stored["chosen"]]
        read = partial(read_documents, str(documents))
        found = list(choose_slices(read, config, seed, token_counter(tokenizer), cut=operation.cut))
        kept.parent.mkdir(exist_ok=True)
        atomic_write_text(kept, json_text({"asked": asked, "chosen": list(map(asdict, found))}))
        return found

    # On one rank: the corpus is read twice for it, by as many ranks as there are otherwise.
    return on_main(topology, chosen, label=f"slices for {operation.name}")


def _tell_tuned(directory: Path, operation: str, result: TuneResult, topology: Topology) -> None:
    """Say what became of the reward: on the slices that were held out, where there are any, else in training's steps.

    Of the former the measurement before training is the first, in a resumed run too. Collective.
    """
    records = on_main(topology, lambda: [r for r in read_metrics(directory / METRICS) if r["kind"] == KIND])
    ends = [r for r in records if r["step"] in (0, result.steps) and r["reward"] is not None]
    first, last, told = result.first_reward, result.last_reward, ""
    # Without a difference the first may be of other slices.
    if len(ends) == 2 and ends[1].get("difference") is not None:
        first, last, told = ends[0]["reward"], ends[1]["reward"], f" on {ends[1]['slices']} held-out slices"
        if ends[1].get("low") is not None:
            told += " ({difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})".format(**ends[1])
    if first is not None and last is not None:  # a step was left to do
        say(topology, f"tuned {operation}: mean reward {first:.3f} at first, {last:.3f} at last{told}")


def _asked_while_tuning(directory: Path) -> dict[str, int]:
    """What judges were asked in all steps, those before a resumption too."""
    asked: Counter[str] = Counter()
    for record in read_metrics(directory / METRICS):
        asked.update({key.removeprefix(_JUDGE): n for key, n in record.items() if key.startswith(_JUDGE)})
    return dict(asked)


def generate_stage(
    into: Path,
    settings: GenerateSettings,
    inputs: Inputs,
    topology: Topology,
    *,
    earlier: Mapping[str, Path] | None = None,
    helper: bool = False,
) -> None:
    """Generate one operation's synthetic documents over the corpus, with rewards and provenance.

    earlier: the stages of the round before by operation, where these decide its share of the slices. helper: only take
    part, in what another job does there.
    """
    generate = settings.generate
    if earlier:
        generate = _with_earned_share(into, settings, earlier, topology, writes=not helper)
    model = load_model(inputs.generator, topology, platform.resolve_dtype(settings.dtype))
    tokenizer, operation = open_tokenizer(inputs.base, topology), settings.operation
    trained = open_tokenizer(inputs.tokens, topology)
    # Of the weights and not of a directory: the same generator saved in another layout gives the same corpus.
    generator_hash, this = weights_hash(model), Round(settings.round)
    generator = Sampler(model, settings.generate.sampler, tokenizer.decode)
    folder = inputs.served / this.served(operation, generator_hash)
    if settings.generate.server is not None:
        done = on_main(topology, lambda: (into / CORPUS).exists())
        generator = serve(
            settings, settings.generate.server, model, tokenizer, folder, topology, exports=not helper, checks=not done
        )
    del model  # where a server has it, its memory is free for the rewards'
    composer, _ = build_rewards(settings, inputs, topology)
    producer = Producer(
        generator=generator,
        tokenizer=tokenizer,
        trained=trained if tokenizer.encoding == trained.encoding else None,
        config=generate,
        prompt=settings.prompt,
        generator_hash=generator_hash,
        scorer=partial(composer.rows, total=settings.measures_all),
        # Ids of all rounds meet in one mixture of sources.
        prefix="" if settings.round == 1 else f"{this.name}/",
        common={
            "round": settings.round,
            "influence": probe_hash(inputs.probe, topology) if settings.own_reward.uses("influence") else None,
            "judges": judge_versions(settings.own_reward, composer),
        },
    )
    if helper:
        join_generation(into / CORPUS, producer, topology, seed=_round_seed(settings))
        return
    documents = partial(read_documents, str(documents_path(inputs.tokens, "train")))
    from_tokens = on_main(topology, lambda: read_manifest(inputs.tokens).content_hash)
    report = generate_corpus(
        into / CORPUS, documents, producer, topology, seed=_round_seed(settings), documents_hash=from_tokens
    )
    on_main(topology, lambda: remove_directory(folder))
    say(topology, f"generated {operation}: {report.summary}")
    if isinstance(generator, Sampler):
        _tell_sampled(f"generated {operation}", generator, topology)
    asked = asked_of_all(composer.asked, topology)
    tell_judged(f"generated {operation}", settings.own_reward, asked, topology)
    if composer.faults:
        say(topology, f"generated {operation}: {composer.faults} rewards were no number in range and are not recorded")


def _with_earned_share(
    into: Path, settings: GenerateSettings, earlier: Mapping[str, Path], topology: Topology, *, writes: bool
) -> GenerateConfig:
    """Generation with as many of the slices as the round before says; writes: down in the stage, and tells the user."""
    mixture = on_main(topology, lambda: earned_mixture(settings.generate, settings.operation, earlier))
    if writes:
        say(topology, f"{settings.operation} {mixture}")
        told = json_text(mixture.model_dump(), indent=2) + "\n"
        on_main(topology, lambda: atomic_write_text(into / MIXTURE, told))
    return settings.generate.model_copy(update={"shares": {settings.operation: mixture.share}})


def _tell_sampled(what: str, sampler: Sampler, topology: Topology) -> None:
    """Say what was guessed ahead and what was ended for repeating itself, on all data-parallel ranks. Collective."""
    counts = gather_objects(topology.dp, (sampler.drafted, sampler.kept, sampler.looped))
    drafted, kept, looped = map(sum, zip(*counts, strict=True))
    if drafted:
        say(topology, f"{what}: {kept / drafted:.0%} of {drafted:,} guessed tokens were right")
    if looped:
        say(topology, f"{what}: {looped:,} completions repeated themselves and were ended")
