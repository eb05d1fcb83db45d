"""The stage that brings the generator in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from synpro_engine.backend import platform
from synpro_engine.config import UserError
from synpro_engine.cycle.run_layout import CHECKPOINT, TOKENIZER
from synpro_engine.cycle.settings import AskedOfGenerator, ImportSettings
from synpro_engine.cycle.steps.corpus import open_tokenizer
from synpro_engine.data import Tokenizer, check_rows, load_tokenizer
from synpro_engine.dist import Topology, on_main
from synpro_engine.model.build import build_model
from synpro_engine.model.pretrained import import_model
from synpro_engine.synth import Prompter, operation_named
from synpro_engine.train.checkpoint import save_checkpoint


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
