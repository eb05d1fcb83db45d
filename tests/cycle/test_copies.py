"""Copies of a run's checkpoints: taken up where the run is lost, and by no stage that is made from something else."""

import json
import re
import shutil
from pathlib import Path

import pytest

from synpro_engine.cli.main import main
from synpro_engine.train.checkpoint import checkpoint_extra
from tests.cli.refusals import refused

SMALL = (
    *("pretrain.max_steps=4", "pretrain.eval_every=4", "pretrain.checkpoint_every=2", "pretrain.plateau=null"),
    *("pretrain.tensorboard=false", "pretrain.in_run=null", "corpus.max_train_tokens=12000"),
    "arms.again={text: organic, continued: {steps: 2}}",
    "arms.oracle={text: unique, continued: {steps: 2, synthetic_share: 0.5}}",
)

NEWEST = Path("pretrain", "checkpoints", "step-00000004")


def _records(path: Path, word: str) -> str:
    records = [{"prompt": f"Say {word} {number}.", "response": f"{word} {number}"} for number in range(40)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"references={{asked: {{source: {path}, prompt_field: prompt, response_field: response}}}}"


def test_a_lost_run_goes_on_from_its_copies_and_one_with_another_reference_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["smoke", *SMALL, f"pretrain.checkpoint_copy={tmp_path / 'copies'}"]
    words += [_records(tmp_path / "asked.jsonl", "yes")]
    assert main(["evaluate", *words, "--dir", str(tmp_path / "run")]) == 0
    (tmp_path / "run").rename(tmp_path / "lost")
    capsys.readouterr()
    words += ["--dir", str(tmp_path / "elsewhere")]
    assert main(["evaluate", *words]) == 0
    assert re.findall(r"going on from step (\d)", capsys.readouterr().err) == ["4", "6", "6"]
    _records(tmp_path / "asked.jsonl", "no")
    told = refused(capsys, "pretrain", *words, "--redo")
    assert f"{tmp_path / 'copies' / 'pretrain'}: step-00000004 is of a run that was made from other text" in told
    shutil.rmtree(tmp_path / "copies" / "pretrain")
    assert main(["pretrain", *words]) == 0
    told = refused(capsys, "evaluate", *words)
    assert re.search(rf"{tmp_path / 'copies'}\S+: step-00000006 is of a run that was made from other text", told)
    before, now = (checkpoint_extra(tmp_path / run / NEWEST)["inputs"] for run in ("lost", "elsewhere"))
    assert before != now
