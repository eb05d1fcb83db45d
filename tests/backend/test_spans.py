"""Spans: a clock that loses no time, hears its own thread alone, and is told of Megatron's parts in any layout."""

import threading
import time

import pytest
import torch

from synpro_engine.backend.spans import (
    BACKWARD,
    FORWARD,
    GRAD_REDUCE,
    OPTIMIZER,
    OTHER,
    PARAM_GATHER,
    PIPELINE,
    SpanClock,
    listening,
    span,
)
from synpro_engine.data import Batch
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import OptimizerConfig

CPU = torch.device("cpu")
MODEL = ModelConfig(family="olmo2", layers=2, d_model=32, heads=2, kv_heads=2, ffn=64, vocab_size=128, seq_len=16)


def test_a_span_has_the_time_that_those_within_it_leave_and_no_time_is_lost() -> None:
    begin = time.perf_counter()
    clock = SpanClock(CPU)
    with listening(clock), span("outer"):
        time.sleep(0.02)
        with span("inner"):
            time.sleep(0.05)
        with span("inner"):
            time.sleep(0.03)
    time.sleep(0.01)
    found, all_of_it = clock.seconds(), time.perf_counter() - begin
    assert found["inner"] >= 0.08
    assert 0.02 <= found["outer"] < 0.07  # that of the inner ones is not in it
    assert found[OTHER] >= 0.01
    assert sum(found.values()) == pytest.approx(all_of_it, abs=0.005)


def test_spans_of_another_thread_are_not_this_ones() -> None:
    clock, within = SpanClock(CPU), threading.Event()

    def save() -> None:
        with span("saving"):
            within.wait()

    thread = threading.Thread(target=save)
    with listening(clock):
        with span("step"):
            thread.start()
        within.set()
        thread.join()
    assert clock.seconds().keys() <= {"step", OTHER}


def test_a_span_that_raises_is_closed() -> None:
    clock = SpanClock(CPU)
    with listening(clock):
        with pytest.raises(ValueError, match="x"), span("broken"):
            raise ValueError("x")
        with span("next"):
            time.sleep(0.02)
    assert clock.seconds()["next"] >= 0.02


def _seconds_of_a_step(topology: Topology) -> dict[str, float]:
    engine = Engine(build_model(MODEL, topology), OptimizerConfig())
    ids = torch.randint(MODEL.vocab_size, (4, 2, MODEL.seq_len + 1))
    rows = [Batch(row[:, :-1], row[:, 1:]) for row in ids]
    clock = SpanClock(topology.device)
    with listening(clock):
        engine.step(rows, LanguageModelLoss(), denominator=8 * MODEL.seq_len)
    return clock.seconds()


def _on_a_stage() -> dict[str, float]:
    with launched(ParallelConfig(pp=2)) as topology:
        return _seconds_of_a_step(topology)


def test_megatron_tells_of_every_part_of_a_step() -> None:
    # By the names of its timers, which a release may change: then a part would be missing here.
    with launched(ParallelConfig()) as topology:
        found = _seconds_of_a_step(topology)
    assert found.keys() == {FORWARD, BACKWARD, GRAD_REDUCE, OPTIMIZER, PARAM_GATHER, OTHER}


def test_a_pipelines_stages_tell_of_their_waits() -> None:
    for found in run_ranks(_on_a_stage, 2):
        assert found.keys() >= {FORWARD, BACKWARD, PIPELINE, GRAD_REDUCE, OPTIMIZER}
        assert found[PIPELINE] > 0
