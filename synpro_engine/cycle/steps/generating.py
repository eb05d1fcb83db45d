"""The stage that generates an operation's texts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from synpro_engine.backend import platform
from synpro_engine.config import atomic_write_text, json_text, read_manifest, remove_directory
from synpro_engine.cycle.run_layout import CORPUS, MIXTURE, Round, documents_path
from synpro_engine.cycle.settings import GenerateSettings
from synpro_engine.cycle.steps.corpus import open_tokenizer
from synpro_engine.cycle.steps.judging import asked_of_all, judge_versions, tell_judged
from synpro_engine.cycle.steps.mixing import earned_mixture
from synpro_engine.cycle.steps.probe import probe_hash
from synpro_engine.cycle.steps.rewards import Inputs, build_rewards, round_seed
from synpro_engine.cycle.steps.serving import serve
from synpro_engine.cycle.steps.weights import load_model, weights_hash
from synpro_engine.data import read_documents
from synpro_engine.dist import Topology, gather_objects, on_main, say
from synpro_engine.reward import Composer
from synpro_engine.sampler import Sampler
from synpro_engine.synth import GenerateConfig, Generator, Producer, generate_corpus, join_generation


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
        join_generation(into / CORPUS, producer, topology, seed=round_seed(settings))
        return
    documents = partial(read_documents, str(documents_path(inputs.tokens, "train")))
    from_tokens = on_main(topology, lambda: read_manifest(inputs.tokens).content_hash)
    report = generate_corpus(
        into / CORPUS, documents, producer, topology, seed=round_seed(settings), documents_hash=from_tokens
    )
    on_main(topology, lambda: remove_directory(folder))
    say(topology, f"generated {operation}: {report.summary}")
    _tell(f"generated {operation}", settings, generator, composer, topology)


def _tell(what: str, settings: GenerateSettings, generator: Generator, composer: Composer, topology: Topology) -> None:
    """Say what was guessed, ended and asked for the texts, on all data-parallel ranks. Collective."""
    if isinstance(generator, Sampler):
        counts = gather_objects(topology.dp, (generator.drafted, generator.kept, generator.looped))
        drafted, kept, looped = map(sum, zip(*counts, strict=True))
        if drafted:
            say(topology, f"{what}: {kept / drafted:.0%} of {drafted:,} guessed tokens were right")
        if looped:
            say(topology, f"{what}: {looped:,} completions repeated themselves and were ended")
    tell_judged(what, settings.own_reward, asked_of_all(composer.asked, topology), topology)
    if composer.faults:
        say(topology, f"{what}: {composer.faults} rewards were no number in range and are not recorded")


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
