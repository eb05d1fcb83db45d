"""`synpro judge-check`: a table of what embedded and remote judges see."""

import json
import re
from pathlib import Path

import pytest

from synpro_engine.cli.main import main
from synpro_engine.dist import ParallelConfig, launched
from tests.cli.refusals import refused
from tests.reward.judges.models import write_model
from tests.reward.judges.server import serving


def test_the_tables_have_a_row_a_kind_for_each_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        # A judge that likes lists.
        server.answer = lambda handler, body: handler.write("5" if "\n- " in body["messages"][0]["content"] else "2")
        judge = f"reward.judges.quality={{endpoint: '{server.endpoint}', model: judge-1, api: chat}}"
        drop = [f"tune.{operation}.bad_reward=drop_group" for operation in ("rephrase", "reformat")]
        files = ["--output", str(tmp_path / "check.json"), "--json", str(tmp_path / "figures.json")]
        assert main(["judge-check", "smoke", judge, *drop, "--texts", "4", "--pairs", "8", *files]) == 0
        asked = len(server.calls)
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| planted fault | pairs | quality (judge-1) | similarity | structure | anti_copy |")
    texts, entries = "\n".join(lines).split("| faithfulness | n |")
    rows = {cells[1].strip(): cells[2:-1] for cells in (line.split("|") for line in texts.splitlines()[2:])}
    assert "contradiction" in rows and rows["list for prose"][1].strip() == "0.00 / 0.00"
    assert rows["copy"][-1].strip() == "1.00 / 1.00", "anti_copy sees a copy"
    assert all(start in entries for start in ("| negation |", "| word |", "| sciq | 8 |", "| boolq | 8 |"))
    assert re.search(r"^quality \(judge-1\): \d+ judged, .* calls.* each$", printed, re.MULTILINE), "its cost is told"
    assert "quality (judge-1) hardly sees" in printed
    data = json.loads((tmp_path / "check.json").read_text())
    assert data["judges"]["quality"]["model"] == "judge-1" and server.endpoint not in json.dumps(data)
    assert len(data["standings"]) == len(rows) * 4 and asked > 20
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == ["quality", "similarity", "structure", "anti_copy", "faithfulness"]
    assert figures["anti_copy"]["copy"]["auc"] == 1.0 and figures["faithfulness"]["sciq"]["n"] == 8
    assert all(0 <= of["low"] <= of["auc"] <= of["high"] <= 1 for kinds in figures.values() for of in kinds.values())


def test_a_judge_is_checked_alone_and_another_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "one.json"
    assert main(["judge-check", "smoke", "--judge", "structure", "--texts", "4", "--json", str(output)]) == 0
    assert list(json.loads(output.read_text())) == ["structure"]
    capsys.readouterr()
    assert "did you mean `structure`" in refused(capsys, "judge-check", "smoke", "--judge", "structur")


def test_a_judge_that_is_not_there_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    judge = "reward.judges.structure={endpoint: 'http://127.0.0.1:9/v1', model: m}"
    drop = "tune.rephrase.bad_reward=drop_group"
    assert "`reward.judges.structure.endpoint`" in refused(capsys, "judge-check", "smoke", judge, drop)


def test_a_model_in_the_job_is_checked_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with launched(ParallelConfig()) as topology:
        model = write_model(tmp_path, "plain", topology)
    drop = [f"tune.{operation}.bad_reward=drop_group" for operation in ("rephrase", "reformat")]
    judges = [f"reward.judges.{name}={{model: {model}}}" for name in ("structure", "faithfulness")]
    named = ["--judge", "structure", "--judge", "faithfulness", "--texts", "4", "--pairs", "6"]
    assert main(["judge-check", "smoke", *judges, *drop, *named]) == 0
    printed = capsys.readouterr().out
    assert "| planted fault | pairs | structure (model) |" in printed and "| faithfulness (model) | n |" in printed
    assert re.search(
        r"^faithfulness \(model\): \d+ judged, .* input_tokens.* plain_tokens each$", printed, re.MULTILINE
    )
    (model / "model.safetensors").unlink()
    assert "`reward.judges.faithfulness.model`: " in refused(capsys, "judge-check", "smoke", *judges, *drop, *named)
