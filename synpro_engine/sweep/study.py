"""The trials of a sweep as Optuna keeps them: which there are, what the next one tries, what came of each.

For rank 0 alone, and the only module that imports Optuna. Workers share nothing but the storage and the directory. A
storage holds columns and JSON, and nothing that it holds is unpickled: a sampler is made anew for each trial, from the
seed and the trial's number, and the one sampler that keeps a pickle in the storage (CMA-ES) is not offered.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from synpro_engine.config import Config, Record, UserError, first_line
from synpro_engine.config.errors import TransientError
from synpro_engine.sweep.ranges import Choices, Range, Value

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna import Trial
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

SamplerName = Literal["tpe", "gp", "random", "grid"]
PrunerName = Literal["median", "halving", "hyperband", "none"]
Ending = Literal["complete", "pruned", "diverged", "failed"]
State = Literal["waiting", "running", "complete", "pruned", "diverged", "failed"]

_MOST_COMBINATIONS = 10_000
_STARTS = 5
"""Starts without an evaluation after which a trial counts as failed: it may be what ends the workers."""
_WHY, _ENDING, _STARTED = "why", "ending", "started"  # names of what is noted beside a trial
_PATIENCE_S = 60
"""Seconds to wait for other workers to leave a SQLite file."""
_CONNECT_S = 30
_DRIVERS = ("psycopg", "psycopg2", "pymysql", "mysqldb")  # whose time-out is called `connect_timeout`


class SearchConfig(Config):
    """How settings are looked for."""

    sampler: SamplerName = "tpe"
    """`tpe` (Bergstra et al., 2011) and `gp` (a Gaussian process) go by earlier trials, `random` does not; `grid` tries
    all combinations of ranges with an end."""
    pruner: PrunerName = "median"
    """What ends a trial early: a loss above the `median` of complete trials at that step, successive `halving` or
    `hyperband` (Li et al., arXiv 1603.06560)."""
    prune_after: int = Field(ge=0)
    """Steps before which none is ended."""
    max_steps: int = Field(gt=0)
    """Of a trial."""
    seed: int = Field(ge=0)


class TrialRecord(Record):
    """One line of `trials.jsonl`."""

    trial: int
    """Its number, from 0; its run is `trials/NUMBER`."""
    state: State
    """`complete`: trained to its end; `pruned`: ended early; `diverged`: its losses left all bounds; `failed`: could
    not be trained; `running`: not over, or its worker was killed; `waiting`: of a grid, not begun."""
    settings: dict[str, Value]
    """What it tries, by dotted key."""
    loss: float | None
    """On the held-out text that the sweep goes by: at the end of a complete trial, else where it was measured last."""
    step: int | None
    """After which that was."""
    seconds: float | None
    """From its first start to its end, with what lay between."""
    why: str | None
    """What ended it early."""

    @property
    def over(self) -> bool:
        """Whether it came to an end, of whatever kind."""
        return self.state not in ("waiting", "running")


def require_optuna(sampler: SamplerName) -> None:
    """UserError where Optuna, or what the sampler takes beside it, is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError('synpro sweep: Optuna is not installed; `pip install "synpro_engine[sweep]"` brings it')
    if sampler == "gp" and importlib.util.find_spec("scipy") is None:
        raise UserError("--sampler gp: takes SciPy, which is not installed (`pip install scipy`)")


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    from sqlalchemy.engine import URL

    # Optuna formats the URL, so that braces in a path must be doubled.
    url = URL.create("sqlite", database=str(path.absolute())).render_as_string()
    return url.replace("{", "{{").replace("}", "}}")


