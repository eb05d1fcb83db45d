"""What the cost benchmark of influence runs on: sizes, real texts with their tokenizer, a model and its probe.

Knows how these are made, and stored for another process; measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field
from safetensors.torch import load_file, save_file

from benchmarks.common.settings import Settings
from synpro_engine.data import Tokenizer, chunk_documents, load_tokenizer, read_documents, train_sentencepiece
from synpro_engine.dist import Topology
from synpro_engine.influence.batching import WindowBatch, window_batches
from synpro_engine.model.build import build_model
from synpro_engine.model.model import Model
from synpro_engine.model.state import canonical_state, load_canonical
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss, count_labels
from synpro_engine.train.optimizer_config import OptimizerConfig

_PIECE_CHARS = 8000
_VOCABULARY_PIECES = 300


class CostSettings(Settings):
    """One run."""

    rounds: int = Field(default=9, gt=0)
    """Timed turns of every contender."""
    warmups: int = Field(default=1, ge=0)
    threads: int = Field(default=1, gt=0)
    """CPU threads of a process; the rival's service has as many."""
    rows: int = Field(default=8, gt=0)
    """Sequences of seq_len tokens that the estimators score."""
    micro_batch: int = Field(default=4, gt=0)
    """Rows at once where windows are full."""
    text_batch: int = Field(default=4, gt=0)
    """Texts at once where they are shorter than a window, in our scorers and in the rival that scores in batches. The
    estimators' default of 16 overflows a CPU's caches here, and is no faster than one text at a time."""
    short_texts: int = Field(default=48, gt=0)
    """Short texts of mixed length, for packing."""
    step_rows: int = Field(default=4, gt=0)
    """Sequences of one training step; each is an example."""
    step_micro_batch: int = Field(default=2, gt=0)
    """Of the step that `prefix` and `capture` watch; `gradient` wants one example at once."""
    reference_tokens: int = Field(default=4096, gt=0)
    every: int = Field(default=8, gt=0)
    """A run scores one step in so many, and renews the direction once in `refresh` steps."""
    refresh: int = Field(default=64, gt=0)
    sources: int = Field(default=2, gt=0)
    group: int = Field(default=8, gt=0)
    """Completions of a source in one step of GRPO."""
    group_steps: int = Field(default=3, gt=0)
    clients: int = Field(default=8, gt=0)
    """Requests that are under way at once at the rival's service."""

    def forward_flops(self, lengths: Sequence[int]) -> float:
        """FLOPs that log-probabilities of sequences cannot do without: 2 a weight and token, and causal attention."""
        weights = self.layers * (4 * self.d_model**2 + 3 * self.d_model * self.ffn) + self.vocab * self.d_model
        attention = 2 * self.layers * self.d_model * sum(length * (length + 1) for length in lengths)
        return 2.0 * weights * sum(lengths) + attention


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all parts share. `probe` has taken a few more steps than `theta`; both are close to their random start."""

    settings: CostSettings
    topology: Topology
    folder: Path
    """Holds tokenizer and weights for another process (`open_models`)."""
    say: Callable[[str], None]
    tokenizer: Tokenizer
    theta: Model
    probe: Model
    pieces: list[str]
    """Long texts, in a random order."""

    @property
    def start_id(self) -> int:
        """What separates documents."""
        return self.tokenizer.eos_id

    def sequences(self, count: int, first: int = 0) -> list[list[int]]:
        """Token ids of exactly seq_len from pieces `first` on."""
        found: list[list[int]] = []
        for piece in self.pieces[first:]:
            ids = self.tokenizer.encode(piece)[: self.settings.seq_len]
            if len(ids) == self.settings.seq_len:
                found.append(ids)
            if len(found) == count:
                return found
        raise AssertionError(f"too little text for {count} sequences")

    def texts(self, count: int, purpose: int, *, low: int, high: int) -> list[str]:
        """Beginnings of pieces, of `low` to `high` words each."""
        rng = np.random.default_rng([self.settings.seed, purpose])
        chosen = rng.choice(len(self.pieces), size=count, replace=False)
        return [" ".join(self.pieces[i].split()[: rng.integers(low, high + 1)]) for i in chosen]

    def windows(self, sequences: Sequence[Sequence[int]], micro_batch: int) -> list[WindowBatch]:
        """Sequences as micro-batches."""
        return window_batches(sequences, start_id=self.start_id, seq_len=self.settings.seq_len, micro_batch=micro_batch)


def set_up(settings: CostSettings, topology: Topology, folder: Path, say: Callable[[str], None]) -> Bench:
    """Train tokenizer, theta and probe, and store them in `folder`."""
    say("texts, tokenizer, a model and its probe")
    documents = chunk_documents(read_documents(settings.source), _PIECE_CHARS)
    pieces = [piece.text for piece in documents]
    order = np.random.default_rng(settings.seed).permutation(len(pieces))
    pieces = [pieces[i] for i in order]
    tokenizer = train_sentencepiece(iter(pieces[:_VOCABULARY_PIECES]), settings.vocab, folder / "tokenizer.model")
    (folder / "settings.json").write_text(settings.model_dump_json(), encoding="utf-8")
    theta, probe = (build_model(settings.model, topology, seed=settings.seed) for _ in range(2))
    bench = Bench(
        settings=settings, topology=topology, folder=folder, say=say, tokenizer=tokenizer, theta=theta, probe=probe,
        pieces=pieces,
    )  # fmt: skip
    _train(bench, theta, steps=3, first=0)
    load_canonical(probe, canonical_state(theta))
    _train(bench, probe, steps=3, first=20)
    for name, model in (("theta", theta), ("probe", probe)):
        save_file({key: tensor.contiguous() for key, tensor in canonical_state(model).items()}, _weights(folder, name))
    # Engines keep weights in their buffers and parameters marked for them: score models that were never trained.
    theta, probe = _stored(settings, topology, folder)
    return Bench(**{**vars(bench), "theta": theta, "probe": probe})


def _train(bench: Bench, model: Model, *, steps: int, first: int) -> Engine:
    engine = Engine(model, OptimizerConfig(lr=1e-3))
    [batch] = bench.windows(bench.sequences(4, first), 4)
    for _ in range(steps):
        engine.step([batch], LanguageModelLoss(), denominator=float(count_labels(batch.labels_BS)))
    return engine


def fresh_engine(bench: Bench) -> Engine:
    """An engine on a model of its own that has taken three steps from theta, so it has moments."""
    model = build_model(bench.settings.model, bench.topology, seed=None)
    load_canonical(model, load_file(_weights(bench.folder, "theta")))
    return _train(bench, model, steps=3, first=40)


def open_models(folder: Path, topology: Topology) -> tuple[CostSettings, Tokenizer, Model, Model]:
    """What `set_up` left in `folder`, in any process: settings, tokenizer, theta and probe."""
    settings = CostSettings.model_validate_json((folder / "settings.json").read_text(encoding="utf-8"))
    return settings, load_tokenizer(folder / "tokenizer.model"), *_stored(settings, topology, folder)


def _stored(settings: CostSettings, topology: Topology, folder: Path) -> tuple[Model, Model]:
    models = [build_model(settings.model, topology, seed=None) for _ in range(2)]
    for name, model in zip(("theta", "probe"), models, strict=True):
        load_canonical(model, load_file(_weights(folder, name)))
    return models[0], models[1]


def _weights(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"
