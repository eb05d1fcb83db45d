"""The cycle with judges behind a real server of OpenAI's protocol, which serves the embedded SmolLM2 on a CPU."""

import json
import os
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
from synpro_engine.train.metrics import read_metrics

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
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--device", "cpu"]
    with log.open("w") as file:
        process = subprocess.Popen([*command, "--port", str(port)], env=ENVIRONMENT, stdout=file, stderr=file)
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
def test_a_cycle_runs_with_judges_of_a_real_server_and_reads_on_without_it(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="transformers serve needs its extra `serving`, which the extra `test` brings")
    run, model = tmp_path / "run", tmp_path / "smollm2"
    _synpro("import", "endpoint-smoke", "--dir", run)
    _synpro("export", "endpoint-smoke", "--dir", run, "--stage", "import", "--output", model)
    names = ("quality", "structure", "faithfulness")

    def judged(endpoint: str, model: Path) -> list[str]:
        keys = {"endpoint": endpoint, "model": model}
        return [f"reward.judges.{name}.{key}={value}" for name in names for key, value in keys.items()]

    told = _synpro("run", "endpoint-smoke", *judged("http://127.0.0.1:9/v1", model), "--dir", run, code=2)
    assert "`reward.judges.quality.endpoint`: http://127.0.0.1:9/v1 does not answer" in told
    assert not (run / "pretrain").exists()
    with _serving(model, tmp_path / "server.log") as endpoint:
        told = _synpro("run", "endpoint-smoke", *judged(endpoint, Path("another")), "--dir", run, code=2)
        assert "another" in told and "reward.judges.quality" in told
        told = _synpro("run", "endpoint-smoke", *judged(endpoint, model), "--dir", run)
    for operation in ("rephrase", "reformat"):
        steps = [r for r in read_metrics(run / f"round-1/tune-{operation}/metrics.jsonl") if r["kind"] == "grpo"]
        assert sum(record["judge/quality/calls"] for record in steps) > 0
        assert all(record["judge/quality/faults"] == 0 for record in steps)
        assert f"generated {operation}: judge of quality: " in told
        with zstandard.open(run / f"round-1/generate-{operation}/corpus/docs-000000.jsonl.zst", "rt") as file:
            rewards = [json.loads(line)["rewards"] for line in file]
        by_probability = "structure" if operation == "rephrase" else "faithfulness"
        assert rewards and all(0.0 < one[by_probability] < 1.0 for one in rewards)
        assert all(-4.0 <= one["quality"] <= 4.0 for one in rewards if "quality" in one)
    assert {path.name for path in (run / "judges").iterdir()} == set(names)
    assert faults_in(run) == []
    _synpro("run", "endpoint-smoke", *judged("http://127.0.0.1:9/v1", model), "--dir", run)  # all is there
