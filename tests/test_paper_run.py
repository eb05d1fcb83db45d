"""docs/paper-run.md can be followed: its commands, in their order, on small files of the published form.

Taken from the page: the commands, the settings and the Slurm script. Changed in them: sizes, addresses, and that the
generator, too small to tell what it is asked, is given the heading of its answer. Stood in for: the hub, vLLM, Slurm.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import zstandard

from synpro_engine.cli.main import main
from synpro_engine.config.yaml_core import dump_yaml, parse_yaml
from synpro_engine.cycle import load_recipe
from synpro_engine.synth import DOCUMENTS, lines_of
from synpro_engine.train.metrics import METRICS, read_metrics
from tests import published_run
from tests.reward.judges.server import Handler, Server, serving
from tests.scheduler import two_nodes

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / "paper-run.md").read_text(), re.DOTALL | re.MULTILINE)
[SETTINGS] = [text for language, text in BLOCKS if language == "yaml"]
SHELL = [text for language, text in BLOCKS if language == "bash"]
[SCRIPT] = [text for text in SHELL if "#SBATCH" in text]
COMMANDS = [
    re.sub(r"\\\n\s*", "", line) for text in SHELL if text != SCRIPT for line in re.findall(r"(?:.*\\\n)*.+", text)
]
"""Lines of the page's shell, each whole; those of a program in quotes stand in `CONVERSION`."""
[CONVERSION] = [text for text in SHELL if text.startswith("python -c")]
RUN = "runs/paper"
DROPPED = {"hf", "vllm"}
KEY = "not-a-secret"


def commands(program: str) -> list[list[str]]:
    """The page's commands of one program, as words."""
    return [shlex.split(line) for line in COMMANDS if line.startswith(f"{program} ")]


SMALL: dict[str, Any] = {
    "base": "page.yaml",
    "corpus": {"split": {"train": 0.8, "validation": 0.2}, "max_train_tokens": 3000, "max_held_out_tokens": 2000},
    "references": {"flan": {"max_tokens": 4000}},
    "model": {"layers": 2, "d_model": 32, "heads": 2, "kv_heads": 2, "ffn": 64, "vocab_size": 832, "seq_len": 128},
    "pretrain": {"max_steps": 6, "global_batch": 4, "micro_batch": 2, "eval_every": 3, "checkpoint_every": 3},
    "probe": {"steps": 2, "global_batch": 4, "micro_batch": 2},
    "prompt": {"prefill": True},
    "reward": {"influence_min_chars": 10},
    "generate": {"max_slices": 8, "max_chars": 1200, "batch_prompts": 4, "sampling": {"max_new_tokens": 80}},
    "continued": {"steps": 8},
}
TUNED = {"steps": 1, "prompts_per_step": 2, "group_size": 2, "micro_batch": 2, "sampling": {"max_new_tokens": 80}}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("paper")
    published_run.write(directory)
    (directory / "page.yaml").write_text(SETTINGS)
    return directory


def small(directory: Path, endpoint: str) -> None:
    """Write `paper.yaml`: the page's settings at a small size, with judges at another address."""
    judges = parse_yaml(SETTINGS)["reward"]["judges"]
    moved = {name: {"endpoint": endpoint} for name, judge in judges.items() if "endpoint" in judge}
    settings = SMALL | {"tune": {"rephrase": TUNED, "reformat": TUNED}}
    settings["reward"] = SMALL["reward"] | {"judges": moved}
    (directory / "paper.yaml").write_text(dump_yaml(settings))


def answer(handler: Handler, body: dict[str, Any]) -> None:
    """A judge as vLLM would serve it, which knows no more than the form of an answer."""
    assert handler.headers["authorization"] == f"Bearer {KEY}"
    if not handler.path.endswith("/chat/completions"):
        handler.send(404, {"detail": "Not Found"})
        return
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    asked = body["messages"][0]["content"]
    score = str(1 + len(asked) % 5)
    handler.write(score if "Score:" in asked else "yes" if "yes or no" in asked else "A")


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving() as server:
        server.answer = answer
        server.listing = (200, {"data": [{"id": parse_yaml(SETTINGS)["reward"]["judges"]["quality"]["model"]}]})
        yield server


def test_what_is_downloaded_has_the_form_and_the_place_that_the_test_gives_it(files: Path) -> None:
    for words in commands("hf"):
        folder = files / words[words.index("--local-dir") + 1]
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        assert len(names) > 3
        if "--include" in words:
            data = [name for name in names if name.endswith((".zst", ".parquet"))]
            assert data and all(fnmatch(name, words[words.index("--include") + 1]) for name in data)
    recipe = load_recipe(str(files / "page.yaml"))
    places = (recipe.corpus.source, recipe.references["flan"].source, recipe.tokenizer.path, recipe.generator.source)
    assert all((files / str(place)).is_dir() for place in places)


def test_the_judges_are_those_that_are_served() -> None:
    [served] = commands("vllm")
    for judge in load_settings().reward.judges.remote.values():
        assert judge.model == served[2] and judge.endpoint.endswith(f":{served[served.index('--port') + 1]}/v1")
        assert judge.api_key_env is not None and served[served.index("--api-key") + 1] == f"${judge.api_key_env}"


def load_settings() -> Any:
    settings = parse_yaml(SETTINGS)
    return load_recipe(settings["base"], [f"reward.judges={json.dumps(settings['reward']['judges'])}"])


