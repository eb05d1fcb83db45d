"""First-order influence is exact in every layout: against one backward pass an example, on one process, in fp64."""

from typing import Any

import numpy as np
import pytest

from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.influence import DotInfluence, TwoForwardInfluence
from tests.influence.toy import (
    CONFIGS,
    START,
    Cases,
    direction_of,
    layout_cases,
    model_of,
    moved,
    per_example,
    sequences,
)

LAYOUTS = {
    "TP2": ParallelConfig(tp=2),
    "TP2 SP": ParallelConfig(tp=2, sequence_parallel=True),
    "PP2": ParallelConfig(pp=2),
    "PP2 VPP2": ParallelConfig(pp=2, vpp=2),
    "DP2": ParallelConfig(),
    "TP2 PP2 SP": ParallelConfig(tp=2, pp=2, sequence_parallel=True),
    "TP2 PP2 VPP2": ParallelConfig(tp=2, pp=2, vpp=2),
    "DP2 PP2": ParallelConfig(pp=2),
    "DP2 TP2 SP": ParallelConfig(tp=2, sequence_parallel=True),
}
TWO_RANKS = layout_cases(("TP2", "TP2 SP", "PP2", "PP2 VPP2", "DP2"))
FOUR_RANKS = [
    ("TP2 PP2 SP", "olmo2"),
    ("TP2 PP2 VPP2", "tied llama"),
    ("DP2 PP2", "tied llama"),
    ("DP2 TP2 SP", "olmo2"),
]
GIVEN = [*sequences(7), *sequences(1, seed=5, longest=200)]
CLIPPED_BY = {"clipped, two windows a pass": 2}
CLIP = 2.5  # between the norms of these sequences; windows of the longest have greater ones
Scores = dict[str, list[list[float]]]


def scores_of(variant: str, topology: Topology) -> Scores:
    """Each sequence's value and shares, by what was measured; this data-parallel rank's sequences only."""
    model = model_of(CONFIGS[variant], topology)
    given = GIVEN[topology.dp.rank :: topology.dp.size]
    directions = {"first": direction_of(model), "second": direction_of(model, seed=3)}
    several = DotInfluence(model, directions, start_id=START, micro_batch=3)
    packed = DotInfluence(model, directions["first"], start_id=START, micro_batch=2, packed=True)
    clipped = DotInfluence(model, directions["first"], start_id=START, clip=CLIP)
    middle = DotInfluence(model, directions["first"], start_id=START, at="midpoint", micro_batch=5)
    two = TwoForwardInfluence(model, moved(model), start_id=START, micro_batch=5)
    delta = TwoForwardInfluence(model, directions["first"], start_id=START, micro_batch=2, packed=True)
    found = dict(several.score_each(given))
    found |= {
        name: e.score(given)
        for name, e in (
            ("packed", packed),
            ("clipped", clipped),
            ("midpoint", middle),
            ("two", two),
            ("delta", delta),
        )
    }
    if variant == "olmo2":  # how many windows go together is no matter of a block's parts
        for name, windows in CLIPPED_BY.items():
            few = DotInfluence(model, directions["first"], start_id=START, clip=CLIP, micro_batch=windows)
            found[name] = few.score(given)
    return {name: [[score.value, score.loss, *score.shares] for score in scores] for name, scores in found.items()}


def scores_in(cases: Cases, ports: list[int]) -> list[Scores]:
    found = []
    for (layout, variant), port in zip(cases, ports, strict=True):
        with job(LAYOUTS[layout], port) as topology:
            found.append(scores_of(variant, topology))
    return found


@pytest.fixture(scope="module")
def truth() -> dict[str, tuple[Scores, dict[str, list[float]]]]:
    """By variant: what one process scores, and the definition."""
    found = {}
    for variant, config in CONFIGS.items():
        with launched(ParallelConfig()) as topology:
            model = model_of(config, topology)
            defined = {
                name: per_example(model, direction_of(model, seed=seed), GIVEN)
                for name, seed in (("first", 2), ("second", 3))
            }
            of_whole_texts = per_example(model, direction_of(model), GIVEN, CLIP)
            alone = scores_of(variant, topology)
            defined |= {name: of_whole_texts for name in alone if name.startswith("clipped")}
            found[variant] = alone, defined
    return found


def spearman(a: Any, b: Any) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def check(found: Scores, expected: tuple[Scores, dict[str, list[float]]], part: slice) -> None:
    alone, defined = expected
    for name, values in defined.items():
        got, want = np.array([row[0] for row in found[name]]), np.array(values[part])
        assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)
        assert spearman(got, want) >= 0.9999
    for name, rows in alone.items():
        for got, want in zip(found[name], rows[part], strict=True):
            assert got == pytest.approx(want, abs=2e-6, rel=1e-5)


@pytest.mark.parametrize("variant", CONFIGS)
def test_one_process_gives_each_example_s_own_gradient(variant: str, truth: Any) -> None:
    check(truth[variant][0], truth[variant], slice(None))


@pytest.mark.parametrize("cases", [*TWO_RANKS, pytest.param(FOUR_RANKS, id="four ranks", marks=pytest.mark.slow)])
def test_every_layout_gives_each_example_s_own_gradient(cases: Cases, truth: Any) -> None:
    ranks = 4 if cases == FOUR_RANKS else 2
    results = run_ranks(scores_in, ranks, cases=cases, ports=free_ports(len(cases)))
    for rank, result in enumerate(results):
        for (layout, variant), found in zip(cases, result, strict=True):
            size = 2 if "DP2" in layout else 1
            check(found, truth[variant], slice(dp_rank(layout, rank), None, size))


def dp_rank(layout: str, rank: int) -> int:
    """Megatron's order of ranks: tensor parallel fastest, then data, then pipeline."""
    if "DP2" not in layout:
        return 0
    return rank // LAYOUTS[layout].tp % 2
