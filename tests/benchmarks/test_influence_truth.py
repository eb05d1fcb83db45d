"""The influence benchmark at toy size, the whole path; and that its truth, its step and its statistics are right."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.common import rank_correlation
from benchmarks.common.rank_correlation import rho, rho_difference, spearman
from benchmarks.influence_truth import __main__ as program
from benchmarks.influence_truth.exact import Steps
from benchmarks.influence_truth.results import Results
from benchmarks.influence_truth.settings import TruthSettings
from benchmarks.influence_truth.setup import RowMeanLoss, Setup, set_up
from benchmarks.influence_truth.standings import standings
from benchmarks.influence_truth.steps import Rewind, subset_plan
from benchmarks.influence_truth.texts import KINDS, pool_of_groups
from synpro_engine.config import UserError
from synpro_engine.dist import ParallelConfig, Topology, launched

TOY = {
    "vocab": 300, "layers": 1, "d_model": 16, "heads": 2, "ffn": 16, "seq_len": 32, "train_steps": 6, "warmup_steps": 2,
    "batch": 4, "probe_steps": [1, 3], "reference": 4, "mates": 3, "candidates": 32, "group": 2, "subsets": 4,
    "subset_steps": 2, "subset_batch": 4, "checked": 4, "scales": 3,
}  # fmt: skip


def corpus(path: Path) -> Path:
    """Speeches of random words, with the years in their names that decide what they are for."""
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.integers(8, size=rng.integers(2, 7))) for _ in range(60)]
    with path.open("w") as file:
        for year in [*range(1900, 1916), *range(1990, 2006)]:
            pool = words[:40] if year < 1950 else words[20:]
            text = " ".join(pool[i] for i in rng.integers(40, size=400))
            file.write(json.dumps({"id": f"x/{year}-name-1", "text": text}) + "\n")
    return path


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TruthSettings:
    source = corpus(tmp_path_factory.mktemp("corpus") / "speeches.jsonl")
    return TruthSettings.model_validate_json(json.dumps({**TOY, "source": str(source)}))


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def setup(settings: TruthSettings, topology: Topology, work: Path) -> Setup:
    return set_up(settings, topology, work)


def weights(engine) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in engine.model.parameters()])


def test_a_step_after_rewinding_is_the_same_step_bit_for_bit(setup: Setup):
    engine = setup.engine()
    before, rewind, found = weights(engine), Rewind(engine), []
    batches = setup.batches([setup.candidates[3].ids], 1)
    for steps in (1, 2, 1):
        for _ in range(steps):
            engine.step(batches, RowMeanLoss(), denominator=1.0)
        found.append(weights(engine))
        rewind()
        assert torch.equal(weights(engine), before)
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def test_a_long_row_and_a_short_one_weigh_the_same(setup: Setup):
    steps, (one, other) = Steps(setup, setup.engine(), 2), (setup.candidates[0].ids, setup.candidates[1].ids[:9])
    engine = setup.engine()
    [batch] = setup.batches([one, other], 2)
    done = engine.step([batch], RowMeanLoss(), denominator=2.0)
    mean = steps.of(one).plus(steps.of(other)).scaled(0.5)
    assert done.grad_norm == pytest.approx(steps.norm(mean), rel=1e-4)


def test_candidates_hold_every_kind_in_whole_groups(setup: Setup):
    kinds = [candidate.kind for candidate in setup.candidates]
    assert len(kinds) == 32 and set(kinds) == set(KINDS)
    assert all(len({kinds[i] for i in group}) == 1 for group in pool_of_groups(setup.settings))
    by_kind = {kind: {c.ids for c in setup.candidates if c.kind == kind} for kind in KINDS}
    assert not by_kind["organic"] & by_kind["seen"] and not by_kind["organic"] & by_kind["corrupted"]


def test_a_subset_trains_once_on_each_candidate_of_half_the_pool(settings: TruthSettings):
    groups, steps = subset_plan(settings, 1)
    pool = pool_of_groups(settings)
    assert len(groups) == len(pool) // 2
    assert sorted(i for step in steps for i in step) == sorted(i for group in groups for i in pool[group])
    assert subset_plan(settings, 1) == (groups, steps) != subset_plan(settings, 2)


def test_rank_correlation_shares_ranks_and_its_interval_holds_it():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [5, 5, 5]) == 0.0
    # Ranks 1 2.5 2.5 4 against 1 3 2 4, by hand: covariance 4.5, variances 4.5 and 5.
    assert spearman([0, 7, 7, 9], [1, 3, 2, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5.0))
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    found = rho(x, x + rng.normal(size=200))
    assert found.low < found.value < found.high and 0.1 < found.high - found.low < 0.25


def test_what_the_kinds_of_a_subset_explain_is_taken_off_and_nothing_else():
    settings = TruthSettings()
    results = Results(
        settings=settings, environment={}, theta={}, scores=[], sweep=[],
        candidates=[{"kind": list(KINDS)[i // settings.group % 3]} for i in range(settings.candidates)],
        subsets=[{"groups": subset_plan(settings, number)[0]} for number in range(settings.subsets)],
    )  # fmt: skip
    of_group = [results.kinds()[group[0]] for group in pool_of_groups(settings)]
    seen = np.array([sum(of_group[g] == "seen" for g in row["groups"]) for row in results.subsets])
    assert len(set(seen)) > 3 and not results.within_kinds(3.0 * seen - 1.0).any()
    noise = np.random.default_rng(0).normal(size=settings.subsets)
    left = results.within_kinds(0.1 * seen + noise)
    assert np.allclose(left, results.within_kinds(noise)) and abs(left @ seen) < 1e-9
    assert spearman(left, noise) > 0.8


def test_a_better_estimator_s_lead_has_an_interval_above_zero_and_two_alike_have_zero_in_it():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=150)
    good, other, bad = (truth + size * rng.normal(size=150) for size in (0.3, 0.3, 2.0))
    lead = rho_difference(good, bad, truth)
    assert 0.0 < lead.low < lead.value == pytest.approx(spearman(good, truth) - spearman(bad, truth))
    tie = rho_difference(good, other, truth)
    assert tie.low < 0.0 < tie.high


@pytest.mark.slow
def test_the_whole_path_runs_resumes_and_renews_the_documentation(
    settings: TruthSettings, setup: Setup, topology: Topology, work: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(rank_correlation, "RESAMPLES", 20)
    lines = program.run(settings, topology, work)
    log = work / program.LINES
    whole = log.read_bytes()
    log.write_bytes(whole[:-40])  # as an interruption leaves it
    again = program.run(settings, topology, work)
    assert log.read_bytes() == whole
    assert again[1:] == lines[1:]
    assert {line["row"] for line in lines} == {"run", "scores", "candidate", "subset", "sweep"}
    output = tmp_path / "lines.jsonl"
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    blocks = ("conditions", "truth", "differences", "oracles", "agreement", "again")
    marks = "".join(f"<!-- {name} -->\nold\n<!-- end of {name} -->\n" for name in blocks)
    (tmp_path / "influence.md").write_text(f"before\n{marks}after\n")
    arguments = ["--plot-only", "--output", str(output), "--docs", str(tmp_path), "--also", str(output)]
    assert program.main(arguments) == 0
    page = (tmp_path / "influence.md").read_text()
    assert page.startswith("before") and page.endswith("after\n") and "old" not in page
    assert {file.name for file in (tmp_path / "images").iterdir()} == {
        "influence_truth.png", "influence_agreement.png"
    }  # fmt: skip
    results = Results.read(output)
    ranked = {v.estimator: v for v in standings(results)}
    exact = ranked["exact step among mates, reference gradient one step ahead"]
    assert exact.among_mates.value > 0.9 > abs(ranked["random"].among_mates.value)
    jvp, dot = ranked["jvp, Adam"], ranked["dot, Adam"]
    assert jvp.lds is None and dot.lds is not None
    assert not re.search(r"/(home|tmp|work)/", output.read_text().replace(str(settings.source), ""))


@pytest.mark.slow
def test_steps_of_muon_are_predicted_and_shown_beside_adamw_s(
    settings: TruthSettings, topology: Topology, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setattr(rank_correlation, "RESAMPLES", 20)
    by_muon = settings.model_copy(update={"optimizer_name": "muon"})
    lines = program.run(by_muon, topology, tmp_path / "work")
    output = tmp_path / "lines.jsonl"
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert program.main(["--plot-only", "--output", str(output)]) == 0
    assert "against `jvp` in fp64" in capsys.readouterr().out
    ranked = {v.estimator: v for v in standings(Results.read(output))}
    assert ranked["exact step among mates, reference gradient one step ahead"].among_mates.value > 0.9
    assert "dot, next step, clipped" in ranked and not any("Adam" in name for name in ranked)


def test_a_directory_of_another_run_and_a_damaged_record_are_users_faults(
    settings: TruthSettings, topology: Topology, tmp_path: Path, capsys
):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(UserError, match="belongs to a run of other settings"):
        program.run(settings, topology, tmp_path)
    damaged = tmp_path / "lines.jsonl"
    damaged.write_text('{"row": "scores"}\nnot json\n')
    assert program.main(["--plot-only", "--output", str(damaged)]) == 2
    assert f"{damaged}:2" in capsys.readouterr().err
    assert program.main(["--candidates", "13"]) == 2
    assert "whole groups" in capsys.readouterr().err
