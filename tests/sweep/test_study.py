"""What the storage of a sweep keeps: trials that any process may take up, and nothing that has to be unpickled."""

import pickle

import optuna
import pytest

from synpro_engine.config import UserError
from synpro_engine.sweep.ranges import Choices, Numbers
from synpro_engine.sweep.study import SearchConfig, Study, shown_url, sqlite_url

RANGES = (
    Numbers(key="a", low=1e-4, high=1e-2, log=True),
    Numbers(key="b", low=1, high=9),
    Choices(key="c", values=("x", None, 3, True)),
)


def search(**settings):
    return SearchConfig(**{"prune_after": 0, "max_steps": 100, "seed": 5, **settings})


def opened(tmp_path, ranges=RANGES, **settings):
    return Study(sqlite_url(tmp_path / "a {b} %.db"), "sweep", ranges, search(**settings))


def made(study, number, losses=(3.0, 2.0)):
    """A trial from its beginning to its end; what it tried."""
    assert study.ask(10**6) == number
    settings = study.settings(number)
    for step, loss in enumerate(losses, 1):
        study.report(number, step, loss)
    study.complete(number, losses[-1])
    return settings


def test_another_process_finds_a_trial_with_the_settings_and_evaluations_that_it_had(tmp_path):
    first = opened(tmp_path)
    assert first.ask(2) == 0
    settings = first.settings(0)
    first.report(0, 10, 2.5)
    second = opened(tmp_path)
    assert second.running() == [0] and second.settings(0) == settings
    second.report(0, 10, 9.0)  # made again behind a checkpoint: what was told first stays
    [trial] = second.trials()
    assert (trial.loss, trial.step, trial.state, trial.settings) == (2.5, 10, "running", settings)
    second.complete(0, 2.0)
    assert first.running() == [] and first.trials()[0].loss == 2.0


def test_there_are_never_more_trials_than_asked_for(tmp_path):
    first, second = opened(tmp_path), opened(tmp_path)
    assert [first.ask(3), second.ask(3), first.ask(3), second.ask(3), first.ask(3)] == [0, 1, 2, None, None]
    assert second.ask(4) == 3


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_what_a_trial_tries_does_not_depend_on_which_process_makes_it(tmp_path, sampler):
    (tmp_path / "one").mkdir(), (tmp_path / "many").mkdir()
    study = opened(tmp_path / "one", sampler=sampler)
    alone = [made(study, number) for number in range(14)]
    in_turn = [made(opened(tmp_path / "many", sampler=sampler), number) for number in range(14)]
    assert in_turn == alone
    assert len({settings["a"] for settings in alone}) == 14


def test_a_grid_tries_every_combination_once_whoever_opens_it(tmp_path):
    ranges = RANGES[1:]
    opened(tmp_path, ranges, sampler="grid")
    study = opened(tmp_path, ranges, sampler="grid")
    tried = [tuple(made(study, number).values()) for number in range(36)]
    assert len(set(map(repr, tried))) == 36
    assert [trial.state for trial in study.trials()] == ["complete"] * 36


@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband"])
def test_a_trial_that_is_far_behind_is_ended_early_but_not_before_its_warm_up(tmp_path, pruner):
    study = opened(tmp_path, pruner=pruner, prune_after=3, sampler="random")
    for number in range(9):
        made(study, number, [4.0 - 0.1 * step for step in range(9)])
    assert study.ask(10) == 9
    study.settings(9)
    pruned = [study.report(9, step, 9.0) for step in range(1, 10)]
    assert not any(pruned[:2]) and any(pruned)


def test_ends_are_told_apart_and_a_diverged_trial_is_one_that_the_sampler_learns_from(tmp_path):
    study = opened(tmp_path)
    for number, ending in enumerate(("pruned", "diverged", "failed")):
        study.ask(9)
        study.settings(number)
        study.report(number, 5, float("nan") if ending == "diverged" else 3.0)
        study.end(number, ending, f"for {ending}")
    assert [(trial.state, trial.why) for trial in study.trials()] == [
        (ending, f"for {ending}") for ending in ("pruned", "diverged", "failed")
    ]
    assert [trial.loss for trial in study.trials()] == [3.0, None, 3.0]
    kept = optuna.load_study(study_name="sweep", storage=sqlite_url(tmp_path / "a {b} %.db")).trials
    assert [trial.state.name for trial in kept] == ["PRUNED", "PRUNED", "FAIL"]


def test_a_trial_that_ends_its_workers_is_given_up_and_one_that_was_left_in_order_is_not(tmp_path):
    study = opened(tmp_path)
    study.ask(2)
    assert all(study.settings(0) is not None for _ in range(5))
    study.rest(0)
    assert all(study.settings(0) is not None for _ in range(5))
    study.report(0, 10, 2.0)  # it comes forward
    assert all(study.settings(0) is not None for _ in range(5))
    assert study.settings(0) is None


def test_nothing_that_a_storage_holds_is_unpickled(tmp_path, monkeypatch):
    unpickled = []

    def refuse(*_args, **_keywords):
        unpickled.append(1)  # whoever catches the error does not hide it
        raise AssertionError("something was unpickled")

    for name in ("loads", "load", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    for sampler, trials in (("tpe", 12), ("random", 2), ("grid", 2)):  # TPE draws at random at first
        place = tmp_path / sampler
        place.mkdir()
        for number in range(trials):
            assert made(opened(place, RANGES[1:], sampler=sampler, pruner="hyperband"), number) is not None
    assert not unpickled


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://me:secret@127.0.0.1:1/db", "--storage postgresql://me:***@127.0.0.1:1/db: "),
        ("sqlite:////nowhere/at/all.db", "--storage sqlite:////nowhere/at/all.db: does not answer"),
        ("nothing://host/db", "--storage nothing://host/db: does not answer"),
        ("secret", "--storage: is no URL of a database"),
    ],
)
def test_a_storage_that_does_not_answer_is_named_in_one_line_without_its_password(url, told):
    with pytest.raises(UserError) as fault:
        Study(url, "sweep", RANGES, search())
    assert str(fault.value).startswith(told)
    assert "secret" not in str(fault.value) and "\n" not in str(fault.value)


def test_a_url_is_shown_without_what_may_be_a_password():
    assert shown_url("mysql+pymysql://me:secret@host/db?password=secret") == "mysql+pymysql://me:***@host/db"
