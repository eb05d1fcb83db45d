"""The engine's contract: every layout trains like one process, and any layout goes on from any other's checkpoint."""

from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing

from synpro_engine.data import Batch
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.train.checkpoint import load_checkpoint, save_checkpoint
from synpro_engine.train.config import OptimizerConfig, ScheduleConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.evaluation import held_out_loss
from synpro_engine.train.losses import LanguageModelLoss
from tests.train.jobs import free_ports, job

SHAPE = {"layers": 4, "d_model": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab_size": 64, "seq_len": 16}
FAMILIES = {
    "olmo2": ModelConfig(family="olmo2", **SHAPE),
    "tied llama": ModelConfig(family="llama", tie_embeddings=True, **SHAPE),
}
# A large epsilon keeps Adam from blowing up rounding noise of gradients near zero; the small clip is always active.
OPTIMIZER = OptimizerConfig(lr=3e-3, eps=1e-3, clip=0.3)
SCHEDULE = ScheduleConfig(warmup_steps=2)
STEPS = 3
TWO = {
    "TP2": {"tp": 2},
    "TP2 SP": {"tp": 2, "sequence_parallel": True},
    "PP2": {"pp": 2},
    "DP2": {},
    "DP2 overlap": {},
}
FOUR = {
    "TP2 PP2 VP2 SP": {"tp": 2, "pp": 2, "vpp": 2, "sequence_parallel": True},
    "DP2 PP2 VP2": {"pp": 2, "vpp": 2},
    "DP2 PP2": {"pp": 2},
    "DP2 TP2": {"tp": 2},
}


def batch_of(step: int, rank: int = 0, size: int = 1) -> list[Batch]:
    """This rank's micro-batches of a global batch of 8; the masks leave each sequence another number of labels."""
    generator = torch.Generator().manual_seed(1000 + step)
    ids = torch.randint(64, (8, 17), generator=generator)
    tokens, labels = ids[:, :-1], ids[:, 1:].clone()
    for row in range(8):
        labels[row, 2 * row + 1 :] = -100
    mine = slice(rank * 8 // size, (rank + 1) * 8 // size)
    return [Batch(t, y) for t, y in zip(tokens[mine].split(2), labels[mine].split(2), strict=True)]


LABELS = float(sum(2 * row + 1 for row in range(8)))


def train(engine: Engine, steps: range, z_loss: float = 1e-2) -> list[tuple[float, float, float]]:
    dp = engine.model.topology.dp
    loss_fn = LanguageModelLoss(z_loss)
    results = [engine.step(batch_of(step, dp.rank, dp.size), loss_fn, denominator=LABELS) for step in steps]
    return [(result.loss, result.grad_norm, result.extras["z_loss"]) for result in results]


def run_layouts(
    layouts: dict[str, dict[str, int]], families: list[str], directory: Path, resume: dict[str, str], ports: list[int]
) -> dict[str, list[tuple[float, ...]]]:
    """Train, save, and where `resume` names another layout's checkpoint, train one step on from that."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for family in families:
        for name, layout in layouts.items():
            with job(ParallelConfig(**layout), ports.pop()) as topology:
                overlap = name.endswith("overlap")
                model = build_model(FAMILIES[family], topology)
                engine = Engine(model, OPTIMIZER, schedule=SCHEDULE, overlap_gradients=overlap)
                found[f"{family} {name}"] = list(train(engine, range(STEPS)))
                save_checkpoint(directory / f"{family} {name}", engine, {"by": name})
                held_out = batch_of(50, topology.dp.rank, topology.dp.size)
                found[f"{family} {name} held out"] = [(held_out_loss(model, held_out, micro_batch=1),)]
                if name in resume:
                    other = build_model(FAMILIES[family], topology, seed=99)
                    later = Engine(other, OPTIMIZER, schedule=SCHEDULE)
                    extra = load_checkpoint(directory / f"{family} {resume[name]}", other, later)
                    assert extra == {"by": resume[name]} and later.step_index == STEPS
                    found[f"{family} {name} resumed"] = list(train(later, range(STEPS, STEPS + 1)))
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    """What one process does: numbers by family, and every tensor of its checkpoint after three steps."""
    directory = tmp_path_factory.mktemp("reference")
    numbers, tensors = {}, {}
    for family, config in FAMILIES.items():
        with launched(ParallelConfig()) as topology:
            model = build_model(config, topology)
            engine = Engine(model, OPTIMIZER, schedule=SCHEDULE)
            numbers[family] = list(train(engine, range(STEPS)))
            save_checkpoint(directory / family, engine, {})
            tensors[family] = plain_tensors(directory / family)
            numbers[f"{family} held out"] = [(held_out_loss(model, batch_of(50), micro_batch=8),)]
            numbers[f"{family} resumed"] = list(train(engine, range(STEPS, STEPS + 1)))
    return numbers, tensors


def plain_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, unsharded: weights, fp32 masters and both moments."""
    loaded = dist_checkpointing.load_plain_tensors(str(path / "state"))
    return {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}


def assert_agrees(name: str, found: list[tuple[float, ...]], expected: list[tuple[float, ...]]) -> None:
    assert len(found) == len(expected)
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours == pytest.approx(theirs, rel=1e-5), f"{name}, step {step}"


def check(layouts: dict, families: list[str], directory: Path, resume: dict[str, str], ranks: int, reference) -> None:
    numbers, tensors = reference
    ports = free_ports(len(layouts) * len(families))
    results = run_ranks(
        run_layouts, ranks, timeout_s=280,
        layouts=layouts, families=families, directory=directory, resume=resume, ports=ports,
    )  # fmt: skip
    assert all(result == results[0] for result in results), "a step's result differs between ranks"
    for key, found in results[0].items():
        family = next(name for name in families if key.startswith(name))
        suffix = next((end for end in (" held out", " resumed") if key.endswith(end)), "")
        assert_agrees(key, found, numbers[family + suffix])
    with launched(ParallelConfig()):
        for family in families:
            for name in layouts:
                assert_tensors_agree(f"{family} {name}", plain_tensors(directory / f"{family} {name}"), tensors[family])


def assert_tensors_agree(name: str, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Moments are sums of clipped gradients, so equal moments mean equal gradients, tensor by tensor."""
    assert set(found) == set(expected), name
    for key, theirs in expected.items():
        error = (found[key] - theirs).norm() / theirs.norm()
        assert error < 1e-5, f"{name}: {key} is off by {error:.1e}"


def test_two_ranks_train_like_one_process_and_resume_each_other(reference, tmp_path: Path) -> None:
    check(TWO, list(FAMILIES), tmp_path, {"DP2": "TP2 SP", "TP2 SP": "TP2", "PP2": "TP2"}, 2, reference)


def test_four_ranks_train_like_one_process_and_resume_each_other(reference, tmp_path: Path) -> None:
    check(FOUR, list(FAMILIES), tmp_path, {"DP2 PP2 VP2": "TP2 PP2 VP2 SP", "DP2 TP2": "DP2 PP2"}, 4, reference)
