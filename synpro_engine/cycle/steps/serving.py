"""Generation by a server that the user starts: weights out, wait, compare, and the generator that asks it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from synpro_engine.config import UserError
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.settings import GenerateSettings
from synpro_engine.cycle.stages import Stage
from synpro_engine.data import PublishedTokenizer
from synpro_engine.dist import Topology, on_first, on_main, say
from synpro_engine.model.hf import export_hf
from synpro_engine.model.model import Model
from synpro_engine.remote import Service
from synpro_engine.sampler import Sampler
from synpro_engine.synth import GenerateConfig, Prompter, ServedGenerator, ServerConfig, operation_named
from synpro_engine.synth.served import check_server, check_weights, expected_answers, wait_for_weights
from synpro_engine.synth.served.config import KEY


def check_server_of(config: GenerateConfig, directory: Path, stages: Iterable[Stage], topology: Topology) -> None:
    """Ask for the server's models before the first of `stages`, if one that will ask it is not done yet. Collective.

    UserError, naming the key, for what is known to be wrong; that it does not answer yet is only told.
    """
    server = config.server
    if server is None:
        return

    def check() -> str | None:
        generating = (stage.name for stage in stages if "/generate-" in stage.name)
        # A finished run must be readable when its server is long gone.
        return None if all((directory / name / MANIFEST).exists() for name in generating) else check_server(server)

    amiss = on_main(topology, check)
    if amiss is not None:
        say(topology, f"`{KEY}.endpoint`: {amiss}; generation will wait for it, for {server.patience_s / 60:g} min")


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
