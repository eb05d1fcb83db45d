"""How cost grows: cases differ along one axis at equal tokens, and powers are those of the records."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.pretrain.contenders import OURS, PLAIN
from benchmarks.pretrain.growth import AXES, TOKENS, case, main
from synpro_engine.config import json_text


@pytest.mark.parametrize("axis", AXES)
def test_cases_of_an_axis_have_as_many_tokens_and_more_flops_each(axis: str) -> None:
    steps = [case(axis, value) for value in AXES[axis]]
    assert {step.tokens for step in steps} == {TOKENS}
    flops = [step.flops_per_token[0] for step in steps]
    assert flops == sorted(set(flops))


def _record(axis: str, value: int, contender: str, seconds: float, status: str = "ok") -> dict[str, Any]:
    return {"bench": "pretrain_growth", "axis": axis, "value": value, "flops": 1e9 * value, "contender": contender,
            "status": status, "timing": {"median": seconds}}  # fmt: skip


def test_powers_and_ratios_are_those_of_records_that_were_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [_record("layers", value, OURS, 0.1 * value) for value in (2, 4, 8)]
    records += [_record("layers", value, PLAIN, 0.05 * value**2) for value in (2, 4, 8)]
    records += [_record("layers", 16, OURS, 99.0, "wrong"), _record("layers", 16, PLAIN, 12.8)]
    (tmp_path / "r.jsonl").write_text("".join(json_text(one) + "\n" for one in records))
    assert main(["--from", str(tmp_path / "r.jsonl"), "--plot", str(tmp_path / "p.png")]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| layers"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["2 to 8", "1.00", "1.00", "2.00", "1.00 to 4.00"]
    assert (tmp_path / "p.png").stat().st_size > 5_000