def test_the_costs_are_those_of_the_plan(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Of the page's own settings; the generator's shape is OLMo-2's, of which only the numbers are written here."""
    monkeypatch.chdir(files)
    shape = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 16,
             "num_key_value_heads": 16, "vocab_size": 100352}  # fmt: skip
    generator = files / "1b"
    generator.mkdir()
    config = json.loads((files / "data" / "OLMo-2-0425-1B-Instruct" / "config.json").read_text())
    (generator / "config.json").write_text(json.dumps(config | shape))
    [plan] = [words for words in commands("synpro") if words[1] == "plan"]
    # A corpus that is not there counts as its cap.
    words = [*plan[1:], f"generator.source={generator}", "corpus.source=none"]
    assert main([word.replace("paper.yaml", "page.yaml") for word in words]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    page = (ROOT / "docs" / "paper-run.md").read_text().partition("## What it costs")[2]
    told = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")][1:]
    stages = ["pretrain", "round-1/probe", "round-1/tune-rephrase", "round-1/generate-reformat", "repeat", "evaluate"]
    for cells, stage in zip(told, [*stages, "in"], strict=True):
        assert cells[1:] == [rows[stage][at] for at in (2, 4, 5)], stage
    disk, time = float(rows["in"][6]), rows["in"][7]
    assert f"{disk:.0f} GB are written" in page and f"that is {time} days" in page


def test_the_published_files_are_read_as_they_are(
    files: Path, judges: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The quick half of the walk: dry run, tokenising and what it says."""
    monkeypatch.chdir(files)
    small(files, judges.endpoint)
    without = ["reward.judges.similarity=null", "--dir", "runs/quick"]
    assert main(["run", "paper.yaml", "--dry-run", *without]) == 0
    assert "no such file" not in capsys.readouterr().out
    assert main(["tokenize", "paper.yaml", *without]) == 0
    with zstandard.open(files / "runs/quick/tokenize/documents/train.jsonl.zst", "rt") as lines:
        assert all(json.loads(line)["id"].startswith("<urn:uuid:") for line in lines)


@pytest.fixture
def environment(files: Path, judges: Server) -> dict[str, str]:
    """Of a login node that sees the page's programs, in the directory where the commands are started."""
    small(files, judges.endpoint)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = SCRIPT.replace("--nproc-per-node 8", "--nproc-per-node 1").replace("29500", str(port))
    assert script.count(str(port)) == 1 and "--nproc-per-node 1 " in script
    (files / "paper.sh").write_text(script)
    assert "--nodes=2 --ntasks-per-node=1" in SCRIPT
    return two_nodes(files) | {"SBATCH_OUTPUT": "paper.log", "HF_HUB_OFFLINE": "1"}


def finish(command: str, files: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=files, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def stop_when_training(process: "subprocess.Popen[bytes]", files: Path) -> None:
    """Give notice to both launchers, as Slurm does before the time limit, once there are steps."""
    metrics, end = files / RUN / "pretrain.partial" / METRICS, time.monotonic() + 200
    while not (metrics.exists() and '"train"' in metrics.read_text()):
        log = files / "paper.log"
        assert process.poll() is None and time.monotonic() < end, log.exists() and log.read_text()[-3000:]
        time.sleep(0.05)
    for pid in map(int, (files / "launchers").read_text().split()):
        os.kill(pid, signal.SIGUSR1)


@pytest.mark.slow
def test_the_walk_ends_with_a_report(files: Path, environment: dict[str, str], judges: Server) -> None:
    published_run.teach(files)
    finish(CONVERSION, files, environment)
    done: list[str] = []
    for words in commands("synpro"):
        if words[1] == "generate":  # the job is started before it is watched
            process = subprocess.Popen(["sbatch", "paper.sh"], cwd=files, env=environment)
            stop_when_training(process, files)
            assert process.wait(timeout=500) == 0, (files / "paper.log").read_text()[-4000:]
        told = finish(shlex.join(words).replace("--ranks 16", "--ranks 2").replace("--texts 40", "--texts 3"), files,
                      environment)  # fmt: skip
        done.append(words[1])
        if words[1] == "judge-check":
            assert "| planted fault | pairs | quality (Qwen3-4B) | similarity (deberta-large-mnli) |" in told
    assert done == ["plan", "judge-check", "tokenize", "generate", "report", "export"]
    assert commands("sbatch") == [["sbatch", "paper.sh"]]
    log, run = (files / "paper.log").read_text(), files / RUN
    assert "stopped: " in log and "the same command goes on" in log
    assert "Traceback" not in log and "c10d" not in log, "two launchers end together, without a word of torch's"
    steps = [record["step"] for record in read_metrics(run / "pretrain" / METRICS) if record["kind"] == "train"]
    assert steps == list(range(1, 7)), "no step twice"
    page = (run / "report.html").read_text()
    assert "not run yet" not in page and "organic + synthetic" in page
    for number in (1, 2):
        for operation in ("rephrase", "reformat"):
            corpus = run / f"round-{number}/generate-{operation}/corpus"
            records = [json.loads(line) for _, line in lines_of(corpus, DOCUMENTS)]
            assert records and all(record["provenance"]["source"].startswith("<urn:uuid:") for record in records)
            assert all(1 - 5 <= record["rewards"]["quality"] <= 4 for record in records)
    asked = [body["messages"][0]["content"] for path, body, _, _ in judges.calls if path.endswith("/chat/completions")]
    assert any("Unfaithful_Topic" in message for message in asked)
    assert (files / "hf/paper/model.safetensors").exists()
    assert KEY not in log + page + (run / "config.yaml").read_text()
