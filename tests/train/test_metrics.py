import math
import resource

import pytest

from synpro_engine.config import UserError
from synpro_engine.model.config import ModelConfig
from synpro_engine.train.metrics import METRICS, MetricsLog, Throughput, flops_per_token, read_metrics
from synpro_kernels.testing import peak_growth


def write(directory, steps, **settings):
    log = MetricsLog(directory, tensorboard=False, **settings)
    for step in steps:
        log.write("train", step, {"loss": 1.0 / step})
    log.close()


def steps_of(directory):
    return [record["step"] for record in read_metrics(directory / METRICS)]


def test_a_resumed_run_doubles_and_loses_no_step(tmp_path):
    write(tmp_path, range(1, 8))
    write(tmp_path, range(5, 10), resume_step=4)
    assert steps_of(tmp_path) == list(range(1, 10))


def test_a_record_that_goes_on_is_written_again_as_it_was_and_never_held_whole(tmp_path):
    path, line = tmp_path / METRICS, '{"kind": "train", "step": %d, "loss": 1.50, "note": "' + "é" * 300 + '"}\n'
    path.write_text("".join(line % step for step in range(20_000)))
    before = path.read_bytes()
    grown = peak_growth(lambda: write(tmp_path, [], resume_step=19_998), "cpu")
    assert path.read_bytes() == before[: before.rindex(b"{")]  # as it was written, to the letter
    assert grown is None or grown < len(before) / 4


def test_a_new_run_begins_a_new_record(tmp_path):
    write(tmp_path, range(1, 4))
    write(tmp_path, range(1, 3))
    assert steps_of(tmp_path) == [1, 2]


def test_a_line_cut_by_a_kill_is_dropped_and_overwritten(tmp_path):
    write(tmp_path, range(1, 4))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"kind": "train", "st')
    assert steps_of(tmp_path) == [1, 2, 3]
    write(tmp_path, [4], resume_step=3)
    assert steps_of(tmp_path) == [1, 2, 3, 4]


def test_a_full_disk_is_told_with_the_file(tmp_path):
    log, before = MetricsLog(tmp_path, tensorboard=False), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match=rf"File too large: '{tmp_path / METRICS}'"):
            log.write("train", 1, {"loss": 1.0})
        with pytest.raises(OSError, match=rf"File too large: '{tmp_path / METRICS}'"):
            log.close()  # it tries once more
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_damage_names_its_line(tmp_path):
    path = tmp_path / METRICS
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2"):
        read_metrics(path)


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write("train", 1, {"loss": math.nan, "grad_norm": math.inf, "lr": 0.5, "skipped": True})
    log.close()
    (record,) = read_metrics(tmp_path / METRICS)
    assert record["loss"] is None and record["grad_norm"] is None and record["lr"] == 0.5 and record["skipped"] is True


def test_tensorboard_gets_the_same_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path)
    log.write("eval", 7, {"reference_loss": 2.5})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (scalar,) = events.Scalars("eval/reference_loss")
    assert (scalar.step, scalar.value) == (7, 2.5)


@pytest.mark.parametrize("resume_step", [None, 2])
def test_tensorboard_shows_each_step_once_behind_a_kill(tmp_path, resume_step):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, begun in ((0, None), (0 if resume_step is None else resume_step + 1, resume_step)):
        log = MetricsLog(tmp_path, resume_step=begun)
        for step in range(first, 5):
            log.write("train", step, {"loss": float(step)})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [scalar.step for scalar in events.Scalars("train/loss")] == [0, 1, 2, 3, 4]
    assert steps_of(tmp_path) == [0, 1, 2, 3, 4]


def test_without_a_directory_nothing_is_written(tmp_path):
    log = MetricsLog(None)
    log.write("train", 1, {"loss": 1.0})
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_flops_count_every_matrix_product_once():
    config = ModelConfig(layers=2, d_model=8, heads=2, kv_heads=1, ffn=16, vocab_size=32, seq_len=4)
    attention = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8  # q, k, v, o
    norms = 2 * 8 + 8 + 4
    weights = 2 * (attention + 3 * 8 * 16 + norms) + 8 + 32 * 8
    scores = 2 * (2 * 2 * 3) * (2 * 4) * 4  # layers x (2 products, 2 FLOPs, 1 forward + 2 backward) x heads x positions
    assert flops_per_token(config, 4) == 6 * weights + scores


def test_mfu_is_given_only_where_the_peak_is_known():
    known, unknown = Throughput(10.0, 1000.0, 2), Throughput(10.0, None, 2)
    for meter in (known, unknown):
        meter.add(100)
    measured = known.measure()
    assert measured["mfu"] == pytest.approx(measured["tokens_per_s"] * 10.0 / 2000.0)
    assert set(unknown.measure()) == {"tokens_per_s"}


def test_paused_time_does_not_count():
    import time

    meter = Throughput(1.0, None, 1)
    meter.add(1000)
    with meter.pause():
        time.sleep(0.2)
    assert meter.measure()["tokens_per_s"] > 1000 / 0.15
