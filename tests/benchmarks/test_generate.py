"""The benchmark of sampling runs whole at a small size; its rates are those of the work that it names."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.generate import __main__ as program
from benchmarks.generate import sampling
from synpro_engine.model.model import Model
from synpro_engine.sampler import Completion, Sampler, SamplerConfig, SamplingConfig


def test_a_small_run_writes_a_line_and_its_rates_are_tokens_over_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--rows", "8", "--top-p", "0.9", "--prompt", "16", "--new", "4"]
    assert program.main(["--recipe", "smoke", *options, "--output", str(tmp_path / "rows.jsonl")]) == 0
    (sample,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    # The first token of a completion comes of reading the prompt, and not of a step.
    assert sample["new_tokens_per_s"] * sample["step_seconds"] == pytest.approx(8)
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["smoke", "8", "0.9"]


def test_one_model_samples_for_all_figures_and_first_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the pages that completions take, kernels are compiled and graphs recorded."""
    models, lengths = set[int](), list[int]()

    class Watched(Sampler):
        def __init__(self, model: Model, config: SamplerConfig) -> None:
            models.add(id(model))
            super().__init__(model, config)

        def generate(self, *given: Any, sampling: SamplingConfig, **more: Any) -> list[list[Completion]]:
            lengths.append(sampling.max_new_tokens)
            return super().generate(*given, sampling=sampling, **more)

    monkeypatch.setattr(sampling, "Sampler", Watched)
    options = ["--rows", "8", "--top-p", "0.9,1.0", "--prompt", "16", "--new", "5"]
    assert program.main(["--recipe", "smoke", *options]) == 0
    assert len(models) == 1 and lengths == [5] * 4


def test_a_recipe_that_is_not_there_is_a_user_s_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--recipe", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
