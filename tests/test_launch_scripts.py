"""The launch scripts on two nodes, here both on this machine: a lost node or rank is begun again, to the same bits."""

import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from synpro_engine.dist.testing import free_ports
from tests.jobs import kill, made, started, steps_of, wait_for
from tests.scheduler import two_nodes

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "examples" / "launch"
STEPS = 40
COMMAND = (
    *("pretrain", "smoke", f"pretrain.max_steps={STEPS}", "pretrain.checkpoint_every=4", "pretrain.eval_every=20"),
    *("pretrain.async_checkpoints=true", "pretrain.plateau=null", "pretrain.tensorboard=false", "pretrain.in_run=null"),
)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    places = {"RDZV_PORT": str(free_ports(1)[0]), "RANKS_PER_NODE": "1", "HEAD": "127.0.0.1", "NODES": "2"}
    return two_nodes(tmp_path) | places | {"PAUSE_S": "6"}


@pytest.mark.slow
def test_a_job_whose_node_is_killed_is_queued_again_and_ends_with_the_same_bits(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    words = ["sbatch", str(LAUNCH / "slurm.sbatch"), *COMMAND, "--dir"]
    whole = started([*words, "whole"], tmp_path, environment, "log")
    assert whole.wait(timeout=500) == 0, (tmp_path / "log").read_text()[-3000:]
    job = started([*words, "killed"], tmp_path, environment, "log")
    wait_for(lambda: len(steps_of(tmp_path / "killed")) > 9, [job], tmp_path / "log")
    nodes = [psutil.Process(int(pid)) for pid in (tmp_path / "launchers").read_text().split()]
    kill(nodes[1])
    assert job.wait(timeout=500) == 0, (tmp_path / "log").read_text()[-3000:]
    log = (tmp_path / "log").read_text()
    assert re.search(r"going on from step \d+", log), log[-3000:]
    assert steps_of(tmp_path / "killed") == list(range(1, STEPS + 1))
    assert made(tmp_path / "killed") == made(tmp_path / "whole")


@pytest.mark.slow
def test_without_a_scheduler_a_lost_rank_is_begun_again_and_a_signal_stops_all_nodes(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = [str(LAUNCH / "torchrun.sh"), *COMMAND, "--dir", "run"]
    nodes = [started(words, tmp_path, environment, "log") for _ in range(2)]
    wait_for(lambda: len(steps_of(run)) > 5, nodes, log)
    [launcher] = psutil.Process(nodes[1].pid).children()
    launcher.children()[0].kill()  # its rank
    wait_for(lambda: log.read_text().count("begun again (1 of 3)") == 2, nodes, log)
    wait_for(lambda: "going on from step" in log.read_text(), nodes, log)
    nodes[1].send_signal(signal.SIGTERM)
    assert [node.wait(timeout=300) for node in nodes] == [75, 75], log.read_text()[-3000:]
    nodes = [started(words, tmp_path, environment, "log") for _ in range(2)]
    assert [node.wait(timeout=500) for node in nodes] == [0, 0], log.read_text()[-3000:]
    assert steps_of(run) == list(range(1, STEPS + 1))


def test_what_the_user_must_mend_is_not_begun_again(tmp_path: Path, environment: dict[str, str]) -> None:
    for code, again in ((75, True), (137, True), (2, False), (1, False)):
        (tmp_path / "bin" / "srun").write_text(f"#!/bin/bash\nexit {code}\n")
        for count in ("0", "10"):
            (tmp_path / "requeued").unlink(missing_ok=True)
            job = {**environment, "SLURM_RESTART_COUNT": count}
            done = subprocess.run(
                ["bash", LAUNCH / "slurm.sbatch", "run", "my.yaml"], cwd=tmp_path, env=job, check=False
            )
            assert done.returncode == code
            assert (tmp_path / "requeued").exists() == (again and (code == 75 or count == "0"))


def test_a_launcher_has_the_cpus_of_its_node(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "bin" / "synpro").write_text("#!/bin/bash\n")
    page = (ROOT / "docs" / "paper-run.md").read_text()
    for script in ((LAUNCH / "slurm.sbatch").read_text(), *re.findall(r"(?m)^#!/bin/bash\n#SBATCH[^`]*", page)):
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0


def test_a_signal_in_the_pause_before_another_attempt_ends_it(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "bin" / "synpro").write_text("#!/bin/bash\necho begun\nexit 137\n")
    log = tmp_path / "log"
    job = started([str(LAUNCH / "torchrun.sh")], tmp_path, environment | {"PAUSE_S": "1"}, "log")
    wait_for(lambda: log.exists() and "begun again" in log.read_text(), [job], log)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 75
    assert log.read_text().count("begun\n") == 1


def test_the_image_has_the_versions_that_the_constraints_pin() -> None:
    recipe, pins = (LAUNCH / "Dockerfile").read_text(), (ROOT / "constraints.txt").read_text()
    [megatron] = re.findall(r'"(megatron-core==[\d.]+)"', recipe)
    assert f'{megatron}; python_version >= "3.12"' in pins and "FROM python:3.12-" in recipe
