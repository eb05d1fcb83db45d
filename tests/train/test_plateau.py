import math

from synpro_engine.train.config import PlateauConfig
from synpro_engine.train.plateau import PlateauDetector

CONFIG = PlateauConfig(window=2, min_improvement=0.01, patience=2)


def run(losses, config=CONFIG, tokens_per_step=0):
    """Decisions for losses measured every 10 steps, up to the first stop."""
    detector, decisions = PlateauDetector(config), []
    for index, loss in enumerate(losses, start=1):
        decisions.append(detector.update(10 * index, loss, tokens_per_step * index))
        if decisions[-1].stop:
            break
    return decisions


def test_a_falling_loss_never_stops():
    assert not any(decision.stop for decision in run([4.0 * 0.97**n for n in range(60)]))


def test_a_flat_loss_stops_after_the_windows_and_the_patience():
    decisions = run([3.0] * 20)
    assert len(decisions) == 2 * CONFIG.window + CONFIG.patience - 1
    assert (
        decisions[-1].kind == "plateau"
        and "plateau at step 50" in decisions[-1].reason
        and "2 times" in decisions[-1].reason
    )


def test_a_curve_that_flattens_stops_after_the_bend():
    losses = [4.0 * 0.9**n for n in range(10)] + [4.0 * 0.9**9] * 20
    decisions = run(losses)
    assert decisions[-1].stop and 10 + CONFIG.patience < len(decisions) <= 10 + 2 * CONFIG.window + CONFIG.patience


def test_noise_on_a_falling_loss_does_not_stop_it():
    noisy = [4.0 * 0.97**n * (1 + 0.01 * (-1) ** n) for n in range(60)]
    assert not any(decision.stop for decision in run(noisy))


def test_one_miss_is_forgiven_when_progress_returns():
    losses = [4.0, 4.0, 4.0, 4.0, 3.0, 3.0, 2.0, 2.0, 1.5]
    decisions = run(losses)
    assert "miss 1 of 2" in decisions[3].reason
    assert not any(decision.stop for decision in decisions)


def test_a_rising_or_diverging_loss_counts_as_no_progress():
    assert run([3.0 + 0.1 * n for n in range(20)])[-1].stop
    assert run([3.0, 2.0, math.nan, math.nan, math.nan, math.nan])[-1].stop


def test_the_budget_ends_a_run_that_still_improves():
    falling = [4.0 * 0.9**n for n in range(50)]
    steps = run(falling, PlateauConfig(window=2, max_steps=70))
    assert len(steps) == 7 and steps[-1].stop and steps[-1].kind == "budget" and "budget: 70 steps" in steps[-1].reason
    tokens = run(falling, PlateauConfig(window=2, max_tokens=500), tokens_per_step=100)
    assert len(tokens) == 5 and tokens[-1].kind == "budget" and "500 tokens" in tokens[-1].reason


def test_an_interrupted_detector_goes_on_deciding_the_same():
    losses = [4.0 * 0.9**n for n in range(6)] + [2.0] * 10
    whole = run(losses)
    for cut in range(1, len(whole)):
        first = PlateauDetector(CONFIG)
        for index, loss in enumerate(losses[:cut], start=1):
            first.update(10 * index, loss)
        second = PlateauDetector(CONFIG)
        second.load_state_dict(first.state_dict())
        rest = [second.update(10 * (cut + n + 1), loss) for n, loss in enumerate(losses[cut : len(whole)])]
        assert rest == whole[cut:]
