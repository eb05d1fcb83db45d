"""The cycle with judges behind a real server of OpenAI's protocol, which serves the embedded SmolLM2 on a CPU."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

from docs.site.schemas import faults_in
from synpro_engine.config import UserError, load_config
from synpro_engine.data import load_tokenizer
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.model.hf import export_hf
from synpro_engine.model.pretrained import import_model
from synpro_engine.remote import Service
from synpro_engine.sampler import Sampler, SamplingConfig
from synpro_engine.synth import REPHRASE, PromptConfig, Prompter, ServedGenerator, ServerConfig
from synpro_engine.synth.served import check_weights, expected_answers, wait_for_server
from synpro_engine.train.metrics import read_metrics

ROOT = Path(__file__).parents[2]
SERVER = ROOT / ".venv-serve" / "bin" / "transformers"
"""An environment of its own, as the recipe has it."""
needs_server = pytest.mark.skipif(not SERVER.exists(), reason="no .venv-serve here: make setup-serve")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _synpro(*arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "synpro_engine", *map(str, arguments)],
        env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == code, done.stderr[-3000:]
    return done.stderr


@contextmanager
def _serving(model: Path, log: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(SERVER), "serve", str(model), "--device", "cpu", "--port", str(port)]
    # Without the path of the engine's own packages, which pytest may have put there.
    own = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    with log.open("w") as file:
        process = subprocess.Popen(command, env=own, stdout=file, stderr=file)
    try:
        end = time.monotonic() + 180
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@needs_server
def test_a_cycle_runs_with_judges_of_a_real_server_and_reads_on_without_it(tmp_path: Path) -> None:
    run, model = tmp_path / "run", tmp_path / "smollm2"
    _synpro("import", "endpoint-smoke", "--dir", run)
    _synpro("export", "endpoint-smoke", "--dir", run, "--stage", "import", "--output", model)
    names = ("quality", "structure", "faithfulness", "clear")

    def judged(endpoint: str, model: Path) -> list[str]:
        keys = {"endpoint": endpoint, "model": model}
        return [f"reward.judges.{name}.{key}={value}" for name in names for key, value in keys.items()]

    told = _synpro("run", "endpoint-smoke", *judged("http://127.0.0.1:9/v1", model), "--dir", run, code=2)
    assert "`reward.judges.quality.endpoint`: http://127.0.0.1:9/v1 does not answer" in told
    assert not (run / "pretrain").exists()
    with _serving(model, tmp_path / "server.log") as endpoint:
        told = _synpro("run", "endpoint-smoke", *judged(endpoint, Path("another")), "--dir", run, code=2)
        assert "another" in told and "reward.judges.quality" in told
        priced = [f"reward.judges.{name}.price=2.0" for name in names]
        told = _synpro("run", "endpoint-smoke", *judged(endpoint, model), *priced, "--dir", run)
    assert f"{endpoint} is asked by systemone" in told
    by_probability = {"rephrase": "structure", "reformat": "faithfulness"}
    for operation in by_probability:
        steps = [r for r in read_metrics(run / f"round-1/tune-{operation}/metrics.jsonl") if r["kind"] == "tune"]
        assert sum(record["judge/quality/calls"] for record in steps) > 0
        assert all(record["judge/quality/faults"] == 0 for record in steps)
        assert re.search(rf"generated {operation}: judge of quality: \d+ calls.*, cost \d", told), told
        assert all(steps[0][f"judge/{judge}/input_tokens"] > 0 for judge in ("quality", by_probability[operation]))
        with zstandard.open(run / f"round-1/generate-{operation}/corpus/docs-000000.jsonl.zst", "rt") as file:
            rewards = [json.loads(line)["rewards"] for line in file]
        assert rewards and all(0.0 < one[by_probability[operation]] < 1.0 for one in rewards)
        assert all(0.0 < one["clear"] < 1.0 for one in rewards), "asked though nothing weighs it"
        written = [one["quality"] for one in rewards if "quality" in one]
        assert written and all(-4.0 <= value <= 4.0 for value in written), "even so small a model writes some answers"
        assert all(record["dropped_groups"] < 2 for record in steps)
    assert {path.name for path in (run / "judges").iterdir()} == set(names)
    for name in names:
        [about] = {path.read_text().partition("\n")[0] for path in (run / "judges" / name).glob("*.jsonl")}
        asked = json.loads(about)["about"]
        assert asked.startswith(f"{model} by {'chat' if name == 'quality' else 'systemone'}, question ")
    assert faults_in(run) == []
    _synpro("run", "endpoint-smoke", *judged("http://127.0.0.1:9/v1", model), "--dir", run)  # all is there


@pytest.mark.slow
@needs_server
def test_a_real_server_that_takes_text_alone_generates_with_the_weights_that_were_exported(tmp_path: Path) -> None:
    folder, settings = tmp_path / "smollm2", SamplingConfig(max_new_tokens=24)
    with launched(ParallelConfig()) as topology:
        model, files = import_model("embedded:smollm2-135m", topology, tokenizer_dir=tmp_path / "files", seq_len=1024)
        tokenizer = load_tokenizer(files)
        export_hf(model, folder, tokenizer)
        prompter = Prompter(REPHRASE, tokenizer, PromptConfig())
        expected = expected_answers(Sampler(model), prompter, tokenizer.vocab_size)
        with _serving(folder, tmp_path / "server.log") as endpoint:
            # It stops by itself at the model's own ends.
            given = {
                "endpoint": endpoint,
                "api": "text",
                "concurrency": 2,
                "request": {"stop": None},
                "outage": "give_up",
            }
            config = load_config(ServerConfig, given)
            service = Service("generate.server", config)
            server = ServedGenerator(config, str(folder), tokenizer, service, seq_len=1024, share=lambda work: work())
            wait_for_server(server, least_context=1024, tell=print)
            agreement = check_weights(server, expected, prompter.stop_ids, tokenizer.vocab_size)
            assert agreement.equal > 0.9 and agreement.difference is None
            prompts = [prompter.ask(text) for text in ("The tide is high at noon.", "Bees like apple trees.")]
            made = server.generate(
                prompts, group_size=2, sampling=settings, stop_ids=prompter.stop_ids, seeds=[1, 2],
                vocab_limit=tokenizer.vocab_size,
            )  # fmt: skip
            assert all(0 < len(one.token_ids) <= 25 for group in made for one in group)
            other = [dataclasses.replace(one, prompt=one.prompt[:20]) for one in expected]
            with pytest.raises(UserError, match="other weights"):
                check_weights(server, other, prompter.stop_ids, tokenizer.vocab_size)
