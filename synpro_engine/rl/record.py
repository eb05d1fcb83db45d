"""What a step of tuning leaves for the report: numbers over the whole job, and a few completions to read.

Functions are collective over the data-parallel axis where they say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from synpro_engine.dist import Axis, gather_objects
from synpro_engine.rl.policy import RATIO_BIN
from synpro_engine.rl.types import Rollout
from synpro_engine.train.engine import StepResult
from synpro_engine.train.metrics import Value
from synpro_kernels import RATIO_EDGES, ratio_quantile

RATIO_QUANTILES = {"ratio_p01": 0.01, "ratio_p50": 0.5, "ratio_p99": 0.99}


def rollout_values(rollouts: Sequence[Rollout], axis: Axis) -> dict[str, float]:
    """Means over the completions of the step whose groups were not dropped, on every rank. Collective over `axis`.

    reward, reward_std (within groups), reward/<part>, accepted (right format), finished (ended by themselves), looped
    (ended for repeating themselves), length (tokens), tokens (their sum), silent_groups (share of groups whose
    advantages are all 0). Without any, they are NaN. dropped_groups is a number of groups.
    """
    groups: dict[int, list[Rollout]] = {}
    for at, rollout in enumerate(rollouts):
        # By place, not by slice: in a small corpus one slice may come twice in a step.
        groups.setdefault(at - rollout.member, []).append(rollout)  # a group's members follow each other
    mine = [([rollout_row(one) for one in group], _group_row(group), group[0].dropped) for group in groups.values()]
    gathered = [group for part in gather_objects(axis, mine) for group in part]
    learnt = [(rows, group_row) for rows, group_row, dropped in gathered if not dropped]
    rows = [row for part, _ in learnt for row in part]
    values = means(rows, gathered[0][0][0]) | means([row for _, row in learnt], gathered[0][1])
    return values | {
        "tokens": math.fsum(row["length"] for row in rows), "dropped_groups": float(len(gathered) - len(learnt)),
    }  # fmt: skip


def means(rows: Sequence[Mapping[str, float]], names: Iterable[str]) -> dict[str, float]:
    """The mean of each number over the rows; NaN of none."""
    # fsum is exact, so the means depend neither on the layout nor on the order of the parts.
    return {name: math.fsum(row[name] for row in rows) / len(rows) if rows else math.nan for name in names}


def _group_row(group: Sequence[Rollout]) -> dict[str, float]:
    rewards = [rollout.reward for rollout in group]
    mean = math.fsum(rewards) / len(rewards)
    std = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    silent = all(rollout.advantage == 0.0 for rollout in group)
    return {"reward_std": std, "silent_groups": float(silent)}


def rollout_row(rollout: Rollout) -> dict[str, float]:
    """One completion's numbers, by the names that their means have in the log."""
    parts = {f"reward/{name}": value for name, value in rollout.parts.items()}
    return {
        "reward": rollout.reward,
        **parts,
        "accepted": float(rollout.candidate.parsed.ok and rollout.candidate.parsed.exact),
        "finished": float(rollout.completion.finished),
        "looped": float(rollout.completion.looped),
        "length": float(len(rollout.completion.token_ids)),
    }


def update_values(updates: Sequence[StepResult], lr: float) -> dict[str, Value]:
    """Means over the step's updates: the last one's, but for `sampler_gap`, which the first one shows.

    Updates without tokens that count, whose completions are all masked or dropped, are passed over where there are
    others; where there are none, what is a mean over tokens is NaN.

    NaN where there was none, for the critic alone learns; `lr` then is that of the next.

    Over tokens that count in the loss, each alike: kl (the estimate `TuneConfig.kl`, in nats; NaN without a reference
    policy), entropy (nats), clip_fraction, ratio and its quantiles of `RATIO_QUANTILES`, ess (effective sample size of
    the ratios, as a share: (sum r)^2 / (N sum r^2)), sampler_gap (mean |log-probability of the trainer - of the
    sampler|; before any update it is rounding only). Weighted: loss.
    """
    if not updates:
        names = [*"loss kl entropy clip_fraction ratio ess sampler_gap grad_norm".split(), *RATIO_QUANTILES]
        return {**dict.fromkeys(names, math.nan), "lr": lr, "skipped": False}
    shown = [update for update in updates if update.extras["tokens"]] or updates
    first, last = shown[0], shown[-1]
    sums, tokens = last.extras, last.extras["tokens"] or math.nan
    counts = [sums[f"{RATIO_BIN}{n}"] for n in range(len(RATIO_EDGES) + 1)]
    return {
        "loss": last.loss,
        "kl": sums.get("divergence", math.nan) / tokens,
        "entropy": sums["entropy"] / tokens,
        "clip_fraction": sums["clipped"] / tokens,
        "ratio": sums["ratio"] / tokens,
        **{name: ratio_quantile(counts, share) for name, share in RATIO_QUANTILES.items()},
        "ess": sums["ratio"] ** 2 / (tokens * sums["ratio_square"]) if sums["ratio_square"] else math.nan,
        "sampler_gap": first.extras["gap"] / (first.extras["tokens"] or math.nan),
        "grad_norm": last.grad_norm,
        "lr": updates[-1].lr,
        "skipped": any(update.skipped for update in updates),
    }


def sample_values(rollout: Rollout) -> Mapping[str, Value]:
    """One completion to read: where it is from, what was written, what it earned."""
    parsed = rollout.candidate.parsed
    return {
        "source_id": rollout.prompt.key,
        "operation": rollout.candidate.operation,
        "member": rollout.member,
        "source": rollout.candidate.source,
        "completion": rollout.candidate.raw,
        "text": parsed.text,
        "reason": None if parsed.reason is None else str(parsed.reason),
        "exact": parsed.exact,
        "reward": rollout.reward,
        "advantage": rollout.advantage,
        "dropped": rollout.dropped,
        **{f"reward/{name}": value for name, value in rollout.parts.items()},
    }
