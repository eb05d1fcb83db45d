"""`make bench`: a table from the records of its parts, and README's from those that are committed."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import suite
from benchmarks.pretrain.contenders import CONTENDERS

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"foreign_cpu_share": 0.0}
_KERNEL = {
    "bench": "kernels",
    "op": "swiglu",
    "wrong": "",
    "ratio": 1.25,
    "limit_seconds": 1.0,
    "ratios": [1.0, 1.25, 2.0],
}
_OURS = {"bench": "pretrain", "case": "a", "contender": "synpro_engine", "status": "ok", "tokens_per_s": 512.0}
_COST = {"bench": "influence_cost", "passes": "scoring", "contender": "dot", "computes": "8 texts"}
_UPDATES = [
    ("engine, adamw", 0.02), ("engine, muon", 0.05), ("torch.optim.AdamW", 0.01), ("torch.optim.Muon and AdamW", 0.06),
]  # fmt: skip
RECORDS: list[dict[str, object]] = [
    {
        **_KERNEL,
        "timings": {"ours": {"median": 2.0}},
        "rivals": {"a rival": {"ratio": 1.5, "why": ""}, "another": {"ratio": None, "why": "is not here"}},
    },
    {**_OURS, "ratios": [1.5, 1.2, 1.6]},
    {"bench": "pretrain", "case": "a", "contender": "plain-pytorch", "status": "ok", "ratios": [1.0, 1.0, 1.0]},
    {"bench": "pretrain", "case": "a", "contender": "compiled", "status": "ok", "ratios": [1.0, 1.2, 1.0]},
    {"bench": "pretrain", "case": "a", "contender": "transformers", "status": "failed", "reason": "?"},
    {
        "bench": "rollout",
        "part": "speed",
        "shape": "1 x 8 x 64",
        "ratio": 2.5,
        "ratios": [2.0, 3.0],
        "tokens_per_s": {"synpro": 100.0},
    },
    {"bench": "rollout", "part": "limit"},
    {**_COST, "against": "a forward", "ratio": {"median": 3.5}},
    {"bench": "optimizer_step", "model": "m", "timings": {"update": {name: {"median": of} for name, of in _UPDATES}}},
]


def _written(records: list[dict[str, object]], path: Path) -> Path:
    path.write_text("".join(json.dumps({**record, "environment": ENVIRONMENT}) + "\n" for record in records))
    return path


def test_the_table_has_the_ratios_of_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- speed -->\nold\n<!-- end of speed -->\nbehind\n")
    records = _written(RECORDS, tmp_path / "all.jsonl")
    assert suite.main(["--from", str(records), "--readme", str(readme)]) == 0
    *table, told = capsys.readouterr().out.splitlines()
    rows = [line.split("  ") for line in table[1:]]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ["swiglu", "plain PyTorch", "1.25", "1.00 to 2.00; 50% of the limit"],
        ["swiglu", "a rival", "1.50"],
        ["a", "plain-pytorch", "1.50", "1.20 to 1.60; 512 tokens/s"],
        ["a", "compiled", "1.50", "1.00 to 1.60; 512 tokens/s"],
        ["sampling 1 x 8 x 64", "transformers", "2.50", "2.00 to 3.00; 100 tokens/s"],
        ["scoring: dot, 8 texts", "a forward", "3.50", "a cost: the less, the better"],
        ["adamw, an update of m", "torch.optim.AdamW", "0.50", "20.0 ms"],
        ["muon, an update of m", "torch.optim.Muon and AdamW", "1.20", "50.0 ms"],
    ]
    rivals = [name for name in CONTENDERS if name not in ("synpro_engine", "plain-pytorch", "transformers")]
    assert told == (
        "Without a figure: another (swiglu: is not here), transformers (failed: ?), "
        + ", ".join(f"{name} (was not run)" for name in rivals) + "."
    )  # fmt: skip
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("behind\n") and "old" not in text
    assert f"|\n\n{told}\n<!-- end of speed -->" in text
    assert "| swiglu | plain PyTorch | 1.25 | 1.00 to 2.00; 50% of the limit |" in text


@pytest.mark.parametrize(
    "fault",
    [
        {"bench": "kernels", "wrong": "no"},
        {"bench": "pretrain", "status": "wrong", "reason": "?"},
        {"bench": "pretrain", "status": "failed", "reason": "?"},
    ],
)
def test_one_of_ours_that_is_wrong_or_failed_ends_with_1(fault: dict[str, object], tmp_path: Path) -> None:
    records = [{**record, **fault} if record["bench"] == fault["bench"] else record for record in RECORDS]
    assert suite.main(["--from", str(_written(records, tmp_path / "all.jsonl"))]) == 1


def test_where_every_rival_has_a_figure_nothing_stands_below(tmp_path: Path) -> None:
    everyone = [{**_OURS, "contender": name, "ratios": [1.0]} for name in CONTENDERS]
    assert suite.absent({"pretrain": everyone}) == suite.absent({}) == ""


def test_a_part_of_the_readme_without_a_record_ends_with_1(tmp_path: Path) -> None:
    assert suite.main(["--from", str(_written(RECORDS[:1], tmp_path / "all.jsonl"))]) == 1


def test_the_readme_shows_the_records_that_are_committed(tmp_path: Path) -> None:
    [named] = re.findall(r"`(benchmarks/results/\S+-suite\.jsonl)`", (ROOT / "README.md").read_text())
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    assert suite.main(["--from", str(ROOT / named), "--readme", str(copy)]) == 0
    assert copy.read_text() == (ROOT / "README.md").read_text()


def test_an_update_that_this_torch_has_no_rival_for_has_no_ratio_and_is_named() -> None:
    update = {name: {"median": of} for name, of in _UPDATES if "torch.optim.Muon" not in name}
    records = [{"bench": "optimizer_step", "model": "m", "timings": {"update": update}}]
    assert [beside for _, beside, *_ in suite._optimizer(records)] == ["torch.optim.AdamW"]
    assert suite.absent({"optimizer_step": records}) == (
        "Without a figure: torch.optim.Muon and AdamW (this torch has none)."
    )
