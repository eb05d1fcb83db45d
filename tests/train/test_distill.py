"""Learning from teachers: the loss of the definition in every layout, and runs that name, find and refuse them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from synpro_engine.backend import platform
from synpro_engine.cli.main import main
from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.data import Batch
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.train.config import DistillConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import DistillationLoss
from synpro_engine.train.metrics import METRICS, flops_per_token, read_metrics
from synpro_engine.train.optimizer_config import OptimizerConfig
from synpro_kernels import Teacher, linear_distill_definition
from tests.train.test_trainer import CONFIG as TRAINED
from tests.train.test_trainer import Killed, train

LAYOUTS: dict[int, list[dict[str, Any]]] = {
    2: [{"tp": 2}, {"tp": 2, "sequence_parallel": True}, {"cp": 2}, {"pp": 2}, {}],
    4: [{"tp": 2}],
}
"""By ranks, of which data parallelism has what is left."""
MORE: list[dict[str, Any]] = [
    {"tp": 2, "sequence_parallel": True}, {"cp": 2}, {"tp": 2, "cp": 2}, {"pp": 2}, {"pp": 2, "cp": 2},
    {"tp": 2, "pp": 2, "sequence_parallel": True}, {"pp": 2, "vpp": 2}, {"tp": 2, "pp": 2, "vpp": 2},
]  # fmt: skip
CONFIG = DistillConfig(teachers=("a", "b"), share=0.6, temperature=2.0, mixture=(1.0, 3.0))
SMALL = ("pretrain.max_steps=6", "pretrain.plateau=null", "pretrain.in_run=null", "pretrain.eval_every=6")


def shape(width: int = 32) -> ModelConfig:
    return ModelConfig(layers=4, d_model=width, heads=4, kv_heads=2, ffn=48, vocab_size=64, seq_len=16)


def _steps(topology: Topology) -> list[float]:
    """Losses, divergences and norms of three steps, and the first step's loss by the definition."""
    teachers = [build_model(shape(width), topology, seed=seed) for width, seed in ((48, 5), (32, 6))]
    engine = Engine(build_model(shape(), topology), OptimizerConfig(lr=1e-2, eps=1e-3))
    loss_fn, dp, found = DistillationLoss(1e-2, CONFIG, teachers), topology.dp, []
    for seed in range(3):
        ids = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(seed))
        rows = ids.chunk(dp.size)[dp.rank].split(1)
        if seed == 0 and topology.world_size == 1:
            model = engine.model
            taught = [Teacher(one.hidden(ids[:, :-1]), one.output_weight()) for one in teachers]
            expected = linear_distill_definition(
                model.hidden(ids[:, :-1]), model.output_weight(), ids[:, 1:], teachers=taught, share=0.6,
                temperature=2.0, z_loss=1e-2, mixture=CONFIG.mixture,
            )  # fmt: skip
            found += [float(expected.cross_entropy) / 64, float(expected.divergence) / 64]
        batches = [Batch(part[:, :-1], part[:, 1:]) for part in rows]
        with loss_fn.over(batches):
            result = engine.step(batches, loss_fn, denominator=64.0)
        found += [result.loss, result.extras["divergence"] / 64, result.grad_norm]
    return found


def _in_layouts(layouts: list[dict[str, Any]], ports: list[int]) -> list[list[float]]:
    found = []
    for layout, port in zip(layouts, ports, strict=True):
        with job(ParallelConfig.model_validate(layout), port) as topology:
            found.append(_steps(topology))
    return found


@pytest.mark.parametrize(
    ("ranks", "layouts"), [*LAYOUTS.items(), pytest.param(4, MORE, marks=pytest.mark.slow, id="more")]
)
def test_the_loss_is_the_definition_s_and_layouts_agree_with_one_process(
    ranks: int, layouts: list[dict[str, Any]]
) -> None:
    with launched(ParallelConfig()) as topology:
        loss, divergence, *alone = _steps(topology)
    assert math.isclose(alone[0], loss, rel_tol=1e-5) and math.isclose(alone[1], divergence, abs_tol=1e-6)
    for of_rank in run_ranks(_in_layouts, ranks, layouts=layouts, ports=free_ports(len(layouts))):
        for layout, found in zip(layouts, of_rank, strict=True):
            assert found == pytest.approx(alone, rel=2e-5, abs=1e-6), layout


