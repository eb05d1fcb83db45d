"""Held-out loss of several models together, and their answers, which are loaded one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from synpro_engine.backend import platform
from synpro_engine.config import Record, UserError, read_manifest
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.run_layout import (
    ASKED,
    HELD_OUT,
    QUESTIONS,
    TOKENIZE,
    TOKENIZER,
    measured_path,
    shards_path,
)
from synpro_engine.cycle.scoring.member import Member, open_members
from synpro_engine.cycle.sections import ReferenceConfig
from synpro_engine.cycle.steps.tasks import TaskWriter
from synpro_engine.cycle.steps.weights import find_tokenizer
from synpro_engine.data import Batch, TokenCorpus, eval_windows, open_shards, start_id
from synpro_engine.data.choices import QuestionSet, read_questions
from synpro_engine.dist import Stopped, Topology, asked_to_stop, on_main, progress, say, verify_shared
from synpro_engine.evaluate import bits_per_byte
from synpro_engine.train.config import WeightsOf
from synpro_engine.train.ensemble import QuestionMixture, TokenMixture


class EnsembleText(Record):
    """What a text is. `tokens` are those that are predicted."""

    tokens: int
    documents: int
    utf8_bytes: int


class EnsembleQuestions(Record):
    """A set of multiple-choice questions: how many, and the accuracy of who guesses."""

    questions: int
    chance: float


class Answered(Record):
    """How a set of questions was answered, as `metrics.jsonl` says it of one model."""

    accuracy: float
    accuracy_per_byte: float
    bits_per_byte: float


class MemberLoss(Record):
    """One model: its own losses, and those of all models up to it by the mean of their probabilities."""

    path: str
    weights: str | None
    """Content hash; None of a published model that the engine did not write."""
    loss: dict[str, float]
    together: dict[str, float]
    answers: dict[str, Answered]
    answers_together: dict[str, Answered]


class EnsembleResult(Record):
    """What `synpro ensemble` found."""

    seq_len: int
    """Tokens of a window."""
    texts: dict[str, EnsembleText]
    members: tuple[MemberLoss, ...]
    """In the order in which they were given."""
    loss: dict[str, float]
    """Of all of them together, nats a token by text."""
    bits_per_byte: dict[str, float]
    questions: dict[str, EnsembleQuestions]
    answers: dict[str, Answered]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How an ensemble is measured, beside its members.

    texts: by name, in place of those that the first member's run held out. weights: which of checkpoints that have
    averages; None: those that each hands on. dtype: `auto` takes each checkpoint's own.
    """

    texts: Mapping[str, ReferenceConfig]
    weights: WeightsOf | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    micro_batch: int = 8


def measure_ensemble(
    places: Sequence[str], asked: Asked, tokenizer: Path | None, folder: Path, topology: Topology
) -> EnsembleResult:
    """The loss of each model and of all together, and their answers where a text has questions. Collective.

    places: paths or addresses. folder: for token files, and 4 bytes for each predicted token. tokenizer: of models that
    none is recorded with. Windows are as long as the shortest context among the models. Raises UserError for models of
    other tokenizers or vocabularies and for texts without tokens, Stopped when the job is asked to stop.
    """
    members = open_members(places, tokenizer, topology)
    seq_len = min(member.config.seq_len for member in members)
    corpora = _corpora(members[0], asked, folder, seq_len, topology)
    asked_sets = _questions(members[0], asked, folder, topology)
    quizzes = {name: _mixture(name, of, seq_len, topology) for name, of in asked_sets.items()}
    texts: dict[str, tuple[TokenMixture, Callable[[bool], Iterator[Batch]]]] = {}
    for name, corpus in corpora.items():
        batches = partial(_batches, corpus, seq_len, asked.micro_batch, topology)
        texts[name] = TokenMixture(folder / f"{name}-{topology.rank}.f32", batches(False)), batches
    rows = sum(mixture.rows for mixture in (*(mixture for mixture, _ in texts.values()), *quizzes.values()))
    found: list[MemberLoss] = []
    with progress(rows * len(members), "ensemble", "windows", topology) as bar:
        for member in members:
            found.append(_measured(member, texts, quizzes, asked, topology, bar.update))
            losses = ", ".join(f"{name} {loss:.4f}" for name, loss in found[-1].loss.items())
            together = ", ".join(f"{name} {loss:.4f}" for name, loss in found[-1].together.items())
            say(topology, f"{member.place}: {losses}; {len(found)} together: {together}")
            if asked_to_stop(topology) and len(found) < len(members):
                raise Stopped(f"ensemble: stopped after model {len(found)}; it begins anew")
    last = found[-1].together
    return EnsembleResult(
        seq_len=seq_len,
        texts={
            name: EnsembleText(tokens=of.num_learnt, documents=of.num_documents, utf8_bytes=of.text_bytes)
            for name, of in corpora.items()
        },
        members=tuple(found),
        loss=last,
        bits_per_byte={
            name: bits_per_byte(last[name] * of.num_learnt, of.text_bytes)
            for name, of in corpora.items()
            if of.text_bytes
        },
        questions={
            name: EnsembleQuestions(questions=len(of.questions), chance=of.chance) for name, of in asked_sets.items()
        },
        answers=found[-1].answers_together,
    )