def shown_url(url: str, *, driver: bool = True) -> str:
    """The URL of a storage without its password, or its driver either; UserError where it is none."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url).set(query={})  # which may hold a password too
        parsed = parsed if driver else parsed.set(drivername=parsed.get_backend_name())
        return parsed.render_as_string(hide_password=True)
    except (ArgumentError, ValueError):  # not quoted, for it may hold one all the same
        raise UserError("--storage: is no URL of a database, as postgresql://user@host/name is") from None


def combinations(ranges: Sequence[Range]) -> list[dict[str, Value]]:
    """All settings of a grid, in order; UserError, which names the key, for a range without an end."""
    for one in ranges:
        if one.values is None:
            raise UserError(
                f"--over {one}: `{one.key}`: a grid needs choices, whole numbers or a step, as in 0.1..0.5:0.1"
            )
    columns = [one.values or () for one in ranges]
    if (count := math.prod(map(len, columns))) > _MOST_COMBINATIONS:
        raise UserError(f"--sampler grid: {count:,} combinations are more than {_MOST_COMBINATIONS:,}")
    keys = [one.key for one in ranges]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*columns)]


class Study:
    """One sweep's trials in a storage. Every method raises TransientError where that does not answer."""

    def __init__(self, url: str, name: str, ranges: Sequence[Range], search: SearchConfig) -> None:
        """Open it, or begin it. To be called by one worker at a time."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)  # what it says, the sweep says
        self._ranges, self._search, self._shown = tuple(ranges), search, shown_url(url)
        with self._asked():
            storage = _storage(url, self._shown)
            self._study: OptunaStudy = optuna.create_study(
                storage=storage, study_name=name, load_if_exists=True, direction="minimize", pruner=self._pruner()
            )
            if search.sampler == "grid":
                for settings in combinations(ranges):
                    self._study.enqueue_trial(settings, skip_if_exists=True)

    def trials(self) -> list[TrialRecord]:
        """All there are, by number."""
        with self._asked():
            return [_record(trial) for trial in self._frozen()]

    def running(self) -> list[int]:
        """Trials that were begun and are not over, whoever has them now."""
        return [trial.trial for trial in self.trials() if trial.state == "running"]

    def ask(self, most: int) -> int | None:
        """Begin another trial; None where `most` were. To be called by one worker at a time."""
        from optuna.trial import TrialState

        with self._asked():
            if sum(trial.state != TrialState.WAITING for trial in self._frozen()) >= most:
                return None
            return self._study.ask().number

    def settings(self, number: int) -> dict[str, Value] | None:
        """What the trial tries, drawn by whoever has it first; None where it was started too often for nothing."""
        with self._asked():
            trial = self._trial(number)
            evaluated = len(self._frozen()[number].intermediate_values)
            times, before = trial.user_attrs.get(_STARTED, (0, evaluated))
            times = times + 1 if before == evaluated else 1
            trial.set_user_attr(_STARTED, (times, evaluated))
            if times > _STARTS:
                return None
            return {one.key: _suggest(trial, one) for one in self._ranges}

    def rest(self, number: int) -> None:
        """The trial was left in order, so that its start does not count."""
        with self._asked():
            self._trial(number).set_user_attr(_STARTED, (0, len(self._frozen()[number].intermediate_values)))

    def report(self, number: int, step: int, loss: float) -> bool:
        """Take an evaluation; whether the trial is to be ended early."""
        with self._asked():
            trial = self._trial(number)
            # Evaluations behind the checkpoint that a killed trial goes on from are made again.
            if step not in self._frozen()[number].intermediate_values:
                trial.report(loss, step)
            return trial.should_prune()

    def complete(self, number: int, loss: float) -> None:
        """The trial came to its end."""
        with self._asked():
            self._study.tell(number, loss, skip_if_finished=True)

    def end(self, number: int, ending: Ending, why: str) -> None:
        """The trial ended otherwise. One that diverged counts as pruned for the sampler, which learns from it."""
        from optuna.trial import TrialState

        with self._asked():
            trial = self._trial(number)
            trial.set_user_attr(_WHY, why)
            trial.set_user_attr(_ENDING, ending)
            state = TrialState.FAIL if ending == "failed" else TrialState.PRUNED
            self._study.tell(number, state=state, skip_if_finished=True)

    def _frozen(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _trial(self, number: int) -> Trial:
        """A trial to work with, also one that another process began."""
        import optuna

        self._study.sampler = self._sampler(number)
        return optuna.Trial(self._study, self._frozen()[number]._trial_id)

    def _sampler(self, number: int) -> BaseSampler:
        """For one trial: its draws depend on the seed, its number and what is known then, and not on who makes it."""
        from optuna import samplers
        from optuna.exceptions import ExperimentalWarning

        seed = int(np.random.SeedSequence((self._search.seed, number)).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            if self._search.sampler == "tpe":
                # Trials in hand count as bad ones, so that several workers do not try the same.
                return samplers.TPESampler(seed=seed, constant_liar=True)
            if self._search.sampler == "gp":
                return samplers.GPSampler(seed=seed)
        return samplers.RandomSampler(seed=seed)  # a grid's trials have their settings already

    def _pruner(self) -> BasePruner:
        from optuna import pruners

        search, first = self._search, max(1, self._search.prune_after)
        if search.pruner == "median":
            return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=search.prune_after)
        if search.pruner == "halving":
            return pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=3)
        if search.pruner == "hyperband":
            most = max(first, search.max_steps)
            return pruners.HyperbandPruner(min_resource=first, max_resource=most, reduction_factor=3)
        return pruners.NopPruner()

    @contextmanager
    def _asked(self) -> Iterator[None]:
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as fault:
            # Optuna's own words are of no help: they guess at a value that is too long.
            told = first_line(fault.__cause__ or fault)
            raise TransientError(f"--storage {self._shown}: does not answer ({told})") from fault


def _storage(url: str, shown: str) -> RDBStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import make_url

    # Before a connection is used, whether it still stands: trials may take longer than a server keeps one.
    options: dict[str, Any] = {"pool_pre_ping": True}
    parsed = make_url(url)
    installed = importlib.util.find_spec
    if parsed.drivername == "postgresql" and not installed("psycopg2") and installed("psycopg"):
        parsed = parsed.set(drivername="postgresql+psycopg")  # what our own extra brings
        url = parsed.render_as_string(hide_password=False)
    if parsed.get_backend_name() == "sqlite":
        options = {"connect_args": {"timeout": _PATIENCE_S}}
    elif parsed.drivername.rpartition("+")[2] in (*_DRIVERS, "postgresql", "mysql"):
        options["connect_args"] = {"connect_timeout": _CONNECT_S}
    try:
        return RDBStorage(url, engine_kwargs=options)
    except ImportError as fault:
        postgres = parsed.get_backend_name() == "postgresql"
        hint = ": synpro_engine[postgres] brings one for postgresql://" if postgres else ""
        raise UserError(f"--storage {shown}: its driver is not installed ({fault.__cause__ or fault}){hint}") from fault
    except (RuntimeError, KeyError, ValueError) as fault:  # tables of another version; braces
        raise UserError(f"--storage {shown}: {first_line(fault)}") from fault


def _suggest(trial: Trial, one: Range) -> Value:
    if isinstance(one, Choices):
        return trial.suggest_categorical(one.key, one.values)
    if isinstance(one.low, int) and isinstance(one.high, int):
        return trial.suggest_int(one.key, one.low, one.high, step=int(one.step or 1), log=one.log)
    return trial.suggest_float(one.key, one.low, one.high, step=one.step, log=one.log)


def _record(trial: FrozenTrial) -> TrialRecord:
    from optuna.trial import TrialState

    states: dict[TrialState, State] = {
        TrialState.WAITING: "waiting",
        TrialState.RUNNING: "running",
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
    }
    over, step = trial.state.is_finished(), trial.last_step
    # A worker may have been killed between the note of an end and the end: the trial then went on, and may be complete.
    early = trial.state in (TrialState.PRUNED, TrialState.FAIL)
    last = None if step is None else trial.intermediate_values[step]
    loss = trial.value if trial.state == TrialState.COMPLETE else last
    return TrialRecord(
        trial=trial.number,
        state=trial.user_attrs.get(_ENDING, states[trial.state]) if early else states[trial.state],
        settings=trial.params or trial.system_attrs.get("fixed_params", {}),
        loss=loss if loss is not None and math.isfinite(loss) else None,
        step=step,
        seconds=trial.duration.total_seconds() if over and trial.duration is not None else None,
        why=trial.user_attrs.get(_WHY) if early else None,
    )
