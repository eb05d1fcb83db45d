"""Documents of packed windows that do not see each other are trained on and measured as in rows of their own."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synpro_engine.cycle import load_recipe
from synpro_engine.data import IGNORE, Batch, TokenCorpus, TokenLoader, eval_windows
from synpro_engine.dist import ParallelConfig, Topology
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.influence.directions.gradient import mean_gradient
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.shared_rows import SharedRows, documents_apart
from synpro_engine.train.engine import Engine
from synpro_engine.train.evaluation import held_out_loss
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import OptimizerConfig

EOS, S = 0, 24
LAYOUTS: list[dict[str, Any]] = [{"tp": 2}, {"tp": 2, "sequence_parallel": True}, {"pp": 2}, {"cp": 2}, {}]


def shape(family: str = "olmo2") -> ModelConfig:
    return ModelConfig(family=family, layers=2, d_model=32, heads=4, kv_heads=2, ffn=48, vocab_size=64, seq_len=S)


def corpus(lengths: tuple[int, ...] = (5, 9, 2, 30, 1, 12, 7, 40, 3, 11, 6, 8)) -> TokenCorpus:
    """Documents of these lengths, an EOS at the end of each."""
    rng = np.random.default_rng(3)
    tokens = np.concatenate([np.append(rng.integers(1, 64, length), EOS) for length in lengths])
    offsets = np.concatenate([[0], np.cumsum([length + 1 for length in lengths])])
    return TokenCorpus(
        tokens=tokens.astype(np.int32), offsets=offsets, eos_id=EOS, text_bytes=1, fingerprint="test",
        read_ids=lambda: [str(n) for n in range(len(lengths))],
    )  # fmt: skip


def loader(*, apart: bool, rank: int = 0, ranks: int = 1) -> TokenLoader:
    return TokenLoader(
        {"organic": corpus()}, {"organic": 1.0}, S, 4, 5, dp_rank=rank, dp_size=ranks, separate_documents=apart
    )  # fmt: skip


def in_rows_of_their_own(batch: Batch) -> Batch:
    """Each piece of a document in a row, behind the token in front of it; cut where the documents' numbers change."""
    assert batch.document_BS is not None
    rows = []
    for tokens, labels, documents in zip(batch.tokens_BS, batch.labels_BS, batch.document_BS, strict=True):
        cuts = [0, *((documents[1:] != documents[:-1]).nonzero()[:, 0] + 1).tolist(), len(documents)]
        for a, b in pairwise(cuts):
            row = torch.zeros(S, dtype=torch.int64), torch.full((S,), IGNORE)
            row[0][: b - a], row[1][: b - a] = tokens[a:b], labels[a:b]
            rows.append(row)
    return Batch(torch.stack([tokens for tokens, _ in rows]), torch.stack([labels for _, labels in rows]))


@pytest.mark.parametrize("family", ["llama", "olmo2", "qwen3"])
def test_a_step_is_that_of_documents_in_rows_of_their_own(topology: Topology, family: str) -> None:
    found, expected = [], []
    for own in (False, True):
        deal = loader(apart=True)
        engine = Engine(build_model(shape(family), topology), OptimizerConfig(lr=1e-2, eps=1e-3))
        for _ in range(3):
            batch = deal.next_batch()
            assert batch.apart and int((batch.labels_BS != IGNORE).sum()) == 4 * S
            result = engine.step(
                [in_rows_of_their_own(batch) if own else batch], LanguageModelLoss(), denominator=4.0 * S,
                rows_of=lambda batch: documents_apart(batch, topology.device),
            )  # fmt: skip
            (expected if own else found).append((result.loss, result.grad_norm))
    assert np.allclose(found, expected, rtol=2e-5)
    together = Engine(build_model(shape(family), topology), OptimizerConfig())
    first = together.step([loader(apart=False).next_batch()], LanguageModelLoss(), denominator=4.0 * S)
    assert abs(first.loss - found[0][0]) > 1e-4, "across borders there was something to see"


