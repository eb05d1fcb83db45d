"""A placebo for rewards: their values change places within each group, so that they say nothing of the texts."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from synpro_engine.data import stable_permutation
from synpro_engine.reward import RewardTable
from synpro_engine.synth import Candidate


def shuffled_within_groups(
    table: RewardTable,
    candidates: Sequence[Candidate],
    weights: Mapping[str, float],
    names: Collection[str],
    keys: Sequence[str],
    seed: int,
) -> RewardTable:
    """The table with the values of these rewards dealt anew within each group, and totals by them.

    keys: one for each group, of len(candidates) / len(keys) members that stand together. A permutation is a function of
    seed, key and the group's texts, of no layout and no value; rewards of a group share it. Only accepted completions
    take part: what was refused earns nothing before and after.
    """
    size = len(candidates) // max(1, len(keys))
    parts = {name: list(values) for name, values in table.parts.items()}
    total = list(table.total)
    for group, key in enumerate(keys):
        read = [at for at in range(group * size, (group + 1) * size) if _earns(candidates[at])]
        order = stable_permutation(len(read), seed, "rl.placebo", f"{key}\0{_digest(candidates[at] for at in read)}")
        for name in names:
            for at, other in zip(read, order.tolist(), strict=True):
                parts[name][at] = table.parts[name][read[other]]
                total[at] += weights.get(name, 0.0) * (parts[name][at] - table.parts[name][at])
    return replace(table, parts=parts, total=total)


def _digest(candidates: Iterable[Candidate]) -> str:
    texts = "\0".join(candidate.raw for candidate in candidates)
    return hashlib.blake2b(texts.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _earns(candidate: Candidate) -> bool:
    return candidate.parsed.ok and candidate.parsed.exact
