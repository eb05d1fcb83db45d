"""Theta, partly trained, with its optimizer's live state; and the data around it.

Knows how the benchmark's models and batches are made; measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.influence_truth.settings import TruthSettings
from benchmarks.influence_truth.texts import Candidate, Texts, make_candidates, read_texts
from synpro_engine.data import IGNORE, SentencePieceTokenizer, TokenCorpus, TokenLoader, train_sentencepiece
from synpro_engine.dist import Topology
from synpro_engine.influence.batching import WindowBatch, window_batches
from synpro_engine.model.build import build_model
from synpro_engine.model.model import Model
from synpro_engine.train.checkpoint import load_checkpoint
from synpro_engine.train.config import TrainConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LabelledBatch, LossTerms
from synpro_engine.train.trainer import pretrain

_VOCABULARY_PIECES = 4000


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything that is the same for all measurements."""

    settings: TruthSettings
    topology: Topology
    theta: Path
    """Checkpoint with optimizer state."""
    candidates: list[Candidate]
    reference: list[WindowBatch]
    held_out: list[WindowBatch]
    mates: list[list[int]]
    """Sequences of organic text that share a step with a candidate."""
    corpora: dict[str, TokenCorpus]
    """`train` and `reference`, for loaders."""
    start_id: int

    def loader(self, corpus: str, purpose: int) -> TokenLoader:
        """Batches of a corpus; the same purpose gives the same batches again."""
        seed = 100 * self.settings.seed + purpose
        return TokenLoader(
            {corpus: self.corpora[corpus]}, {corpus: 1.0}, self.settings.seq_len, self.settings.batch, seed
        )

    def model(self) -> Model:
        """A model to load theta into."""
        return build_model(self.settings.model, self.topology, seed=None)

    def engine(self) -> Engine:
        """Theta with its live optimizer state, about to take its next step."""
        engine = Engine(self.model(), self.settings.optimizer, schedule=self.settings.schedule)
        load_checkpoint(self.theta, engine.model, engine)
        return engine

    def batches(self, sequences: Sequence[Sequence[int]], rows: int) -> list[WindowBatch]:
        """Sequences as micro-batches of at most `rows`."""
        return window_batches(sequences, start_id=self.start_id, seq_len=self.settings.seq_len, micro_batch=rows)


def set_up(settings: TruthSettings, topology: Topology, work: Path) -> Setup:
    """Make texts and vocabulary, and train theta in `work`, or go on where an earlier call there stopped."""
    texts = read_texts(settings.source, settings.seed)
    tokenizer = _tokenizer(texts, settings, work)
    corpora = {
        "train": TokenCorpus.from_documents(texts.train, tokenizer),
        "reference": TokenCorpus.from_documents(texts.reference, tokenizer),
    }
    rows = [
        [tokenizer.encode(piece.text)[: settings.seq_len] for piece in pieces[:count]]
        for pieces, count in (
            (texts.reference, settings.reference),
            (texts.reference_held, settings.reference),
            (texts.train[::-1], settings.mates),
        )
    ]
    setup = Setup(
        settings=settings,
        topology=topology,
        theta=work,
        candidates=make_candidates(texts, tokenizer, settings),
        reference=_windows(rows[0], tokenizer.eos_id, settings),
        held_out=_windows(rows[1], tokenizer.eos_id, settings),
        mates=rows[2],
        corpora=corpora,
        start_id=tokenizer.eos_id,
    )
    return _with_theta(setup, work)


def _windows(rows: Sequence[Sequence[int]], start_id: int, settings: TruthSettings) -> list[WindowBatch]:
    return window_batches(rows, start_id=start_id, seq_len=settings.seq_len, micro_batch=settings.batch)


def _tokenizer(texts: Texts, settings: TruthSettings, work: Path) -> SentencePieceTokenizer:
    path = work / "tokenizer.model"
    if path.exists():
        return SentencePieceTokenizer.from_file(path)
    pieces = [*texts.train[:_VOCABULARY_PIECES], *texts.reference[: _VOCABULARY_PIECES // 2]]
    return train_sentencepiece((piece.text for piece in pieces), settings.vocab, path)


def _with_theta(setup: Setup, work: Path) -> Setup:
    settings = setup.settings
    config = TrainConfig(
        max_steps=settings.train_steps,
        global_batch=settings.batch,
        micro_batch=settings.batch,
        z_loss=0.0,
        optimizer=settings.optimizer,
        schedule=settings.schedule,
        eval_every=0,
        tensorboard=False,
    )
    model = build_model(settings.model, setup.topology, seed=settings.seed)
    result = pretrain(model, config, setup.loader("train", 0), work / "theta", seed=settings.seed, label="theta")
    return replace(setup, theta=result.checkpoint)


class RowMeanLoss:
    """Sum over rows of a row's mean cross-entropy: sequences of any length weigh the same in a step."""

    def __call__(self, model: Model, hidden_BSH: Tensor, batch: LabelledBatch) -> LossTerms:
        """See `LossFn`; a row without labels adds nothing."""
        labels_BS = batch.labels_BS.to(hidden_BSH.device)
        labels_B = torch.count_nonzero(labels_BS != IGNORE, dim=1).clamp(min=1)
        loss = -(model.logprobs_from_hidden(hidden_BSH, labels_BS).logprob.sum(1) / labels_B).sum()
        return LossTerms(objective=loss, loss=loss)