def _measured(topology: Topology, micro_batch: int = 2) -> list[float]:
    """Losses and norms of two steps, then held-out loss and the size of a reference gradient."""
    dp = topology.dp
    deal = loader(apart=True, rank=dp.rank, ranks=dp.size)
    engine = Engine(build_model(shape(), topology), OptimizerConfig(lr=1e-2, eps=1e-3))
    found = []
    for _ in range(2):
        batch = deal.next_batch()
        parts = [batch.rows(at, at + micro_batch) for at in range(0, 4 // dp.size, micro_batch)]
        result = engine.step(
            parts, LanguageModelLoss(), denominator=4.0 * S,
            rows_of=lambda batch: documents_apart(batch, topology.device),
        )  # fmt: skip
        found += [result.loss, result.grad_norm]
    held = list(eval_windows(corpus(), S, batch_size=2, dp_rank=dp.rank, dp_size=dp.size, separate_documents=True))
    found.append(held_out_loss(engine.model, held, micro_batch=2))
    gradient = mean_gradient(engine.model, held)
    # Of replicated tensors alone, which are whole on each rank.
    norms = [t for name, t in gradient.tensors.items() if "final_layernorm" in name]
    found += [float(norm.double().norm()) for norm in norms]
    return found


def _in_layouts(ports: list[int]) -> list[list[float]]:
    found = []
    for layout, port in zip(LAYOUTS, ports, strict=True):
        with job(ParallelConfig.model_validate(layout), port) as topology:
            found.append(_measured(topology))
    return found


def test_every_layout_agrees_with_one_process(topology: Topology) -> None:
    alone = _measured(topology)
    for of_rank in run_ranks(_in_layouts, 2, ports=free_ports(len(LAYOUTS))):
        for layout, found in zip(LAYOUTS, of_rank, strict=True):
            assert np.allclose(found[:5], alone[:5], rtol=1e-5), layout
            assert len(found) < 6 or np.allclose(found[5:], alone[5:], rtol=1e-4), layout


def test_held_out_text_is_measured_as_it_is_trained_on(topology: Topology) -> None:
    model = build_model(shape(), topology)
    for batch_size in (1, 3):
        apart = list(eval_windows(corpus(), S, batch_size=batch_size, separate_documents=True))
        own = [in_rows_of_their_own(batch) for batch in apart]
        expected = held_out_loss(model, own)
        assert held_out_loss(model, apart) == pytest.approx(expected, rel=1e-6)
        together = held_out_loss(model, list(eval_windows(corpus(), S, batch_size=batch_size)))
        assert abs(together - expected) > 1e-4


def test_windows_that_are_evaluated_know_their_documents() -> None:
    text = corpus((3, 2, 60))
    [first, *rest] = [
        batch.document_BS.tolist() for batch in eval_windows(text, S, batch_size=1) if batch.document_BS is not None
    ]
    assert first == [[0] * 4 + [1] * 3 + [2] * (S - 7)]
    assert rest[-1] == [[2] * (68 % S) + [-1] * (S - 68 % S)]


def test_rows_of_documents_count_from_each_ones_beginning() -> None:
    rows = SharedRows.of_documents(torch.tensor([[4, 4, 7, 7, 7, 4], [1, 1, 1, 1, 1, 1]]))
    assert rows.position_BS.tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]
    assert rows.part_BS.tolist() == [[1, 1, 2, 2, 2, 3], [1] * 6] and rows.longest == 6
    seen = rows.bias(torch.float32)[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_every_stage_that_reads_windows_is_told(tmp_path: Path) -> None:
    from synpro_engine.cycle.settings import SettingsOf

    recipe = load_recipe("smoke", ["pretrain.separate_documents=true"])
    settings = SettingsOf(recipe)
    assert settings.pretrain.pretrain.separate_documents and settings.probe.separate_documents
    assert settings.evaluate.separate_documents and settings.arm(3, synthetic=True).pretrain.separate_documents
