"""Generation by a server that the user starts: weights out, wait, compare, and the generator that asks it."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

from synpro_engine.config import UserError
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import Round
from synpro_engine.cycle.settings import GenerateSettings
from synpro_engine.data import PublishedTokenizer
from synpro_engine.dist import Topology, on_first, on_main, say
from synpro_engine.model.hf import export_hf
from synpro_engine.model.model import Model
from synpro_engine.remote import Service
from synpro_engine.sampler import Sampler
from synpro_engine.synth import Prompter, ServedGenerator, ServerConfig, operation_named
from synpro_engine.synth.served import check_server, check_weights, expected_answers, wait_for_weights
from synpro_engine.synth.served.config import KEY


def check_servers(
    recipe: Recipe, directory: Path, topology: Topology, stages: Collection[str], *, anew: Collection[str] = ()
) -> None:
    """Ask each server for its models before the first of `stages`, if one that will ask it is not done yet. Collective.

    anew: stages that will be made anew. UserError, naming the key, for what is known to be wrong; that one does not
    answer yet is only told.
    """

    def check() -> list[str]:
        told: list[str] = []
        # A finished run must be readable when its server is long gone.
        still_to_do = {name for name in stages if name in anew or not (directory / name / MANIFEST).exists()}
        for server in _servers(recipe, still_to_do):
            if (amiss := check_server(server)) is not None:
                patience = f"{server.patience_s / 60:g} min"
                told.append(f"`{KEY}.endpoint`: {amiss}; generation will wait for it, for {patience}")
        return told

    for line in on_main(topology, check):
        say(topology, line)


def _servers(recipe: Recipe, stages: Collection[str]) -> list[ServerConfig]:
    """Those that `stages` generate by: arms may name servers of their own."""
    found: list[ServerConfig] = []
    for name in recipe.all_arms:
        own = recipe.of_arm(name).generate
        rounds = [Round(number, name) for number in range(1, recipe.rounds + 1)]
        asked = any(this.generate(operation) in stages for this in rounds for operation in own.names)
        if own.server is not None and asked and own.server not in found:
            found.append(own.server)
    return found


def serve(
    settings: GenerateSettings,
    config: ServerConfig,
    model: Model,
    tokenizer: PublishedTokenizer,
    folder: Path,
    topology: Topology,
    *,
    exports: bool,
    checks: bool,
) -> ServedGenerator:
    """The generator that asks the server, once that is there with these weights. Collective.

    exports: whether `folder` is this job's to write. checks: wait for the server, and hold it against `model`. Raises
    UserError for a server that does not come, or has other weights, and Stopped when the job is asked to stop.
    """
    wish, name = topology.watch.wish, config.model or folder.name
    # A key that is not there is every rank's fault alike.
    service = Service(KEY, config, ranks=topology.dp.size, asked_to_stop=lambda: wish.signal is not None)
    generator = ServedGenerator(
        config, name, tokenizer, service, seq_len=model.config.seq_len,
        share=lambda work: on_first(topology.tp, topology, work),
    )  # fmt: skip
    if not checks:
        return generator
    at_once = settings.generate.batch_prompts * settings.generate.samples
    if at_once < service.threads:
        told = (
            f"a rank asks for {at_once} completions at a time, of the {service.threads} that `{KEY}.concurrency` allows"
        )
        say(topology, f"`generate.batch_prompts`: {told}")
    prompter = Prompter(operation_named(settings.operation), tokenizer, settings.prompt)
    expected = expected_answers(Sampler(model), prompter, tokenizer.vocab_size)
    if exports:
        if not on_main(topology, lambda: (folder / MANIFEST).exists()):  # its name has the weights' hash
            on_main(topology, lambda: folder.parent.mkdir(exist_ok=True))
            export_hf(model, folder, tokenizer)
        # What config.json states may be far longer, and a server sets memory aside for it.
        length = "" if model.config.published_seq_len is None else f" --max-model-len {model.config.seq_len}"
        say(topology, f"weights to serve: vllm serve {folder} --served-model-name {name}{length}")
    sampling = settings.generate.sampling
    context = min(model.config.seq_len, settings.prompt.max_tokens + sampling.max_new_tokens)

    check = partial(check_weights, generator, expected, prompter.stop_ids, tokenizer.vocab_size)
    generator.guard = check

    def ready() -> str:
        def tell(what: str) -> None:
            say(topology, f"`{KEY}`: {what}")

        if not expected:
            raise UserError("`generator.seq_len`: is too short for any prompt")
        return str(wait_for_weights(generator, check, least_context=context, tell=tell))

    say(topology, f"{config.endpoint} serves `{name}` with this stage's weights: {on_main(topology, ready)}")
    return generator
