"""How far the generation of a run is, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from synpro_engine.report.numbers import compact, count, percent, seconds
from synpro_engine.synth.status import GenerationStatus


def lines(found: Mapping[str, GenerationStatus | None], price: float | None) -> Iterator[str]:
    """A few lines for each stage. price: of an hour of one worker, a replica of the generator."""
    for stage, status in found.items():
        if status is None:
            yield f"{stage}: not begun"
            continue
        yield f"{stage}: {_progress(status)}"
        tried = status.accepted + sum(status.refused.values())
        kept = f"{count(status.accepted)} of {count(tried)} completions ({percent(status.accepted, tried)})"
        refused = ", ".join(f"{reason} {count(number)}" for reason, number in status.refused.items())
        yield f"  accepted {kept}" + (f"; refused: {refused}" if refused else "")
        yield f"  {compact(status.text_tokens)} tokens of accepted text, {compact(status.completion_tokens)} sampled"
        hours = status.worker_hours_per_billion
        if hours is not None:
            cost = "" if price is None else f", {count(hours * price)} at {price:g} an hour"
            yield f"  a billion tokens of accepted text: {compact(hours)} worker hours{cost}"
        elif price is not None and status.worker_seconds is None:
            # A corpus is the same whoever made it however slowly, and holds no time.
            yield "  its cost is told while it goes on; what is left of it is the stage's time in stages.jsonl"


def _progress(status: GenerationStatus) -> str:
    if status.done >= status.prompts:
        return "done"
    share = f"{count(status.done)} of {count(status.prompts)} prompts ({percent(status.done, status.prompts)})"
    if status.tokens_per_s is None:
        return f"{share}; nobody finished a batch in the last ten minutes"
    workers = f"{status.workers} worker{'s' if status.workers > 1 else ''}"
    rate = f"{compact(status.tokens_per_s)} tokens sampled a second by {workers}"
    return f"{share}, {seconds(status.seconds_left)} left; {rate}"
