"""Trackers of experiments beside the run's own record: Weights & Biases, MLflow, trackio.

Each is written in a thread of its own, so that a server that is slow or gone holds up no step; one that fails is told
once and left out, for the record of a run is `metrics.jsonl`. Where they write to and as whom is their own affair:
their variables and files decide (`WANDB_MODE=offline`, `MLFLOW_TRACKING_URI`, `TRACKIO_SPACE_ID`), and no recipe holds
a credential.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from synpro_engine.config import UserError, atomic_write_text, first_line, json_text
from synpro_engine.config.errors import without_credentials
from synpro_engine.dist import Topology, on_main, say
from synpro_engine.model.config import ModelConfig
from synpro_engine.train.config import TrackerName, TrainConfig

TRACKERS = "trackers.json"
_PACKAGES: dict[TrackerName, str] = {"wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}
_END_S, _STOP_S = 60.0, 5.0
"""Seconds that trackers have for what they have not sent yet: at the end, and where the job was asked to stop."""
_LOGIN_S = 5
_ROWS, _ORDER = 16, ("in_run", "train", "ranks", "layers", "skipped", "spike", "eval", "plateau", "tasks")
_MOST_PARAMS, _PARAM_CHARACTERS = 100, 500  # what MLflow takes at once, and of one


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """What is tracked, and by which."""

    by: tuple[TrackerName, ...]
    project: str
    name: str
    """Of the run."""
    settings: Mapping[str, Any]
    """Shown beside the curves; plain JSON."""
    tell: Callable[[str], None]
    """Says a line to the user."""


def require_trackers(names: Sequence[TrackerName]) -> None:
    """UserError where one that is asked for is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"`pretrain.loggers`: {name} is not installed; `pip install {_PACKAGES[name]}` brings it")


def tracked(config: TrainConfig, model: ModelConfig, directory: Path, topology: Topology) -> Tracked | None:
    """Who else a run's numbers go to. Collective; UserError, on every rank, where one is not installed."""
    if not config.loggers:
        return None
    on_main(topology, lambda: require_trackers(config.loggers))
    parts = [part.removesuffix(".partial") for part in directory.absolute().parts[-3:]]
    return Tracked(
        by=config.loggers,
        project=config.logger_project,
        name="-".join(parts),
        settings=config.model_dump(mode="json") | {"model": model.model_dump(mode="json")},
        tell=partial(say, topology),
    )


