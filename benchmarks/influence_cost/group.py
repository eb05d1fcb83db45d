"""What influence costs in GRPO, where each source has a group of completions and comes again in later steps.

Knows texts and two ways to score them: ours, which keeps a source's score, and one that scores the source again with
every completion, as the method's public code does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.influence_cost.records import CostRow, differing, take_turns
from benchmarks.influence_cost.setup import Bench
from synpro_engine.influence import TwoForwardInfluence, sequence_logprobs

KEPT, AGAIN = "group, source kept", "source scored for each completion"
TOLERANCE = 1e-5
_PHRASE = 3  # words


@dataclass(frozen=True, kw_only=True)
class Group:
    """One source with the completions of one step."""

    source: str
    completions: list[str]


def group_steps(bench: Bench) -> list[list[Group]]:
    """Every step has new completions of the same sources: their phrases in another order, some left out."""
    settings = bench.settings
    words = settings.seq_len // 2
    sources = bench.texts(settings.sources, 2, low=max(8, words // 2), high=words)
    rng = np.random.default_rng([settings.seed, 3])
    return [
        [Group(source=s, completions=[_rewritten(s, rng) for _ in range(settings.group)]) for s in sources]
        for _ in range(settings.group_steps)
    ]


def _rewritten(source: str, rng: np.random.Generator) -> str:
    words = source.split()
    parts = [words[at : at + _PHRASE] for at in range(0, len(words), _PHRASE)]
    kept = rng.permutation(len(parts))[: rng.integers(max(1, len(parts) // 2), len(parts) + 1)]
    return " ".join(word for part in kept for word in parts[part])


def in_pairs(groups: Sequence[Group]) -> list[str]:
    """Each completion, and its source behind it."""
    return [text for group in groups for completion in group.completions for text in (completion, group.source)]


def gains_kept(bench: Bench, steps: Sequence[Sequence[Group]]) -> tuple[list[float], int]:
    """I(completion) - I(source) of all steps by our own scorer, and how many sequences went through the models."""
    settings = bench.settings
    influence = TwoForwardInfluence(bench.theta, bench.probe, start_id=bench.start_id, micro_batch=settings.text_batch)
    gains: list[float] = []
    for groups in steps:
        texts = [text for group in groups for text in (*group.completions, group.source)]
        scores = iter(influence.score([bench.tokenizer.encode(text) for text in texts]))
        for group in groups:
            of_completions = [next(scores).value for _ in group.completions]
            of_source = next(scores).value
            gains += [value - of_source for value in of_completions]
    return gains, influence.forwards


def gains_again(bench: Bench, steps: Sequence[Sequence[Group]]) -> tuple[list[float], int]:
    """The same, in the same micro-batches, with the source beside every completion."""
    gains: list[float] = []
    sent = 0
    for groups in steps:
        ids = [bench.tokenizer.encode(text) for text in in_pairs(groups)]
        size = bench.settings.text_batch
        theta, probe = (
            sequence_logprobs(model, ids, start_id=bench.start_id, micro_batch=size)
            for model in (bench.theta, bench.probe)
        )
        values = [float((after - before).mean()) for before, after in zip(theta, probe, strict=True)]
        gains += [text - source for text, source in zip(values[::2], values[1::2], strict=True)]
        sent += len(ids)
    return gains, sent


def measure(bench: Bench) -> list[CostRow]:
    """Sequences through the models, and time."""
    settings, steps = bench.settings, group_steps(bench)
    (ours, kept), (theirs, again) = gains_kept(bench, steps), gains_again(bench, steps)
    wrong = differing(ours, theirs, TOLERANCE)
    turns = take_turns(
        bench,
        "group",
        {KEPT: lambda _turn: gains_kept(bench, steps), AGAIN: lambda _turn: gains_again(bench, steps)},
    )
    what = f"{settings.group_steps} steps of {settings.sources} sources with {settings.group} completions each"
    counts = {"ours": kept, "rival": again}
    # Two forwards a completion, over one a completion and one in all for its source.
    completions = settings.group * settings.group_steps
    ideal = 2 * completions / (completions + 1)
    forwards = turns.row(
        f"{KEPT}: forwards", AGAIN, what, wrong=wrong, ratios=[again / kept], at_least=True, limit=1.8,
        arithmetic=ideal, counts=counts,
    )  # fmt: skip
    timed = turns.row(KEPT, AGAIN, what, wrong=wrong, at_least=True, arithmetic=ideal, counts=counts)
    return [forwards, timed]