def records(run: Path) -> list[dict[str, Any]]:
    return [one for one in read_metrics(run / "pretrain" / METRICS) if one["kind"] == "train"]


def test_a_run_learns_from_a_finished_one_and_is_stale_when_that_is_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "peak_flops", lambda: 1e12)
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    assert main(["pretrain", "smoke", "--dir", str(teacher), *SMALL]) == 0
    distilled = f"pretrain.distill={json.dumps({'teachers': [str(teacher / 'pretrain')], 'share': 0.9})}"
    assert main(["pretrain", "smoke", "--dir", str(student), *SMALL, distilled, "pretrain.optimizer.lr=2e-3"]) == 0
    assert all(one["divergence"] > 0 for one in records(student))
    assert records(student)[-1]["divergence"] < records(student)[0]["divergence"]
    # A teacher as large as the student reads each token too, which is a third more work.
    shape = load_recipe("smoke").model
    for run, passes in ((teacher, 1), (student, 4 / 3)):
        for one in records(run):
            flops = passes * flops_per_token(shape, shape.seq_len)
            assert one["mfu"] * 1e12 / one["tokens_per_s"] == pytest.approx(flops)
    # Another place of the same teacher is nothing new; another teacher is.
    moved = tmp_path / "moved"
    teacher.rename(moved)
    again = distilled.replace(str(teacher), str(moved))
    assert main(["pretrain", "smoke", "--dir", str(student), *SMALL, again, "pretrain.optimizer.lr=2e-3"]) == 0
    assert main(["pretrain", "smoke", "--dir", str(tmp_path / "other"), *SMALL, "seed=8"]) == 0
    other = distilled.replace(str(teacher), str(tmp_path / "other"))
    capsys.readouterr()
    assert main(["pretrain", "smoke", "--dir", str(student), *SMALL, other, "pretrain.optimizer.lr=2e-3"]) == 2
    assert "--redo" in capsys.readouterr().err


def test_teachers_that_do_not_fit_are_refused_by_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "smoke", "--dir", str(tmp_path / "one"), *SMALL]) == 0
    place = str(tmp_path / "one" / "pretrain")
    for number, (teacher, settings, told) in enumerate(
        (
            (place, ("tokenizer.vocab_size=480",), "was trained with another tokenizer"),
            (place, ("model.vocab_size=640",), "has a vocabulary of 512, this model one of 640"),
            (place, (f"model.seq_len={2 * load_recipe('smoke').model.seq_len}",), "tokens at most, this model"),
            (str(tmp_path / "nothing"), (), "nothing"),
        )
    ):
        capsys.readouterr()
        words = [f"pretrain.distill.teachers=[{teacher}]", *settings]
        assert main(["pretrain", "smoke", "--dir", str(tmp_path / str(number)), *SMALL, *words]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["pretrain.in_run=null", "pretrain.output_layer=recomputed"], "distill: goes with output_layer fused"),
        ([], "in_run: cannot be asked for with distill"),
        (["pretrain.in_run=null", "pretrain.distill.share=0"], "share"),
        (["pretrain.in_run=null", "pretrain.distill.temperature=0"], "temperature"),
        (["pretrain.in_run=null", "pretrain.distill.mixture=[1,2]"], "mixture: 2 weights for 1 teachers"),
        (["pretrain.in_run=null", "pretrain.distill.mixture=[0]"], "mixture"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_recipe("smoke", ["pretrain.distill.teachers=[a]", *settings])


def test_a_run_goes_on_though_its_teacher_was_moved(topology: Topology, tmp_path: Path) -> None:
    teachers = [build_model(shape(), topology, seed=5)]
    config = TRAINED.model_copy(update={"distill": DistillConfig(teachers=("one",))})
    with pytest.raises(Killed):
        train(topology, tmp_path, config, die_before=3, teachers=teachers)
    moved, other = (config.model_copy(update={"distill": DistillConfig(teachers=(name,), share=share)})
                    for name, share in (("two", 0.5), ("one", 0.4)))  # fmt: skip
    with pytest.raises(UserError, match=r"belongs to a run of other settings: `distill\.share`"):
        train(topology, tmp_path, other, teachers=teachers)
    assert train(topology, tmp_path, moved, teachers=teachers).step == 6
