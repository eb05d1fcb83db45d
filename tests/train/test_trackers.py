"""Trackers get each number once, over kills too, and nothing that becomes of them stops or slows a run.

With the real libraries, in their modes without a server, where they are installed.
"""

import importlib
import json
import multiprocessing
import os
import signal
import sqlite3
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from synpro_engine.config import UserError
from synpro_engine.config.errors import Stopped, without_credentials
from synpro_engine.cycle import Cycle, load_recipe
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.train import trackers
from synpro_engine.train.metrics import METRICS, MetricsLog, read_metrics
from synpro_engine.train.trackers import TRACKERS, Tracked

SETTINGS = {"optimizer": {"lr": 0.5, "name": "adamw"}, "max_steps": 9}


def tracked(name, told):
    return Tracked(by=(name,), project="mine", name="a-run", settings=SETTINGS, tell=told.append)


def written(name, directory, steps, told, *, resume_step=None, evaluated=()):
    log = MetricsLog(directory, tensorboard=False, resume_step=resume_step, tracked=tracked(name, told))
    for step in steps:
        log.write("train", step, {"loss": 1.0 / step, "skipped": False, "tokens": 8 * step, "norm": float("nan")})
        if step in evaluated:
            log.write("eval", step, {"reference_loss": 2.0 / step})
    return log


def offline(name, place, monkeypatch):
    """Have a tracker write below `place` alone."""
    pytest.importorskip(name)
    place.mkdir()
    monkeypatch.chdir(place)
    for variable in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
    monkeypatch.setenv("TRACKIO_DIR", str(place / "trackio"))


def of_mlflow(place, identity):
    from mlflow import MlflowClient

    client = MlflowClient()
    run = client.get_run(identity)
    assert run.data.params["optimizer.lr"] == "0.5" and run.info.run_name == "a-run"
    return {
        (name, point.step): point.value
        for name in run.data.metrics
        for point in once(client.get_metric_history(identity, name), lambda point: point.step)
    }


def once(points, key):
    keys = [key(point) for point in points]
    assert len(set(keys)) == len(keys), f"doubled: {keys}"
    return points


def of_trackio(place, identity):
    [path] = (place / "trackio").glob("*.db")
    with sqlite3.connect(path) as base:
        rows = base.execute("select step, metrics from metrics where run_name = ?", (identity,)).fetchall()
    points = [(name, step, value) for step, text in rows for name, value in json.loads(text).items()]
    return {(name, step): value for name, step, value in once(points, lambda point: point[:2])}


def of_wandb(place, identity):
    points = []
    for path in sorted(place.glob("wandb/offline-run-*/run-*.wandb")):
        assert path.name == f"run-{identity}.wandb"
        points += [(name, row["step"], row[name]) for row in history(path) for name in row if "/" in name]
    return {(name, step): value for name, step, value in once(points, lambda point: point[:2])}


def history(path):
    """Rows of a file of wandb's: records of protobuf in LevelDB's framing, behind a head of 7 bytes."""
    # By its name: what protobuf makes is not there for a type checker to see.
    proto: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts = (b"" if kind in (1, 2) else parts) + data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            record = proto.Record.FromString(parts)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
                yield row


