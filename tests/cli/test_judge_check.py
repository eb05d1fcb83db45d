"""`synpro judge-check`: a table of what embedded and remote judges see."""

import json
from pathlib import Path

import pytest

from synpro_engine.cli.main import main
from tests.cli.refusals import refused
from tests.reward.judges.server import serving


def test_the_table_has_a_row_a_fault_and_a_column_a_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        # A judge that likes lists.
        server.answer = lambda handler, body: handler.write("5" if "\n- " in body["messages"][0]["content"] else "2")
        judge = f"reward.judges.quality={{endpoint: '{server.endpoint}', model: judge-1}}"
        drop = [f"tune.{operation}.bad_reward=drop_group" for operation in ("rephrase", "reformat")]
        options = ["--texts", "4", "--output", str(tmp_path / "check.json")]
        assert main(["judge-check", "smoke", judge, *drop, *options]) == 0
        asked = len(server.calls)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| planted fault | pairs | quality (judge-1) | similarity | structure | faithfulness |")
    rows = {cells[1].strip(): cells[2:-1] for cells in (line.split("|") for line in lines[2:])}
    assert "contradiction" in rows and rows["list for prose"][1].strip() == "0.00 / 0.00"
    assert rows["copy"][-1].strip() == "1.00 / 1.00", "anti_copy sees a copy"
    data = json.loads((tmp_path / "check.json").read_text())
    assert data["judges"]["quality"]["model"] == "judge-1" and server.endpoint not in json.dumps(data)
    assert len(data["standings"]) == len(rows) * 5 and asked > 20


def test_a_judge_that_is_not_there_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    judge = "reward.judges.structure={endpoint: 'http://127.0.0.1:9/v1', model: m}"
    drop = "tune.rephrase.bad_reward=drop_group"
    assert "`reward.judges.structure.endpoint`" in refused(capsys, "judge-check", "smoke", judge, drop)
