"""Commands on several finished models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from synpro_engine.cli import ensemble_table
from synpro_engine.cli.commands.texts import named_texts
from synpro_engine.cli.options import must_be_writable
from synpro_engine.config import Config, UserError, atomic_write_text, json_text, load_config, verification
from synpro_engine.config.addresses import is_address
from synpro_engine.config.integrity import Verification
from synpro_engine.cycle.scoring.averaging import average_models
from synpro_engine.cycle.scoring.ensemble import Asked, measure_ensemble
from synpro_engine.dist import ParallelConfig, broadcast_object, launched
from synpro_engine.storage import place as checked_place
from synpro_engine.train.config import WeightsOf


class SeveralConfig(Config):
    """What commands on several finished models take beside them: the keys that a recipe has for the same."""

    parallel: ParallelConfig = ParallelConfig()
    verify: Verification = "once"


def average(
    arguments: Sequence[str],
    output: str,
    *,
    shares: Sequence[float],
    weights: WeightsOf | None,
    tokenizer: Path | None,
) -> None:
    """Write the mean of models. arguments: their places, and overrides of `SeveralConfig`. output: a place."""
    places, config = _several(arguments)
    with verification(config.verify), launched(config.parallel) as topology:
        average_models(places, shares, output, tokenizer, weights, topology)


def ensemble(
    arguments: Sequence[str], asked: Asked, texts: Sequence[str], tokenizer: Path | None, output: Path | None
) -> None:
    """Print the losses of models alone and together; output: a JSON file to write. arguments, texts: as typed."""
    places, config = _several(arguments)
    must_be_writable(output, "--output")
    asked = replace(asked, texts=named_texts(texts, "--text"))
    with (
        TemporaryDirectory(prefix="synpro-") as folder,
        verification(config.verify),
        launched(config.parallel) as job,
    ):
        topology = job.with_whole_sequences()
        # Rank 0's, for each rank has a folder of its own; ranks on other machines need it to be shared.
        place = broadcast_object(Path(folder), topology)
        found = measure_ensemble(places, asked, tokenizer, place, topology)
        if topology.is_main:
            for line in ensemble_table.lines(found):
                print(line)
            if output is not None:
                atomic_write_text(output, json_text(found.model_dump(mode="json"), indent=2) + "\n")


def _several(arguments: Sequence[str]) -> tuple[list[str], SeveralConfig]:
    """Places of models, and settings among them as KEY=VALUE."""
    places: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        if is_address(argument):
            try:
                places.append(checked_place(argument))
            except ValueError as error:
                raise UserError(str(error)) from None
        else:
            (places if "=" not in argument or Path(argument).exists() else overrides).append(argument)
    return places, load_config(SeveralConfig, {}, overrides)