class _Tracker(Protocol):
    """One library. All calls come from one thread."""

    def begin(self, run: Tracked, known: str | None) -> str:
        """Open the run, or go on with the one of the id `known`; its id."""
        ...

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step."""
        ...

    def end(self) -> None:
        """Send what is left."""
        ...


class _Wandb:
    def begin(self, run: Tracked, known: str | None) -> str:
        import wandb

        quiet = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, login_timeout=_LOGIN_S)
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=known or secrets.token_hex(6),
            resume="allow",
            reinit="create_new",  # a process may make several runs, one after the other
            config=dict(run.settings),
            settings=quiet,
        )
        self._run.define_metric("*", step_metric="step")
        return self._run.id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        kind = next(iter(values)).partition("/")[0]
        # Its rows have numbers that must rise, and each is whole once it is written: kinds of one step have their own,
        # in the order in which they come. Given and not counted, so that parts of a run fit together.
        row = step * _ROWS + (_ORDER.index(kind) if kind in _ORDER else _ROWS - 1)
        self._run.log({**values, "step": step}, step=row, commit=True)

    def end(self) -> None:
        self._run.finish()


class _MLflow:
    def begin(self, run: Tracked, known: str | None) -> str:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            self._id = known
            return known
        there = self._client.get_experiment_by_name(run.project)
        experiment = self._client.create_experiment(run.project) if there is None else there.experiment_id
        self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
        params = [Param(key, str(value)[:_PARAM_CHARACTERS]) for key, value in _flat(run.settings).items()]
        for at in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._id, params=params[at : at + _MOST_PARAMS])
        return self._id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def end(self) -> None:
        self._client.set_terminated(self._id)


class _Trackio:
    def begin(self, run: Tracked, known: str | None) -> str:
        import trackio

        # Its runs go by their names, of which there may be many alike.
        name = known or f"{run.name}-{secrets.token_hex(3)}"
        with contextlib.redirect_stdout(sys.stderr):  # what a command prints as its result can be piped
            self._run = trackio.init(
                project=run.project, name=name, resume="allow", config=dict(run.settings), embed=False
            )
        return name

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def end(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


_KINDS: dict[TrackerName, Callable[[], _Tracker]] = {"wandb": _Wandb, "mlflow": _MLflow, "trackio": _Trackio}


class _Behind:
    """A tracker in its thread; whatever it raises ends it, and nothing else."""

    def __init__(self, name: TrackerName, run: Tracked, ids: _Ids, seen: Collection[tuple[str, int]]) -> None:
        known = ids.of(name)
        self._name: TrackerName = name
        self._run, self._tracker = run, _KINDS[name]()
        # A tracker that is new to a run that goes on has seen nothing.
        self._seen = frozenset(seen if known is not None else ())
        self._failed, self._items = False, queue.SimpleQueue[tuple[int, dict[str, float]] | None]()
        self._thread = threading.Thread(target=self._work, args=(ids, known), name=name, daemon=True)
        self._thread.start()

    def _work(self, ids: _Ids, known: str | None) -> None:
        tracker = self._tracker
        try:
            ids.note(self._name, tracker.begin(self._run, known))
            while (item := self._items.get()) is not None:
                tracker.write(*item)
            tracker.end()
        except (Exception, SystemExit) as fault:  # a library's, of any kind: told, and the run goes on without it
            self._failed = True
            why = without_credentials(first_line(fault))
            self._run.tell(f"`pretrain.loggers`: {self._name} failed and is left out from here on ({why})")

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        if not self._failed and (kind, step) not in self._seen:
            self._items.put((step, values))

    def end(self) -> None:
        self._items.put(None)

    def join(self, patience_s: float) -> bool:
        self._thread.join(max(0.0, patience_s))
        if self._thread.is_alive():
            self._run.tell(f"`pretrain.loggers`: {self._name} was not done in time, and is left")
        return not self._thread.is_alive()


class _Ids:
    """Under which id each tracker has the run, so that a run that goes on continues its curves."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._ids: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def of(self, name: TrackerName) -> str | None:
        return self._ids.get(name)

    def note(self, name: TrackerName, identity: str) -> None:
        with self._lock:
            self._ids[name] = identity
            atomic_write_text(self._path, json_text(self._ids) + "\n")


class Trackers:
    """All that a run is tracked by."""

    def __init__(self, run: Tracked, directory: Path, *, resumed: bool, seen: Collection[tuple[str, int]]) -> None:
        """seen: kinds and steps of records that they were given before a kill, and that are made again."""
        if not resumed:
            (directory / TRACKERS).unlink(missing_ok=True)
        ids = _Ids(directory / TRACKERS)
        self._behind = [_Behind(name, run, ids, seen) for name in run.by]

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Hand on the numbers among `values`; texts and truth values are for the record alone."""
        numbers = {
            f"{kind}/{name}": float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }
        for tracker in self._behind if numbers else ():
            tracker.write(kind, step, numbers)

    def close(self, *, stopped: bool) -> bool:
        """Wait for what is not sent yet, a minute at the most or, for a stop, seconds; whether all was sent."""
        # One deadline for all: a stop was given notice of, and behind that the job is killed.
        deadline = time.monotonic() + (_STOP_S if stopped else _END_S)
        for tracker in self._behind:
            tracker.end()
        done = [tracker.join(deadline - time.monotonic()) for tracker in self._behind]
        return all(done)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