def _measured(
    member: Member,
    texts: Mapping[str, tuple[TokenMixture, Callable[[bool], Iterator[Batch]]]],
    quizzes: Mapping[str, QuestionMixture],
    asked: Asked,
    topology: Topology,
    passed: Callable[[int], object],
) -> MemberLoss:
    """One member's losses, and those with it."""
    dtype = None if asked.dtype == "auto" else platform.resolve_dtype(asked.dtype)
    # No name outlives this call: the next one is loaded into the memory that this one leaves.
    model = member.load(topology, asked.weights, dtype)
    losses = {
        name: mixture.add(model, batches(member.apart), micro_batch=asked.micro_batch, passed=passed)
        for name, (mixture, batches) in texts.items()
    }
    answers = {
        name: mixture.add(model, micro_batch=asked.micro_batch, passed=passed) for name, mixture in quizzes.items()
    }
    return MemberLoss(
        path=member.place,
        weights=on_main(topology, lambda: _hash(member.weights)),
        loss={name: own for name, (own, _) in losses.items()},
        together={name: together for name, (_, together) in losses.items()},
        answers={name: Answered(**asdict(own)) for name, (own, _) in answers.items()},
        answers_together={name: Answered(**asdict(together)) for name, (_, together) in answers.items()},
    )


def _batches(corpus: TokenCorpus, seq_len: int, rows: int, topology: Topology, apart: bool) -> Iterator[Batch]:
    dp = topology.dp
    return eval_windows(corpus, seq_len, batch_size=rows, dp_rank=dp.rank, dp_size=dp.size, separate_documents=apart)


def _hash(weights: Path) -> str | None:
    """Of an artifact of the engine's; other programs' directories have no manifest of ours."""
    return read_manifest(weights).content_hash if (weights / MANIFEST).is_file() else None


def _corpora(first: Member, asked: Asked, folder: Path, seq_len: int, topology: Topology) -> dict[str, TokenCorpus]:
    """The texts as tokens, by name; UserError where there are none."""
    if not asked.texts:
        return _held_out(first, topology)

    def tokenise() -> None:
        writer = TaskWriter(folder, first.tokenizer, seq_len, seed=0, tell=partial(say, topology))
        silent = replace(writer, tell=lambda line: None)  # the same remarks once more
        for name, text in asked.texts.items():
            try:
                writer.write(name, text, text.max_tokens)
                if text.choices_field is not None:
                    (folder / QUESTIONS).mkdir(exist_ok=True)
                    silent.write_questions(name, text, text.max_tokens)
            except UserError as error:
                raise UserError(f"--text {text.source}: {error}") from None

    on_main(topology, tokenise)
    return {name: open_shards(shards_path(folder, name), first.tokenizer) for name in asked.texts}


def _mixture(name: str, asked: QuestionSet, seq_len: int, topology: Topology) -> QuestionMixture:
    try:
        return QuestionMixture(asked, seq_len=seq_len, topology=topology)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _questions(first: Member, asked: Asked, folder: Path, topology: Topology) -> dict[str, QuestionSet]:
    """The questions of texts that have some, by name; of the first model's run, those that it asked."""
    start = start_id(first.tokenizer)
    stage = folder if asked.texts else on_main(topology, lambda: _tokens_of(first)).with_name(ASKED)
    files = on_main(topology, lambda: sorted((stage / QUESTIONS).glob("*.jsonl")))
    if files and not asked.texts:
        verify_shared(stage, topology)
    return {path.stem: on_main(topology, partial(read_questions, path, start)) for path in files}


def _tokens_of(first: Member) -> Path:
    """The `tokenize` stage of the run that the model is from; UserError where there is none."""
    tokenizer = None if first.published else find_tokenizer(first.path)
    if tokenizer is None or tokenizer != tokenizer.parent.parent / TOKENIZE / TOKENIZER:
        raise UserError(f"{first.place}: lies in no run whose held-out text could be taken; name texts with --text")
    return tokenizer.parent


def _held_out(first: Member, topology: Topology) -> dict[str, TokenCorpus]:
    """The validation split of the run that the model is from, and the tasks that it held out."""

    def find() -> tuple[Path, list[str]]:
        tokens = _tokens_of(first)
        tasks = sorted(path.name for path in (tokens.with_name(HELD_OUT) / "shards").glob("*"))
        return tokens, ["validation", *tasks]

    tokens, names = on_main(topology, find)
    for stage in dict.fromkeys(measured_path(tokens, name).parents[1] for name in names):
        verify_shared(stage, topology)
    return {name: open_shards(measured_path(tokens, name), first.tokenizer) for name in names}
