"""Bad input gets one line that names file, line or key, and exit code 2; no traceback."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from synpro_engine.cli.main import main
from synpro_engine.config import write_manifest
from tests.cli.refusals import refused


def _text(seed: int) -> str:
    """Three hundred words put together from syllables: enough variety for a small vocabulary."""
    chance = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]
    return " ".join("".join(chance.choices(syllables, k=chance.randint(1, 3))) for _ in range(300)) + "."


def _documents(path: Path, count: int = 30) -> Path:
    lines = [json.dumps({"id": f"d{i}", "text": _text(i)}) for i in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "smok"], "no recipe `smok` (did you mean `smoke`?)"),
        (["run", "nothing.yaml"], "nothing.yaml: no such file"),
        (["run", "smoke", "pretrian.max_steps=3"], "unknown key `pretrian` (did you mean `pretrain`?)"),
        (["run", "smoke", "tune.rephrase.step=3"], "unknown key `tune.rephrase.step` (did you mean `steps`?)"),
        (["run", "smoke", "pretrain.max_steps=many"], "`pretrain.max_steps`"),
        (["run", "smoke", "model.kv_heads=3"], "`model.kv_heads`: must divide heads (4)"),
        (["run", "smoke", "generate.operations=[rephrase, summarise]"], "no operation `summarise`"),
        (["run", "smoke", "reward.rephrase.influense=1.0"], "`influense`"),
        (["run", "smoke", "seed=99999999999999999999"], "`seed`"),
        (["run", "smoke", "tune.rephrase.group_size=1"], "`tune.rephrase`: group_size: "),
        (["run", "smoke", "parallel.tp=2"], "tp 2 x pp 1 does not divide the 1 process(es)"),
    ],
)
def test_a_fault_of_the_config_names_its_key(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert message in refused(capsys, *arguments, "--dir", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lr", ["3.0", "1e30"])
def test_training_that_diverges_is_a_fault_and_no_plateau(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, lr: str
) -> None:
    source = f"corpus.source={_documents(tmp_path / 'docs.jsonl')}"
    line = refused(capsys, "pretrain", "smoke", f"pretrain.optimizer.lr={lr}", source, "--dir", str(tmp_path / "run"))
    assert "training diverged at step" in line and f"lower `pretrain.optimizer.lr` ({float(lr):.3g}" in line
    assert not (tmp_path / "run" / "pretrain").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "text": "x"', "docs.jsonl:31"),
        ('{"id": "a"}', "docs.jsonl:31"),
        ('{"id": "d3", "text": "again"}', "docs.jsonl:31"),
    ],
    ids=["malformed", "no text", "an id twice"],
)
def test_a_bad_document_is_named_by_file_and_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str, message: str
) -> None:
    path = _documents(tmp_path / "docs.jsonl")
    path.write_text(path.read_text() + line + "\n")
    error = refused(capsys, "tokenize", "smoke", f"corpus.source={path}", "--dir", str(tmp_path / "run"))
    assert message in error


def test_an_empty_corpus_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text("")
    run = tmp_path / "run"
    error = refused(capsys, "tokenize", "smoke", f"corpus.source={tmp_path / 'docs.jsonl'}", "--dir", str(run))
    assert "docs.jsonl: no documents" in error
    # Nothing was made there yet, so the corrected command may use the directory.
    mended = _documents(tmp_path / "mended.jsonl")
    assert main(["tokenize", "smoke", f"corpus.source={mended}", "--dir", str(run)]) == 0


def test_a_file_in_place_of_the_directory_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    assert "run: is a file" in refused(capsys, "tokenize", "smoke", "--dir", str(tmp_path / "run"))


def test_a_directory_of_another_config_is_refused_and_stays_as_it_was(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, run = _documents(tmp_path / "docs.jsonl"), tmp_path / "run"
    assert main(["tokenize", "smoke", f"corpus.source={path}", "--dir", str(run)]) == 0
    config = (run / "config.yaml").read_text()
    error = refused(capsys, "tokenize", "smoke", f"corpus.source={path}", "seed=8", "--dir", str(run))
    assert "`seed` is 7 there, 8 here: tokenize would have to be made anew; --redo does that" in error
    assert (run / "config.yaml").read_text() == config and (run / "tokenize" / "manifest.json").exists()
    assert "holds a run of another config" in refused(capsys, "report", "smoke", "seed=8", "--dir", str(run))
    assert main(["tokenize", "smoke", f"corpus.source={path}", "seed=8", "--dir", str(run), "--redo"]) == 0
    assert "seed: 8" in (run / "config.yaml").read_text()
    assert '"seed": 8' in (run / "tokenize" / "manifest.json").read_text()


def test_a_run_that_is_older_than_a_key_can_be_reported_on_and_gone_on_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, run = _documents(tmp_path / "docs.jsonl"), tmp_path / "run"
    recipe = ["smoke", f"corpus.source={path}", "--dir", str(run)]
    assert main(["tokenize", *recipe]) == 0
    config = run / "config.yaml"
    older = "".join(line for line in config.read_text().splitlines(keepends=True) if "plateau_rise" not in line)
    assert older != config.read_text()
    config.write_text(older)
    assert main(["report", *recipe]) == 0
    assert main(["tokenize", *recipe]) == 0
    assert "plateau_rise" in config.read_text()


def test_no_space_on_the_disk_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    # /dev/full answers every write with "no space left on device".
    path = _documents(tmp_path / "docs.jsonl", 40)
    run = tmp_path / "run"
    assert main(["probe", "smoke", f"corpus.source={path}", "pretrain.max_steps=2", "--dir", str(run)]) == 0
    capsys.readouterr()
    error = refused(
        capsys, "influence", "smoke", f"corpus.source={path}", "pretrain.max_steps=2", "--dir", str(run),
        "--input", str(path), "--output", "/dev/full",
    )  # fmt: skip
    assert "No space left on device" in error


def test_influence_needs_a_probe_and_export_a_stage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, run = _documents(tmp_path / "docs.jsonl"), str(tmp_path / "run")
    source = f"corpus.source={path}"
    assert main(["tokenize", "smoke", source, "--dir", run]) == 0
    capsys.readouterr()
    error = refused(
        capsys,
        "influence",
        "smoke",
        source,
        "--dir",
        run,
        "--input",
        str(path),
        "--output",
        str(tmp_path / "scores.jsonl"),
    )
    assert "no probe yet" in error
    error = refused(capsys, "export", "smoke", source, "--dir", run, "--output", str(tmp_path / "hf"))
    assert "pretrain: no such finished stage" in error


def test_commands_that_only_read_make_no_directory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for command in (["report"], ["export", "--output", str(tmp_path / "hf")]):
        error = refused(capsys, command[0], "smoke", "--dir", str(tmp_path / "mistyped"), *command[1:])
        assert "mistyped: no run is there" in error and not (tmp_path / "mistyped").exists()


def test_influence_scores_every_document_once_and_goes_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, run, scores = _documents(tmp_path / "docs.jsonl", 40), str(tmp_path / "run"), tmp_path / "scores.jsonl"
    arguments = ["smoke", f"corpus.source={path}", "pretrain.max_steps=2", "--dir", run]
    assert main(["probe", *arguments]) == 0
    scored = ["influence", *arguments, "--input", str(path), "--output", str(scores)]
    environment = Path(run, "environment.json").read_bytes()
    assert main(scored) == 0 and Path(run, "environment.json").read_bytes() == environment
    whole = scores.read_text()
    assert [json.loads(line)["id"] for line in whole.splitlines()] == [f"d{i}" for i in range(40)]
    scores.write_text("\n".join(whole.splitlines()[:7]) + '\n{"id": "d7", "val')
    assert main(scored) == 0
    assert [json.loads(line)["id"] for line in scores.read_text().splitlines()] == [f"d{i}" for i in range(40)]
    notes = tmp_path / "notes.txt"
    notes.write_text("no newline at the end")
    foreign = scores.with_name("other.jsonl")
    foreign.write_text(whole.replace('"theta": "', '"theta": "0'))
    documents = scores.with_name("mine.jsonl")
    documents.write_text('{"id": "d7", "text": "somebody\'s only copy"}')
    for output, message in (
        (notes, "does not hold scores"),
        (foreign, "scores of other settings: `theta` is"),
        (path, "is the input"),
        (documents, "does not hold scores"),
        (Path(run, "config.yaml"), "does not hold scores"),
    ):
        before = output.read_text()
        assert message in refused(capsys, *scored[:-1], str(output)) and output.read_text() == before
    assert "is a directory" in refused(capsys, *scored[:-1], run)
    inside = str(Path(run, "pretrain", "scores"))
    assert "a finished pretrain; nothing is written there" in refused(capsys, *scored[:-1], inside)
    exported = ["export", *arguments, "--output", inside]
    assert "a finished pretrain; nothing is written there" in refused(capsys, *exported) and not Path(inside).exists()
    assert main(["export", *arguments, "--output", str(tmp_path / "hf")]) == 0
    Path(run, "pretrain", "note").write_text("as if it had been made anew")
    write_manifest(Path(run, "pretrain"), "pretrain", {}, {}, None)
    assert "was made from another pretrain" in refused(capsys, *scored)
    assert (tmp_path / "hf" / "model.safetensors").exists()


@pytest.mark.parametrize("wish", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_wish_to_stop_while_nothing_is_in_hand_ends_with_75(wish: signal.Signals) -> None:
    code = "import os, sys; from synpro_engine.cli import main\n"
    code += f"main.app.command('wished')(lambda: os.kill(os.getpid(), {int(wish)})); sys.exit(main.main(['wished']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (75, f"stopped: {wish.name}: nothing was in hand\n")


@pytest.mark.parametrize("wish", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_that_comes_when_all_is_done_changes_nothing(wish: signal.Signals) -> None:
    code = "import os, sys; from synpro_engine.cli import main\nmain.app.command('wished')(lambda: None)\n"
    code += f"sys.argv = ['synpro', 'wished']; code = main.main(); os.kill(os.getpid(), {int(wish)}); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_left_running_at_a_stop_does_not_hold_up_the_end() -> None:
    code = "import atexit, sys, time\nfrom synpro_engine.cli import main\nfrom synpro_engine.dist import Stopped\n"
    code += "atexit.register(time.sleep, 60)  # as a library does whose server does not answer\n"
    code += "def stopped():\n    stop = Stopped('saved')\n    stop.at_once = True\n    raise stop\n"
    code += "main.app.command('stopped')(stopped); sys.argv = ['synpro', 'stopped']; sys.exit(main.main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=55)
    assert (done.returncode, done.stderr) == (75, "stopped: saved; the same command goes on from there\n")


@pytest.mark.parametrize("command", [[], ["run"], ["influence"], ["export"], ["tune"]])
def test_help_names_what_a_command_takes(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert main([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage: synpro" in shown and ("RECIPE" in shown or not command)


def test_doctor_lists_every_part_with_its_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "torch", "GPUs", "communication", "megatron-core", "triton", "csrc", "flash-attn", "transformer-engine",
        "attention", "optimizer", "gradient fusion", "bf16 products",
    ):  # fmt: skip
        assert any(line.startswith(part) for line in shown.splitlines()), part
    assert "broken:" not in shown
