"""The engine's contract: every layout trains like one process, and any layout goes on from any other's checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from synpro_engine.data import Batch
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.model.build import build_model, freeze_but_last
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.dropout import dropouts
from synpro_engine.model.dropout_config import DropoutConfig
from synpro_engine.train.checkpoint import load_checkpoint, save_checkpoint
from synpro_engine.train.engine import Engine
from synpro_engine.train.evaluation import held_out_loss
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import MuonConfig, OptimizerConfig, RatesConfig, ScheduleConfig

SHAPE: Any = {"layers": 4, "d_model": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab_size": 64, "seq_len": 16}
# Model and how many of its last blocks train (None: all of it).
VARIANTS: dict[str, tuple[ModelConfig, int | None]] = {
    "dropout": (ModelConfig(family="olmo2", **SHAPE), None),
    "dropout llama": (ModelConfig(family="llama", tie_embeddings=True, **SHAPE), None),
    "muon": (ModelConfig(family="olmo2", **SHAPE), None),
    "muon last block": (ModelConfig(family="qwen3", **SHAPE | {"head_dim": 12}), 1),
    "olmo2": (ModelConfig(family="olmo2", **SHAPE), None),
    "tied llama": (ModelConfig(family="llama", tie_embeddings=True, **SHAPE), None),
    "qwen2": (ModelConfig(family="qwen2", **SHAPE), None),
    "qwen3": (ModelConfig(family="qwen3", **SHAPE | {"head_dim": 12}), None),
    "last block": (ModelConfig(family="olmo2", **SHAPE), 1),
}
# A large epsilon keeps Adam from blowing up rounding noise of gradients near zero; the small clip is always active.
OPTIMIZER = OptimizerConfig(lr=3e-3, eps=1e-3, clip=0.3)
# Polar express and normalised rows for one, the plain form for the other; parts of a model with rates of their own.
OF_VARIANT = {
    "tied llama": OPTIMIZER.model_copy(update={"rates": RatesConfig(embedding=2.0, vectors=0.5)}),
    "muon": OPTIMIZER.model_copy(
        update={"name": "muon", "muon": MuonConfig(lr=2e-3), "rates": RatesConfig(embedding=0.5, output=2.0)}
    ),
    "muon last block": OPTIMIZER.model_copy(
        update={
            "name": "muon",
            "muon": MuonConfig(lr=2e-3, coefficients="polar_express", scale="adamw_rms", normalise_rows=True),
        }
    ),
}
NO_DROPOUT = DropoutConfig()
ALL_DROPOUT = DropoutConfig(embedding=0.2, attention=0.3, residual=0.2, depth=0.4, tokens=0.3, mask_token=5)
SCHEDULE = ScheduleConfig(warmup_steps=2)
STEPS = 3
LAYOUTS = {
    "TP2": ParallelConfig(tp=2),
    "TP2 SP": ParallelConfig(tp=2, sequence_parallel=True),
    "PP2": ParallelConfig(pp=2),
    "DP2": ParallelConfig(),
    "DP2 overlap": ParallelConfig(),
    "TP2 PP2 VP2 SP": ParallelConfig(tp=2, pp=2, vpp=2, sequence_parallel=True),
    "DP2 PP2 VP2": ParallelConfig(pp=2, vpp=2),
    "DP2 PP2": ParallelConfig(pp=2),
    "DP2 TP2": ParallelConfig(tp=2),
    "CP2": ParallelConfig(cp=2),
    "CP2 overlap": ParallelConfig(cp=2),
    "CP2 TP2": ParallelConfig(cp=2, tp=2),
    "CP2 TP2 SP": ParallelConfig(cp=2, tp=2, sequence_parallel=True),
    "CP2 PP2": ParallelConfig(cp=2, pp=2),
    "CP2 PP2 VP2": ParallelConfig(cp=2, pp=2, vpp=2),
    "CP2 DP2": ParallelConfig(cp=2),
    "CP4": ParallelConfig(cp=4),
}


@dataclass(frozen=True)
class Case:
    """Train a variant on a layout; if asked, also take one step from the checkpoint of another layout."""

    variant: str
    layout: str
    resumes: str | None = None

    @property
    def name(self) -> str:
        return f"{self.variant} {self.layout}"


# Each layout, and what is special in each variant; what goes on from another goes on from one of the same list.
TWO_RANKS = [
    Case("olmo2", "CP2"),
    Case("olmo2", "DP2", "CP2"),
    Case("olmo2", "DP2 overlap", "DP2 overlap"),
    Case("tied llama", "TP2 SP"),
    Case("tied llama", "PP2", "TP2 SP"),  # the tied weight is on both stages
    Case("qwen2", "TP2 SP"),  # biases are split with the heads
    Case("qwen3", "TP2 SP"),  # the norm of every head is on both ranks, each sees its own heads' gradient
    Case("last block", "PP2"),  # nothing trains on the first stage
    Case("dropout", "TP2 SP"),
    Case("dropout", "PP2", "TP2 SP"),
    Case("dropout", "CP2", "PP2"),
    Case("muon", "TP2 SP"),  # matrices are cut over both ranks, their homes are either
    Case("muon", "DP2 overlap", "DP2 overlap"),
    Case("muon last block", "TP2"),
    Case("muon last block", "PP2", "TP2"),  # the first stage owns nothing, and works for the other
]
MORE_ON_TWO = [
    Case("olmo2", "TP2"),
    *(Case("olmo2", layout, "TP2") for layout in ("TP2 SP", "PP2")),
    Case("tied llama", "TP2"),
    *(Case("tied llama", layout, "TP2") for layout in ("TP2 SP", "PP2", "CP2")),
    Case("tied llama", "DP2", "TP2 SP"),
    Case("qwen2", "TP2 SP"),
    Case("qwen2", "DP2", "TP2 SP"),
    Case("qwen2", "CP2", "DP2"),
    Case("qwen3", "TP2 SP"),
    Case("qwen3", "TP2", "TP2 SP"),
    Case("qwen3", "CP2", "TP2 SP"),
    Case("last block", "PP2"),
    Case("last block", "CP2", "PP2"),
    Case("last block", "DP2", "PP2"),
    Case("dropout", "TP2"),
    Case("dropout", "TP2 SP", "TP2"),
    Case("dropout", "PP2", "TP2 SP"),
    Case("dropout", "DP2", "PP2"),
    Case("dropout", "DP2 overlap", "DP2 overlap"),
    Case("dropout llama", "TP2 SP"),
    Case("dropout llama", "PP2", "TP2 SP"),
    Case("dropout llama", "CP2", "PP2"),
    Case("muon", "TP2 SP"),
    Case("muon", "PP2", "TP2 SP"),
    Case("muon", "DP2", "PP2"),
    Case("muon", "CP2", "DP2"),
    Case("muon last block", "TP2"),
    Case("muon last block", "PP2", "TP2"),
    Case("muon last block", "DP2", "PP2"),
    Case("muon last block", "CP2", "TP2"),
    *(Case(v, "CP2 overlap", "CP2 overlap") for v in ("olmo2", "dropout", "muon")),
]
FOUR_RANKS = [
    Case("olmo2", "TP2 PP2 VP2 SP"),
    Case("olmo2", "CP2 PP2 VP2", "TP2 PP2 VP2 SP"),
    Case("tied llama", "DP2 PP2"),  # the tied weight's two copies are sharded over data-parallel ranks
    Case("dropout", "DP2 PP2 VP2"),
    Case("dropout", "CP2 TP2 SP", "DP2 PP2 VP2"),
    Case("muon", "DP2 TP2"),
    Case("muon", "CP2 DP2", "DP2 TP2"),
]
MORE_ON_FOUR = [
    Case("olmo2", "TP2 PP2 VP2 SP"),
    Case("olmo2", "DP2 PP2 VP2", "TP2 PP2 VP2 SP"),
    Case("olmo2", "CP2 TP2 SP", "TP2 PP2 VP2 SP"),
    Case("olmo2", "CP2 DP2", "CP2 TP2 SP"),
    Case("olmo2", "CP2 PP2 VP2", "CP2 DP2"),
    Case("olmo2", "CP4", "CP2 PP2 VP2"),
    Case("tied llama", "DP2 PP2"),
    Case("tied llama", "DP2 TP2", "DP2 PP2"),
    Case("tied llama", "CP2 TP2", "DP2 PP2"),
    Case("tied llama", "CP2 PP2", "CP2 TP2"),
    Case("dropout", "TP2 PP2 VP2 SP"),
    Case("dropout", "DP2 PP2 VP2", "TP2 PP2 VP2 SP"),
    Case("dropout", "CP2 TP2 SP", "TP2 PP2 VP2 SP"),
    Case("dropout", "CP2 DP2", "CP2 TP2 SP"),
    Case("dropout", "CP2 PP2", "CP2 DP2"),
    Case("dropout", "DP2 TP2", "CP2 TP2 SP"),
    Case("muon", "TP2 PP2 VP2 SP"),
    Case("muon", "DP2 TP2", "TP2 PP2 VP2 SP"),
    Case("muon", "CP2 DP2", "TP2 PP2 VP2 SP"),
]
Numbers = dict[str, list[tuple[float, ...]]]


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


def train(engine: Engine, steps: range, variant: str = "") -> list[tuple[float, ...]]:
    dp, loss_fn, results = engine.model.topology.dp, LanguageModelLoss(1e-2), []
    config = ALL_DROPOUT if variant.startswith("dropout") else NO_DROPOUT
    for step in steps:
        batches = batch_of(step, dp.rank, dp.size)
        dropped = dropouts(
            config, [len(batch.tokens_BS) for batch in batches], first_row=dp.rank * 8 // dp.size, seed=3, step=step,
            layers=engine.model.config.layers, device=engine.model.topology.device,
        )  # fmt: skip
        results.append(engine.step(batches, loss_fn, denominator=LABELS, dropouts=dropped))
    return [(result.loss, result.grad_norm, result.extras["z_loss"]) for result in results]


def engine_of(variant: str, topology: Topology, *, seed: int = 0, overlap: bool = False) -> Engine:
    config, trainable = VARIANTS[variant]
    # What is frozen is the same everywhere, what trains is loaded where a seed differs.
    model = build_model(config, topology, seed=seed)
    if trainable is not None:
        freeze_but_last(model, trainable)
    return Engine(model, OF_VARIANT.get(variant, OPTIMIZER), schedule=SCHEDULE, overlap_gradients=overlap)


def run_cases(cases: list[Case], directory: Path, ports: list[int]) -> Numbers:
    found: Numbers = {}
    for case, port in zip(cases, ports, strict=True):
        with job(LAYOUTS[case.layout], port) as topology:
            engine = engine_of(case.variant, topology, overlap=case.layout.endswith("overlap"))
            found[case.name] = train(engine, range(STEPS), case.variant)
            save_checkpoint(directory / case.name, engine, {"by": case.layout})
            held_out = batch_of(50, topology.dp.rank, topology.dp.size)
            found[f"{case.name} held out"] = [(held_out_loss(engine.model, held_out, micro_batch=1),)]
            if case.resumes is not None:
                later = engine_of(case.variant, topology, seed=99)
                extra = load_checkpoint(directory / f"{case.variant} {case.resumes}", later.model, later)
                assert extra == {"by": case.resumes} and later.step_index == STEPS
                found[f"{case.name} resumed"] = train(later, range(STEPS, STEPS + 1), case.variant)
                if case.resumes == case.layout:
                    again = train(engine, range(STEPS, STEPS + 1), case.variant)
                    assert found[f"{case.name} resumed"] == again, "not bit for bit"
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Numbers, dict[str, dict[str, torch.Tensor]]]:
    """What one process does: numbers by variant, and every tensor of its checkpoint after three steps."""
    directory = tmp_path_factory.mktemp("reference")
    numbers, tensors = {}, {}
    for variant in VARIANTS:
        with launched(ParallelConfig()) as topology:
            engine = engine_of(variant, topology)
            numbers[variant] = train(engine, range(STEPS), variant)
            save_checkpoint(directory / variant, engine, {})
            tensors[variant] = plain_tensors(directory / variant)
            numbers[f"{variant} held out"] = [(held_out_loss(engine.model, batch_of(50), micro_batch=8),)]
            numbers[f"{variant} resumed"] = train(engine, range(STEPS, STEPS + 1), variant)
    return numbers, tensors


def plain_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, unsharded: weights, fp32 masters and both moments."""
    stored: dict[str, Any] = dcp.FileSystemReader(path / "state").read_metadata().state_dict_metadata
    found = {key: torch.full(entry.size, torch.nan, dtype=entry.properties.dtype) for key, entry in stored.items()}
    dcp.load(found, checkpoint_id=path / "state")
    return found