READERS = {"wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio}


def in_a_process(work, *arguments):
    """The libraries read their variables once a process; its exit code."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def part(name, directory, first, last, evaluated, resume_step=None, killed_after_s=None):
    """One life of a run, which tells nothing."""
    told = []
    log = written(name, directory, range(first, last + 1), told, resume_step=resume_step, evaluated=evaluated)
    if killed_after_s is not None:
        time.sleep(killed_after_s)
        os.kill(os.getpid(), signal.SIGKILL)
    log.close()
    assert told == []


@pytest.mark.parametrize("name", READERS)
def test_a_run_that_goes_on_continues_its_curves_and_doubles_no_step(name, tmp_path, monkeypatch):
    place, run = tmp_path / "place", tmp_path / "run"
    offline(name, place, monkeypatch)
    assert in_a_process(part, name, run, 1, 7, (4,)) == 0
    identity = json.loads((run / TRACKERS).read_text())[name]
    # Steps 5 to 7 are made again behind the checkpoint of step 4.
    assert in_a_process(part, name, run, 5, 10, (8,), 4) == 0
    assert json.loads((run / TRACKERS).read_text()) == {name: identity}
    found = READERS[name](place, identity)
    assert {step for metric, step in found if metric == "train/loss"} == set(range(1, 11))
    assert {step for metric, step in found if metric == "eval/reference_loss"} == {4, 8}
    assert {metric for metric, _ in found} == {"train/loss", "train/tokens", "eval/reference_loss"}
    assert all(found["train/loss", step] == pytest.approx(1 / step) for step in range(1, 11))
    assert [record["step"] for record in read_metrics(run / METRICS) if record["kind"] == "train"] == list(range(1, 11))


@pytest.mark.parametrize("name", READERS)
def test_a_killed_run_goes_on_under_the_same_id(name, tmp_path, monkeypatch):
    place, run = tmp_path / "place", tmp_path / "run"
    offline(name, place, monkeypatch)
    assert in_a_process(part, name, run, 1, 7, (), None, 15.0) == -signal.SIGKILL
    identity = json.loads((run / TRACKERS).read_text())[name]
    assert in_a_process(part, name, run, 5, 10, (), 4) == 0
    assert json.loads((run / TRACKERS).read_text()) == {name: identity}
    steps = {step for metric, step in READERS[name](place, identity) if metric == "train/loss"}
    # wandb's own process may die with its file unwritten; that of the others is written at once.
    assert steps == set(range(1, 11)) or (name == "wandb" and {8, 9, 10} <= steps <= set(range(1, 11)))


class Broken:
    def __init__(self, at):
        self.at = at

    def begin(self, run, known):
        self._fail("begin")
        return "x"

    def write(self, step, values):
        self._fail("write")

    def end(self):
        self._fail("end")

    def _fail(self, where):
        if where == self.at:
            raise SystemExit(1) if where == "end" else ConnectionError("no server at postgresql://me:secret@host/db")


@pytest.mark.parametrize("where", ["begin", "write", "end"])
def test_a_tracker_that_fails_is_told_once_and_the_record_goes_on(where, tmp_path, monkeypatch):
    told = []
    monkeypatch.setitem(trackers._KINDS, "wandb", lambda: Broken(where))
    written("wandb", tmp_path, range(1, 6), told).close()
    [line] = told
    assert line.startswith("`pretrain.loggers`: wandb failed and is left out from here on (")
    assert "secret" not in line
    assert [record["step"] for record in read_metrics(tmp_path / METRICS)] == list(range(1, 6))


def test_a_tracker_that_hangs_holds_up_no_step_and_is_left_at_the_end(tmp_path, monkeypatch):
    class Hanging(Broken):
        def write(self, step, values):
            time.sleep(600)

    told, begun = [], time.monotonic()
    monkeypatch.setattr(trackers, "_END_S", 0.5)
    monkeypatch.setitem(trackers._KINDS, "wandb", lambda: Hanging("never"))
    assert not written("wandb", tmp_path, range(1, 50), told).close()
    assert time.monotonic() - begun < 30
    assert told == ["`pretrain.loggers`: wandb was not done in time, and is left"]


@pytest.mark.parametrize("ends", ["with the run", "by a stop"])
def test_trackers_that_hang_are_waited_for_together_and_briefly_where_the_job_was_asked_to_stop(
    ends, tmp_path, monkeypatch
):
    class Hanging(Broken):
        def end(self):
            time.sleep(600)

    told, stop = [], Stopped("asked to")
    for name in READERS:
        monkeypatch.setitem(trackers._KINDS, name, lambda: Hanging("never"))
    monkeypatch.setattr(trackers, "_END_S" if ends == "with the run" else "_STOP_S", 4.0)
    run = Tracked(by=tuple(READERS), project="mine", name="a-run", settings=SETTINGS, tell=told.append)
    begun = time.monotonic()
    with suppress(Stopped), MetricsLog(tmp_path, tensorboard=False, tracked=run):
        if ends == "by a stop":
            raise stop
    assert 4 < time.monotonic() - begun < 7
    assert len(told) == 3 and stop.at_once == (ends == "by a stop")


def test_what_is_not_installed_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    recipe = load_recipe("smoke", ["pretrain.loggers=[mlflow]"])
    with launched(ParallelConfig()) as topology:
        with pytest.raises(UserError, match="mlflow is not installed; `pip install mlflow-skinny`"):
            Cycle(recipe, tmp_path / "run", topology).run("pretrain")
    assert not (tmp_path / "run").exists()


def test_credentials_are_taken_from_what_is_told(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    told = without_credentials("0123456789abcdef at https://me:pass@host:80/x and postgresql+psycopg://u:p@h/d")
    assert told == "*** at https://me:***@host:80/x and postgresql+psycopg://u:***@h/d"


def test_the_rows_of_a_step_rise_in_the_order_in_which_a_run_writes_them():
    rows, tracker = [], trackers._Wandb()
    tracker._run = SimpleNamespace(log=lambda values, step, commit: rows.append(step))
    for kind in ("in_run", "train", "ranks", "layers", "eval", "plateau", "tasks"):  # a row that does not rise is lost
        tracker.write(100, {f"{kind}/value": 1.0})
    tracker.write(101, {"in_run/value": 1.0})
    assert rows == sorted(set(rows))
