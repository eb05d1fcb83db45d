"""The examples do what they say, at a small setting, each as a process of its own as a reader would start it."""

import ast
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from synpro_engine import ModelConfig, ParallelConfig, build_model, export_hf, launched, load_tokenizer
from synpro_engine.data import train_sentencepiece

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
}  # fmt: skip


def run(name: str, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py", *arguments],
        env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def numbers(pattern: str, text: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, text)]


def sentences(count: int) -> list[str]:
    chance = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]
    return [" ".join("".join(chance.choices(syllables, k=2)) for _ in range(12)) + "." for _ in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory with a tiny random model."""
    folder = tmp_path_factory.mktemp("model")
    train_sentencepiece(sentences(300), 320, folder / "tokenizer.model")
    shape = ModelConfig(family="llama", layers=2, d_model=32, heads=4, kv_heads=2, ffn=48, vocab_size=320, seq_len=64)
    with launched(ParallelConfig()) as topology:
        export_hf(build_model(shape, topology), folder / "hf", load_tokenizer(folder / "tokenizer.model"))
    return folder / "hf"


def lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": f"t{at}", "text": text}) + "\n" for at, text in enumerate(texts)))
    return path


def test_there_are_seven_examples() -> None:
    assert len(EXAMPLES) == 7


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_shows_and_prints(path: Path) -> None:
    text = path.read_text()
    assert 60 <= len(text.splitlines()) <= 150
    told = ast.get_docstring(ast.parse(text)) or ""
    assert f"python examples/{path.name}" in told and f"examples/{path.name}" in told.split("torchrun", 1)[1]
    assert re.search(r"\bprints\b", told, re.IGNORECASE)


def test_an_operation_of_ones_own_reads_an_awkward_answer() -> None:
    told = run("own_operation").stdout
    assert "system: You write a glossary" in told and "read: [('ebb', 'The falling tide.')], exact: False" in told
    assert "cut:  duplicate 20, placeholder 16, preamble 5, unfinished 16" in told and "no_heading" in told


def test_a_surrogate_of_ones_own_has_the_slope_of_the_ratio_near_one() -> None:
    told = run("own_tuning").stdout
    clip, soft = (numbers(r"([-\d.]+)", told.split(f"{name} slope")[1].splitlines()[0]) for name in ("clip", "soft"))
    assert clip == [0.5, 0.9, 1.0, 1.1, 0.0] and soft[1:4] == clip[1:4] and soft[4] > 0.0
    assert "1.00  The sea" in told and "0.00  Considerable" in told


def test_a_reward_of_ones_own_rises(tmp_path: Path) -> None:
    told = run("grpo_own_reward", "--steps", "16", "--letter", "a", "--dir", tmp_path).stdout
    rewards = numbers(r"mean reward ([\d.]+)", told)
    assert rewards[-1] > rewards[0] + 0.2
    assert (tmp_path / "policy").is_dir()
    first, last = (re.findall(rf"{which}: +'(.*)'", told)[0] for which in ("first", "last"))
    assert last.count("a") > first.count("a")


def test_every_line_of_a_jsonl_is_scored_in_its_order(tmp_path: Path, model: Path) -> None:
    texts, reference = sentences(9), sentences(12)[9:]
    told = run(
        "score_your_jsonl", "--model", model, "--texts", lines(tmp_path / "texts.jsonl", texts),
        "--reference", lines(tmp_path / "reference.jsonl", reference), "--context", "64", "--dir", tmp_path / "out",
        "--show", "2",
    ).stdout  # fmt: skip
    scores = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert [score["id"] for score in scores] == [f"t{at}" for at in range(9)]
    ranked = sorted(scores, key=lambda score: -score["value"])
    shown = numbers(r"(?m)^  ([-+][\d.]+e[-+]\d+)  loss", told)
    ends = [score["value"] for score in (*ranked[:2], *ranked[-2:])]
    assert shown == pytest.approx(ends, rel=0.01)
    assert repr(texts[int(ranked[0]["id"][1:])][:76]) in told


def test_a_fault_of_the_user_is_one_line(tmp_path: Path, model: Path) -> None:
    missing = tmp_path / "missing.jsonl"
    done = run("score_your_jsonl", "--model", model, "--texts", missing, "--dir", tmp_path / "out", code=2)
    assert done.stdout == "" and done.stderr.splitlines()[-1].startswith(f"error: {missing}: no such file")
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr


def test_pretraining_lowers_the_losses_and_ranks_the_pieces(tmp_path: Path) -> None:
    texts = [" ".join(sentences(60)[at : at + 20]) for at in range(40)]
    source = lines(tmp_path / "text.jsonl", texts)
    told = run("pretrain_in_run_scores", "--text", source, "--steps", "24", "--dir", tmp_path / "out").stdout
    losses = numbers(r"training loss ([\d.]+)", told)
    before, after = (numbers(rf"([\d.]+) {when}", told)[0] for when in ("before", "after"))
    assert losses[-1] < losses[0] - 0.5 and after < before - 0.5
    best, worst = told[told.index("helped most") :].split("helped least")
    shown = [numbers(r"(?m)^  ([-+][\d.]+)  t", part) for part in (best, worst)]
    assert shown[0][0] >= shown[0][-1] >= shown[1][0] >= shown[1][-1] and len(shown[0]) == len(shown[1]) == 3


def test_linear_logprob_gives_the_losses_and_gradients_of_the_logits() -> None:
    told = run("linear_logprob_in_torch", "--steps", "4", "--vocab", "4096", "--rows", "2", "--length", "64").stdout
    plain, fused = numbers(r": logits ([\d.]+)", told), numbers(r"linear_logprob ([\d.]+)", told)
    assert len(plain) == 4 and fused == pytest.approx(plain, abs=1e-4) and fused[-1] < fused[0]
    assert max(numbers(r"gradients apart ([\d.e-]+)", told)) < 1e-4
    assert told.count("ms a step, peak memory") == 2


def test_each_student_teaches_the_next_and_a_chain_goes_on_where_it_was(tmp_path: Path) -> None:
    chain, small = tmp_path / "chain", ("pretrain.max_steps=8", "pretrain.plateau=null", "pretrain.eval_every=4")

    def manifests(length: int) -> list[Path]:
        return [chain / f"generation-{number}" / "pretrain" / "manifest.json" for number in range(length)]

    told = run("distill_chain", "smoke", *small, "--length", "2", "--share", "0.8", "--dir", chain).stdout
    made = [path.stat().st_mtime_ns for path in manifests(2)]
    again = run("distill_chain", "smoke", *small, "--length", "3", "--share", "0.8", "--dir", chain).stdout
    before, after = ([line for line in of.splitlines() if line.startswith("generation")] for of in (told, again))
    assert len(before) == 2 and before == after[:2]
    assert "generation 2: step 8, held-out loss: reference " in after[2]
    assert made == [path.stat().st_mtime_ns for path in manifests(2)]
    for number, manifest in enumerate(manifests(3)):
        config = json.loads(manifest.read_text())["config"]["pretrain"]
        taught = [json.loads(line) for line in manifest.with_name("metrics.jsonl").read_text().splitlines()]
        divergences = [record["divergence"] for record in taught if "divergence" in record]
        assert ("distill" not in config) == (number == 0) == (not divergences)
        assert number == 0 or divergences[-1] < divergences[0]
