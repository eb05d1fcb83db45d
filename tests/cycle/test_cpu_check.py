"""The paper's 400M shapes on a machine without a GPU: they start, train, save and go on, within 24 GB."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synpro_engine.train.checkpoint_directory import CHECKPOINTS, complete_checkpoints
from synpro_engine.train.metrics import METRICS, read_metrics

LIMIT = 24 * 2**30


def _start(directory: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "synpro_engine", "pretrain", "400m-cpu-check", "--dir", str(directory)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def _peak(process: subprocess.Popen[bytes]) -> int:
    """Bytes of resident memory at its height so far; 0 for a process that has just ended."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    height = status.partition("VmHWM:")[2].split()
    return int(height[0]) * 1024 if height else 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_shapes_of_400m_train_save_and_go_on_after_a_kill(tmp_path: Path) -> None:
    partial, peak = tmp_path / "run" / "pretrain.partial", 0
    first = _start(tmp_path / "run")
    while not complete_checkpoints(partial / CHECKPOINTS):
        assert first.poll() is None, "ended before its first checkpoint"
        peak = max(peak, _peak(first))
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = _start(tmp_path / "run")
    while second.poll() is None:
        peak = max(peak, _peak(second))
        time.sleep(0.2)
    assert second.returncode == 0
    records = [r for r in read_metrics(tmp_path / "run" / "pretrain" / METRICS) if r["kind"] == "train"]
    assert [record["step"] for record in records] == [1, 2]
    assert records[0]["time"] < records[1]["time"] and records[1]["loss"] < 13.0
    assert peak < LIMIT, f"{peak / 2**30:.1f} GiB"
