"""One case measured: contenders in turns, where our own step's time goes, and each one's memory."""

from __future__ import annotations

import gc
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.common.environment import ForeignLoad
from benchmarks.common.harness import clock_for, interleave, measured_peak, status_bytes, summarise
from benchmarks.common.processes import run_fresh
from benchmarks.pretrain.case import Case
from benchmarks.pretrain.contenders import CONTENDERS, OURS, PLAIN, initial_weights
from benchmarks.pretrain.loop import Contender
from benchmarks.pretrain.rivals import TrainerSteps
from benchmarks.pretrain.whole_run import breakdown
from synpro_engine.backend import platform
from synpro_engine.config import first_line
from synpro_engine.dist import Topology

Record = dict[str, object]
_COMPARED = 3  # steps whose losses are held to each other
PRODUCT = "large product"
_FAULTS = (RuntimeError, ImportError, NotImplementedError)


def measure(
    case: Case, names: Sequence[str], topology: Topology, *, rounds: int, warmups: int, parts: bool = True
) -> list[Record]:
    """A record for each contender: its rates, and whether its losses are those of plain PyTorch. Collective.

    parts: those of our own step too.
    """
    standing, records, losses = _begun(case, names, topology)
    _judge(records, losses)
    # Who does other work is not timed; of ours it is told beside the time, for `--against`.
    timed = {name: one for name, one in standing.items() if name == OURS or records[name]["status"] == "ok"}
    about = _timed(case, timed, records, topology, rounds=rounds, warmups=warmups)
    for name in timed:
        records[name]["losses"] = losses[name]
    for one in standing.values():
        if isinstance(one, TrainerSteps):
            one.close()
    ours = OURS in timed
    # What follows has a model of its own.
    standing, timed, one = {}, {}, None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if ours and parts:
        records[OURS] |= breakdown(case, topology)
    return [record | about for record in records.values()]


def _begun(
    case: Case, names: Sequence[str], topology: Topology
) -> tuple[dict[str, Contender], dict[str, Record], dict[str, list[float]]]:
    """Those that could take their first steps, a record of each that was asked for, and the losses of these steps."""
    weights = initial_weights(case.recipe, topology) if set(names) - {OURS} else {}
    standing, records, losses = dict[str, Contender](), dict[str, Record](), dict[str, list[float]]()
    for name in names:
        records[name] = {"contender": name, "status": "ok"}
        _say(topology, f"{case.title}: {name} begins")
        try:
            standing[name] = CONTENDERS[name](case.recipe, weights, topology)
            losses[name] = [standing[name].step(case.batches(turn)) for turn in range(_COMPARED)]
        except _FAULTS as error:
            if topology.world_size > 1:
                raise  # the other ranks wait in a collective
            standing.pop(name, None)
            records[name] |= {"status": "failed", "reason": (str(error).strip().splitlines() or ["?"])[0]}
    return standing, records, losses


def _timed(
    case: Case,
    standing: Mapping[str, Contender],
    records: Mapping[str, Record],
    topology: Topology,
    *,
    rounds: int,
    warmups: int,
) -> Record:
    """Put the rates of steps in turns into the records; what they were taken beside."""
    device, dtype = topology.device, platform.resolve_dtype(case.recipe.dtype)
    steps = {name: _step(one, case) for name, one in standing.items()}
    product, flops = measured_peak(device, dtype)
    others = ForeignLoad()
    samples = interleave(
        steps | {PRODUCT: product}, clock_for(device), rounds=rounds, warmups=warmups,
        progress=lambda text: _say(topology, f"{case.title}: {text}"),
    )  # fmt: skip
    foreign = others.share()
    # A device of no known peak is held to what it reaches on a large product in the same turns.
    known = platform.peak_flops()
    peak = known or flops / summarise(samples[PRODUCT]).median
    for name in standing:
        timing = summarise(samples[name])
        rate = topology.dp.size * case.tokens / timing.median
        per_device = rate / topology.world_size
        model, hardware = (per_device * flops / peak for flops in case.flops_per_token)
        ratios = [b.seconds / a.seconds for a, b in zip(samples[name], samples.get(PLAIN, []), strict=False)]
        records[name].update(
            timing=vars(timing),
            tokens_per_s=rate,
            tokens_per_s_per_device=per_device,
            mfu=model,
            hfu=hardware if name == OURS else None,
            ratios=[] if records[name]["status"] == "wrong" else ratios,
        )
    return {"peak_flops": peak, "peak": "published" if known else PRODUCT, "foreign_cpu_share": foreign}


def _step(contender: Contender, case: Case) -> Callable[[int], object]:
    batches = case.batches(_COMPARED)
    return lambda turn: contender.step(batches)


def _judge(records: Mapping[str, Record], losses: Mapping[str, Sequence[float]]) -> None:
    """Whoever's losses are not plain PyTorch's did other work; where that is not there, whoever's are not ours."""
    truth = PLAIN if PLAIN in losses else OURS
    if truth not in losses:
        return
    told = "plain PyTorch's" if truth == PLAIN else "ours"
    for name, record in records.items():
        if name not in losses or name == truth:
            continue
        # Three steps in: gradients, clipping and updates are in the last of them. bf16 keeps 8 bits of a logit.
        tolerance = 2e-2 if torch.cuda.is_available() else 1e-3
        gap = max(abs(a - b) for a, b in zip(losses[name], losses[truth], strict=True))
        if not (math.isfinite(gap) and gap <= tolerance):
            record |= {"status": "wrong", "reason": f"losses are {gap:.2g} from {told}", "ratios": []}


def memory(case: Case, name: str) -> Record:
    """`memory`: the most that a process of its own held beyond what it had before the model, in parts.

    Where that process failed, `memory_reason` in its place: the times stand.
    """
    told = json.dumps([case.recipe_name, case.overrides, case.micro_batches, name])
    # It needs what contenders had here, and what torch keeps of it would be wanting there.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        return {"memory": run_fresh("benchmarks.pretrain.memory", [told])}
    except RuntimeError as error:
        return {"memory_reason": first_line(error)}


def peak_of(name: str, case: Case, topology: Topology) -> Record:
    """Of this very process, which must be fresh."""
    recipe, on_gpu = case.recipe, topology.device.type == "cuda"
    # Once for nothing: what a first model leaves behind is nobody's.
    initial_weights(recipe, topology)
    gc.collect()
    before = torch.cuda.memory_allocated() if on_gpu else status_bytes("VmRSS")
    weights = initial_weights(recipe, topology) if name != OURS else {}
    gc.collect()  # the model that they were read from, which is in cycles
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    contender = CONTENDERS[name](recipe, weights, topology)
    weights.clear()
    for turn in range(2):  # the second has the optimizer's state
        contender.step(case.batches(turn))
    peak = torch.cuda.max_memory_allocated() if on_gpu else status_bytes("VmHWM")
    held = contender.held()
    return {"peak_bytes": peak - before, **held, "rest": peak - before - sum(held.values())}


def _say(topology: Topology, text: str) -> None:
    if topology.is_main:
        print(text, file=sys.stderr, flush=True)
