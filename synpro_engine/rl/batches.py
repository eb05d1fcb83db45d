"""Rollouts on their way into a model: rows that completions of one prompt share, cut into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from synpro_engine.data import IGNORE
from synpro_engine.model.shared_rows import SharedRows
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.types import Rollout, RolloutBatch
from synpro_engine.sampler import Nuclei


def micro_batches(
    rollouts: Sequence[Rollout], config: TuneConfig, device: torch.device, places: Sequence[int] | None = None
) -> list[RolloutBatch]:
    """Cut rollouts (those at `places`, else all) into batches of at most `micro_batch`, of rows of similar lengths.

    Completions of one prompt share a row, and with it the prompt, which is read once.
    """
    by_prompt: dict[int, list[int]] = {}
    for at in range(len(rollouts)) if places is None else places:
        # By the group and not by the slice, which may come twice in a step.
        by_prompt.setdefault(at - rollouts[at].member, []).append(at)
    size = config.micro_batch
    rows = [group[at : at + size] for group in by_prompt.values() for at in range(0, len(group), size)]
    # A stable sort: a resumed run cuts the same micro-batches, and sums their gradients in the same order.
    rows.sort(key=lambda row: _length(rollouts, row))
    batches: list[list[list[int]]] = []
    for row in rows:
        if not batches or sum(map(len, batches[-1])) + len(row) > size:
            batches.append([])
        batches[-1].append(row)
    return [_batch(rollouts, batch, config, device) for batch in batches]


def _length(rollouts: Sequence[Rollout], row: Sequence[int]) -> int:
    return len(rollouts[row[0]].prompt.token_ids) - 1 + sum(len(rollouts[at].completion.token_ids) for at in row)


def _batch(
    everything: Sequence[Rollout], rows: Sequence[Sequence[int]], config: TuneConfig, device: torch.device
) -> RolloutBatch:
    longest = max(_length(everything, row) for row in rows)
    # Padding on the right: attention is causal.
    token_BS, position_BS = (torch.zeros(len(rows), longest, dtype=torch.int64) for _ in range(2))
    label_BS, part_BS = torch.full_like(token_BS, IGNORE), torch.full_like(token_BS, -1)
    for index, row in enumerate(rows):
        *prompt, last = everything[row[0]].prompt.token_ids
        begin = len(prompt)
        token_BS[index, :begin], part_BS[index, :begin] = torch.tensor(prompt, dtype=torch.int64), 0
        position_BS[index, :begin] = torch.arange(begin)
        for part, at in enumerate(row, 1):
            answer = everything[at].completion.token_ids
            here = slice(begin, begin + len(answer))
            # From the prompt's last token on, so that each completion's first is predicted at a place of its own. Its
            # last token is predicted and predicts nothing.
            token_BS[index, here], label_BS[index, here] = torch.tensor([last, *answer[:-1]]), torch.tensor(answer)
            position_BS[index, here] = len(prompt) + torch.arange(len(answer))
            part_BS[index, here], begin = part, here.stop
    places = [at for row in rows for at in row]
    rollouts = [everything[at] for at in places]
    lengths = [len(rollout.completion.token_ids) for rollout in rollouts]
    shares = [
        # What teaches nothing stays, with weight 0: a rank that has nothing else still steps with the others.
        0.0 if not rollout.teaches else 1.0 / length if config.aggregation == "sequence" else 1.0
        for rollout, length in zip(rollouts, lengths, strict=True)
    ]
    # As the sampler drew them, not computed again: the ratio is to the probability that was really used.
    behaviour = [logprob for rollout in rollouts for logprob in rollout.completion.logprobs]
    weight_N = torch.repeat_interleave(torch.tensor(shares, dtype=torch.float32), torch.tensor(lengths))
    return RolloutBatch(
        places=tuple(places),
        lengths=tuple(lengths),
        tokens_BS=token_BS.to(device),
        labels_BS=label_BS.to(device),
        rows=SharedRows(
            position_BS=position_BS.to(device), part_BS=part_BS.to(device), longest=int(position_BS.max()) + 1
        ),
        behaviour_N=torch.tensor(behaviour, dtype=torch.float32, device=device),
        weight_N=weight_N.to(device),
        nuclei=_join_nuclei([rollout.completion.nuclei for rollout in rollouts]),
    )


def _join_nuclei(parts: Sequence[Nuclei | None]) -> Nuclei | None:
    present = [part for part in parts if part is not None]
    if not present:
        return None
    assert len(present) == len(parts), "completions of one batch are sampled alike"
    # Each part's offsets begin at 0, so counts are joined and added up anew.
    counts = torch.cat([torch.zeros(1, dtype=torch.int64)] + [part.offsets.diff() for part in present])
    return Nuclei(offsets=counts.cumsum(0), ids=torch.cat([part.ids for part in present]))