def check(cases: list[Case], ranks: int, directory: Path, reference: Any) -> None:
    numbers, tensors = reference
    results = run_ranks(run_cases, ranks, cases=cases, directory=directory, ports=free_ports(len(cases)))
    assert all(result == results[0] for result in results), "a step's result differs between ranks"
    for case in cases:
        for suffix in ("", " held out", *([" resumed"] if case.resumes else [])):
            found, expected = results[0][case.name + suffix], numbers[case.variant + suffix]
            for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
                assert ours == pytest.approx(theirs, rel=1e-5), f"{case.name}{suffix}, step {step}"
                # The loss is one rounding away; the gradient's norm adds up squares of sums that cancel in part.
                assert ours[0] == pytest.approx(theirs[0], rel=1e-6), f"{case.name}{suffix}, step {step}"
    with launched(ParallelConfig()):
        for case in cases:
            assert_tensors_agree(case.name, plain_tensors(directory / case.name), tensors[case.variant])


def assert_tensors_agree(name: str, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Moments are sums of clipped gradients, so equal moments mean equal gradients, tensor by tensor."""
    assert set(found) == set(expected), name
    for key, theirs in expected.items():
        error = (found[key] - theirs).norm() / theirs.norm()
        assert error < 1e-5, f"{name}: {key} is off by {error:.1e}"


@pytest.mark.parametrize("cases", [TWO_RANKS, pytest.param(MORE_ON_TWO, marks=pytest.mark.slow)], ids=["some", "more"])
def test_two_ranks_train_like_one_process_and_resume_each_other(
    reference: Any, tmp_path: Path, cases: list[Case]
) -> None:
    check(cases, 2, tmp_path, reference)


@pytest.mark.parametrize(
    "cases", [FOUR_RANKS, pytest.param(MORE_ON_FOUR, marks=pytest.mark.slow)], ids=["some", "more"]
)
def test_four_ranks_train_like_one_process_and_resume_each_other(
    reference: Any, tmp_path: Path, cases: list[Case]
) -> None:
    check(cases, 4, tmp_path, reference)


def test_dropout_was_on_where_layouts_are_compared_under_it(reference: Any) -> None:
    numbers, _ = reference
    for variant, plain in (("dropout", "olmo2"), ("dropout llama", "tied llama")):
        for ours, theirs in zip(numbers[variant], numbers[plain], strict=True):  # of a step: its loss, its norms
            assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > 1e-3
