"""Models in the job that judge: what can be known of them before anything expensive begins, and loading them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from synpro_engine.config import UserError
from synpro_engine.data import Tokenizer, check_rows, load_tokenizer
from synpro_engine.dist import Layout, Topology, on_main
from synpro_engine.model.config import check_layout
from synpro_engine.model.pretrained import import_model, inspect_model
from synpro_engine.reward.judges.calibration import Calibration, calibration_for
from synpro_engine.reward.judges.config import ModelJudgeConfig, question_of
from synpro_engine.reward.judges.in_job import IN_JOB, ModelClient, name_of
from synpro_engine.reward.judges.judge import Judge
from synpro_engine.reward.judges.labels import Labelled, chat_format_of

HashOf = Callable[[str], str]


def connections(judges: Mapping[str, ModelJudgeConfig]) -> list[dict[str, ModelJudgeConfig]]:
    """The judges, together those that are one model."""
    together: dict[str, dict[str, ModelJudgeConfig]] = {}
    for name, config in judges.items():
        together.setdefault(config.connection, {})[name] = config
    return list(together.values())


def check_models(
    judges: Mapping[str, ModelJudgeConfig],
    layout: Layout,
    *,
    hash_of: HashOf,
    max_chars: int = 0,
    max_new_tokens: int = 0,
) -> None:
    """Look at each model's files, its labels, its calibrations and its window, and load none. For one rank.

    hash_of: tells the content of a `model` from others. max_chars: of the longest slices. max_new_tokens: of the
    longest texts. UserError, naming the key, for a directory that is no causal language model or lacks files, a layout
    that does not divide it, labels that its tokenizer cannot tell apart, a calibration of another judge, and a window
    that such texts do not fit.
    """
    for together in connections(judges):
        first, config = next(iter(together.items()))
        with tempfile.TemporaryDirectory() as folder, _naming(first):
            shape, files = inspect_model(config.model, tokenizer_dir=Path(folder), seq_len=config.seq_len)
            tokenizer = load_tokenizer(files)
        key = _key(first)
        check_rows(tokenizer, shape.vocab_size, key)
        check_layout(shape, layout, f"{key}: its {{}}")
        _calibrations(together, tokenizer, hash_of(config.model))
        for name, each in together.items():
            with _naming(name):
                labelled = Labelled(question_of(name, each), tokenizer, chat_format_of(tokenizer, each.chat_format))
                question = len(labelled.prompt("")) + max(map(len, labelled.tails))
                texts = _texts(labelled, max_chars, max_new_tokens)
                if question + texts > shape.seq_len:
                    beside = (
                        f" beside texts of about {texts}; `generate.max_chars` makes slices shorter" if texts else ""
                    )
                    window = f"does not fit its window of {shape.seq_len} tokens"
                    raise UserError(f"a question of {question} tokens {window}{beside}")


def _calibrations(judges: Mapping[str, ModelJudgeConfig], tokenizer: Tokenizer, version: str) -> dict[str, Calibration]:
    """The maps that the settings name, by judge; UserError for one that was fitted to another judge."""
    found: dict[str, Calibration] = {}
    for name, config in judges.items():
        if config.calibration is not None:
            labelled = Labelled(question_of(name, config), tokenizer, chat_format_of(tokenizer, config.chat_format))
            asked = {"model": name_of(config, version), "api": IN_JOB, "question": labelled.version(hard=config.hard)}
            found[name] = calibration_for(config.calibration, name, **asked)
    return found


def _key(name: str) -> str:
    return f"`reward.judges.{name}.model`"


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name the judge's key in what is found wrong with its model."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{_key(name)}: {error}") from None


def _texts(labelled: Labelled, max_chars: int, max_new_tokens: int) -> int:
    """Tokens of the longest texts beside a question, about: a tokenizer's characters a token are those of our words."""
    question = labelled.question
    source = round(max_chars * len(labelled.tokenizer.encode(question.ask)) / len(question.ask))
    text = min(max_new_tokens, source)
    if question.source == "compared":
        return max(source, text)
    # An entry is a part of a text, and may be a short one.
    return source * (question.source == "shown") + text * (question.each == "text")


def load_judges(
    judges: Mapping[str, ModelJudgeConfig],
    topology: Topology,
    *,
    dtype: torch.dtype,
    hash_of: HashOf,
    cache: Path | None = None,
) -> list[Judge]:
    """The rewards by these names as their models measure them; each model is loaded once. Collective.

    hash_of: as `check_models` takes it. cache: as `ModelClient` does. UserError for what `check_models` refuses.
    """
    opened: dict[str, Judge] = {}
    for together in connections(judges):
        config = next(iter(together.values()))
        with tempfile.TemporaryDirectory() as folder:
            imported = import_model(
                config.model, topology, tokenizer_dir=Path(folder), dtype=dtype, seq_len=config.seq_len
            )
            tokenizer = on_main(topology, partial(load_tokenizer, imported.tokenizer))
            version = on_main(topology, partial(hash_of, config.model))
            calibrations = on_main(topology, partial(_calibrations, together, tokenizer, version))
            client = ModelClient(
                together, imported.model, tokenizer, version=version, cache=cache, calibrations=calibrations
            )
        opened |= {name: Judge(name, client) for name in together}
    return [opened[name] for name in judges]
